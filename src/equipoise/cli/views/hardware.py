"""Where the times of a deployment came from, as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from equipoise.cli.views.text import one_line


def print_facts(console: Console, facts: Sequence[str]) -> None:
    """Print where each part of a machine came from, a line each."""
    for fact in facts:
        console.print(f"  {one_line(fact)}")
