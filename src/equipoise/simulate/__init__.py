"""Routing and serving that never happened: synthetic traces, and requests served step by step."""
