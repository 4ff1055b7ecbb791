"""Requests in, answers out, on several processes."""
