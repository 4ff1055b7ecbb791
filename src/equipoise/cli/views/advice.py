"""The verdict of a report, as text."""

from __future__ import annotations

from rich.console import Console

from equipoise.report.advice import Advice


def print_verdicts(console: Console, advice: Advice) -> None:
    """Print each verdict on a line, or why there is none."""
    for cost, verdict in advice.verdicts.items():
        console.print(f"{cost}: {verdict.text}")
    if not advice.verdicts:
        console.print(advice.basis)


def print_basis(console: Console, advice: Advice) -> None:
    """Print what steps are spent on and what the verdicts rest on, if there are any."""
    for cost, sentences in advice.spent.items():
        for sentence in sentences:
            console.print(f"{cost}: {sentence}")
    if advice.verdicts:
        console.print(advice.basis)
