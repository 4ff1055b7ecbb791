"""Sentences on what has happened between two looks."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.report.monitor.look import Look
from equipoise.units import duration, size

_OUTCOMES = {
    "unproven": "kept, though its gain may be chance",
    "rolled_back": "undone: the old map was better",
    "refused": "a plan was refused: it would not pay back in time",
    "failed": "an attempt to balance failed; serving goes on",
}


def has_begun_again(before: Look, after: Look) -> bool:
    """Tell whether counters start again, after a restart or because other processes answer."""
    fewer = after.counts.steps < before.counts.steps
    return fewer or before.silent.keys() != after.silent.keys()


def events(before: Look, after: Look) -> Iterator[str]:
    """Yield sentences on what has happened from one look to the next."""
    for name in after.silent.keys() - before.silent.keys():
        yield f"{name}: {after.silent[name]}"
    for name in before.silent.keys() - after.silent.keys():
        yield f"{name} answers again"
    yield from _changes(before, after)
    if after.counts.steps < before.counts.steps:
        yield "the system was started again: it counts from 0"
    elif not has_begun_again(before, after):
        yield from _counted(before, after)
    for name in sorted(after.alarms - before.alarms):
        yield f"alarm {name} began"
    for name in sorted(before.alarms - after.alarms):
        yield f"alarm {name} ended"


def _changes(before: Look, after: Look) -> Iterator[str]:
    if after.num_ranks != before.num_ranks and None not in (after.num_ranks, before.num_ranks):
        without = after.recovery_seconds
        served = "" if without is None else f"; {duration(without)} without serving"
        yield f"ranks: {before.num_ranks} -> {after.num_ranks}{served}"
    if after.map_version != before.map_version and None not in (
        after.map_version,
        before.map_version,
    ):
        yield f"map {before.map_version} -> {after.map_version}"


def _counted(before: Look, after: Look) -> Iterator[str]:
    old, new = before.counts, after.counts
    slots = (new.moved_slots or 0.0) - (old.moved_slots or 0.0)
    moved = new.moved_bytes - old.moved_bytes
    told = [f"{slots:,.0f} slots"] if slots > 0 else []
    told += [size(moved)] if moved > 0 else []
    if told:
        yield f"moved {', '.join(told)}"
    for outcome, number in new.rebalances.items():
        if number > old.rebalances.get(outcome, 0.0):
            yield _kept(after) if outcome == "kept" else _OUTCOMES.get(outcome, outcome)
    for number, what in (
        (new.failed_requests - old.failed_requests, "requests could not be served"),
        (new.failures - old.failures, "failures of planners, transfers or maps"),
    ):
        if number > 0:
            yield f"{number:,.0f} {what}"


def _kept(look: Look) -> str:
    achieved, predicted = look.achieved_gain, look.predicted_gain
    if achieved is None:
        return "kept: the new map is surely better"
    hoped = "" if predicted is None else f" (predicted: {predicted})"
    if achieved.seconds is None:
        return f"kept: saves the busiest ranks {achieved} assignments a step{hoped}"
    return f"kept: saves {achieved} a step{hoped}"
