"""Showing it: tables, pages, JSON."""
