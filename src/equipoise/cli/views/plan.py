"""A plan, its scores and its map, as text and as a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.padding import Padding

from equipoise.cli.views.hardware import print_facts
from equipoise.cli.views.launch import print_launch
from equipoise.cli.views.model import model_document, slot_text
from equipoise.cli.views.moves import moves_document, moves_text
from equipoise.cli.views.notes import print_recording
from equipoise.cli.views.scores import scores_document, scores_table, verdict_document
from equipoise.cli.views.text import one_line
from equipoise.engines.map_target import WrittenMap
from equipoise.engines.transformers.config import ModelConfig
from equipoise.plan.study import Study
from equipoise.plan.weigh.reach import Reach
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A study and what became of its map.

    Parameters
    ----------
    model
        The model's configuration, if it was given.
    expert_bytes
        Bytes of one expert in one layer, if known: for what the moves take.
    reach
        Where unseen tokens go, if somebody asked.
    withheld
        Whether a map was asked for and not written, because it is not better.
    facts
        Where times and links of the hardware came from; empty without hardware.
    """

    study: Study
    model: ModelConfig | None
    expert_bytes: int | None
    reach: Reach | None
    written: WrittenMap | None
    withheld: bool
    facts: Mapping[str, str] = field(default_factory=dict)


def plan_document(outcome: Outcome) -> dict[str, object]:
    """The outcome for programs."""
    result, migration, written = outcome.study.plan, outcome.study.migration, outcome.written
    return {
        "planner": result.planner,
        "dispatch": result.dispatch,
        "ranks": result.placement.num_ranks,
        "experts": result.placement.num_experts,
        "slots": result.placement.num_slots,
        "checksum": result.placement.checksum,
        "verdict": verdict_document(outcome.study.scores.verdict),
        "status": result.status,
        "gap": result.gap,
        "scores": scores_document(outcome.study.scores),
        "noise_floor_held_out": outcome.study.scores.chance_held,
        "reach_held_out": outcome.reach,
        "moves": None if migration is None else moves_document(migration, outcome.expert_bytes),
        "model": model_document(outcome.model),
        "hardware": outcome.facts,
        "layers": [
            {"layer": b.layer, "peak": peak, "bound": bound, "binds": b.kind, "why": b.text}
            for b, peak, bound in zip(
                result.binding, result.peak.tolist(), result.bound.tolist(), strict=True
            )
        ],
        "map": None if written is None else {"path": str(written.path), "lost": written.lost},
        "launch": None if written is None else written.launch,
    }


def print_plan(console: Console, recording: Trace, outcome: Outcome) -> None:
    """Print the outcome for people."""
    _print_summary(console, recording, outcome)
    if outcome.written is not None:
        console.print()
        print_map(console, outcome.written)
    if outcome.withheld:
        console.print("\nNo map was written; --even-if-worse writes it nevertheless.")


def _print_summary(console: Console, recording: Trace, outcome: Outcome) -> None:
    result, placement = outcome.study.plan, outcome.study.plan.placement
    print_recording(console, recording)
    console.print(
        f"{result.planner}: {placement.num_experts} experts in "
        f"{placement.num_slots} slots on {placement.num_ranks} ranks "
        f"({placement.num_redundant} redundant, {placement.slots_per_rank} slots a rank)\n"
    )
    console.print(scores_table(outcome.study.scores))
    console.print(f"\n{outcome.study.scores.verdict.text}")
    console.print(f"\n{result.status}")
    if outcome.study.migration is not None:
        console.print(moves_text(outcome.study.migration, outcome.expert_bytes))
    if outcome.model is not None:
        fewest = -(-placement.num_experts // placement.num_ranks)
        added = placement.slots_per_rank - fewest
        console.print(slot_text(outcome.model, outcome.expert_bytes, max(added, 1)))
    print_facts(console, outcome.facts)
    if outcome.reach is not None:
        console.print(outcome.reach.text)
    hardest = sorted(
        range(placement.num_layers),
        key=lambda i: -result.bound[i] / result.mean[i] if result.mean[i] > 0 else 0.0,
    )
    for i in hardest[:3]:
        if result.binding[i].kind != "mean":
            console.print(f"  {result.binding[i].text}")


def print_map(console: Console, written: WrittenMap) -> None:
    """Print which map was written, what it lacks, and how to start the engine with it."""
    console.print(one_line(f"Written, read back and compared: {written.path}"))
    for sentence in written.lost:
        console.print(Padding(f"not in the file: {sentence}", (0, 0, 0, 2), expand=False))
    if written.launch is not None:
        print_launch(console, written.launch, files_written=bool(written.files))
