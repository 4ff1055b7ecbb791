"""The verdict at the end of a report, as text."""

from __future__ import annotations

from rich.console import Console

from equipoise.report.advice import Advice


def print_advice(console: Console, advice: Advice) -> None:
    """Print what it rests on, what steps are spent on, and each verdict last."""
    console.print(f"\n{advice.basis}")
    for cost, sentences in advice.spent.items():
        for sentence in sentences:
            console.print(f"{cost}: {sentence}")
    for cost, verdict in advice.verdicts.items():
        console.print(f"{cost}: {verdict.text}")
