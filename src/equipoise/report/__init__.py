"""Presentation of results: tables, pages, JSON."""
