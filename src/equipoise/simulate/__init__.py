"""Routing that never happened: synthetic popularity and the traces sampled from it."""
