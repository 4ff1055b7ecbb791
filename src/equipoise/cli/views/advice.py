"""The verdict of a report, as text."""

from __future__ import annotations

from rich.console import Console

from equipoise.report.advice import Advice


def print_verdicts(console: Console, advice: Advice) -> None:
    """Print each verdict on a line."""
    for cost, verdict in advice.verdicts.items():
        console.print(f"{cost}: {verdict.text}")


def print_basis(console: Console, advice: Advice) -> None:
    """Print what the verdicts rest on, after an empty line."""
    console.print(f"\n{advice.basis}")
