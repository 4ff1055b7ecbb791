"""Recordings as plain tables and arrays."""
