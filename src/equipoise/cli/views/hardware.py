"""Where the times of a deployment came from, as text."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from equipoise.cli.views.text import one_line


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Print where each part of a machine came from, a line each."""
    for part, said in facts.items():
        console.print(f"  {part}: {one_line(said)}")
