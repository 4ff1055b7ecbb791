"""A checklist, as text and as a document."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from equipoise.engines._shared.knob import Knob
from equipoise.engines.knobs import ENGINES
from equipoise.simulate.checklist import CLOSING, Checklist, Item, Topic

Knobs = Mapping[str, Mapping[Topic, tuple[Knob, ...]]]
"""The options of engines, by the engine."""


def checklist_document(result: Checklist, knobs: Knobs) -> dict[str, object]:
    """The checklist for programs."""
    return {
        "step_tokens": result.step_tokens,
        "items": [
            {
                "topic": item.topic,
                "verdict": item.verdict,
                "found": item.found,
                "means": item.means,
                "numbers": dict(item.numbers),
                "options": {
                    engine: {knob.name: knob.moves for knob in known[item.topic]}
                    for engine, known in knobs.items()
                },
            }
            for item in result.items
        ],
        "source": result.source,
        "closing": CLOSING,
    }


def print_checklist(console: Console, result: Checklist, knobs: Knobs) -> None:
    """Print the decisions in their order, each with the options that move it."""
    console.print(f"Steps of {result.step_tokens:,.0f} tokens, all ranks together.")
    for number, item in enumerate(result.items, 1):
        _print_item(console, number, item, knobs)
    console.print(f"\n{result.source} {CLOSING}")


def _print_item(console: Console, number: int, item: Item, knobs: Knobs) -> None:
    console.print(f"\n{number}. {item.topic}: {item.verdict}", style="bold")
    console.print(f"   {item.found}")
    console.print(f"   {item.means}")
    for engine, known in knobs.items():
        for knob in known[item.topic]:
            console.print(f"     {ENGINES[engine]}: {knob.name} ({knob.moves})")
