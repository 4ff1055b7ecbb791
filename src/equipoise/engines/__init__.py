"""Serving engines: their files, options and rules."""
