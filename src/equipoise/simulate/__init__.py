"""Simulation: synthetic traces, and requests that are served step by step."""
