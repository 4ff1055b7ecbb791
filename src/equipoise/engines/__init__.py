"""Engines and their files."""
