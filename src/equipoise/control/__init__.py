"""Deciding while serving: when to look, when to plan, what moves next. Needs no torch."""
