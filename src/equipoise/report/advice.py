"""Whether balancing would help, at the end of a report: a forecast that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from equipoise.cost import costs_for
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.result import Planner
from equipoise.report.spent import spent
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.forecast import Verdict, forecast
from equipoise.topology import Topology
from equipoise.trace import Trace

_MOST_CELLS = 1 << 18  # loads of steps, layers and experts that take a few seconds
_FEWEST_LAYERS = 4
_MOST_STEPS = 1024


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a forecast says, as ``equipoise forecast --planner greedy`` would.

    Parameters
    ----------
    verdicts
        One for each of the published costs of this number of ranks, by its name.
    spent
        What an unseen step is spent on by each of them, in sentences; see ``report.spent``.
    basis
        What they rest on, in a sentence.
    """

    verdicts: dict[str, Verdict]
    spent: dict[str, list[str]]
    basis: str


def advise(
    trace: Trace,
    num_ranks: int,
    current: Placement | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Advice:
    """Forecast by the quickest planner; on some layers and steps, evenly spaced, of a long trace.

    A trace that no forecast can be made from is insufficient evidence.

    Parameters
    ----------
    current
        The map in force, if it is of these layers and experts.
    progress
        Function that is told how many costs are done, of how many.
    """
    try:
        names = costs_for(num_ranks)
    except EquipoiseError:
        said = (
            f"no published constants are for {num_ranks} ranks; equipoise forecast takes "
            "--hardware or --rank-cost"
        )
        return Advice(verdicts={}, spent={}, basis=f"No forecast: {said}.")
    part = _some(trace)
    verdicts, sentences = {}, {}
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names))
        verdicts[name], sentences[name] = _answer(part, num_ranks, name, current)
    which = "all of it" if part is trace else f"{part.num_layers} layers and {part.num_steps} steps"
    return Advice(
        verdicts=verdicts,
        spent=sentences,
        basis=f"Forecast by the planner greedy on {which}, even and min-max split, expert "
        "computation alone; equipoise forecast says more.",
    )


def _answer(
    trace: Trace, num_ranks: int, cost: str, current: Placement | None
) -> tuple[Verdict, list[str]]:
    """The verdict, and what a step is spent on."""
    if current is not None:
        is_same = current.layer_ids == trace.layer_ids
        current = current if is_same and current.num_experts == trace.num_experts else None
    try:
        answer = forecast(
            trace,
            Topology(num_ranks),
            UncertainCost.published(cost),
            planner=_quickest,
            current=current,
        )
    except EquipoiseError as error:  # too few steps, or none with load
        return Verdict(kind="insufficient evidence", why=str(error)), []
    return answer.verdict, spent(answer)


def _quickest(dispatch: str) -> Planner:
    """The same plan for every dispatcher: this planner knows none."""
    del dispatch
    return Greedy()


def _some(trace: Trace) -> Trace:
    """Evenly spaced steps and layers of a trace that is too long; else the trace itself."""
    T, L, E = trace.counts.shape
    steps = min(T, _MOST_STEPS)
    layers = min(L, max(_FEWEST_LAYERS, _MOST_CELLS // (steps * E)))
    if (steps, layers) == (T, L):
        return trace
    chosen = [trace.layer_ids[i] for i in _spaced(L, layers)]
    return trace.select(layers=chosen, steps=np.array(_spaced(T, steps)))


def _spaced(number: int, chosen: int) -> list[int]:
    """Positions evenly apart, the last one among them."""
    return [number - 1 - i * number // chosen for i in reversed(range(chosen))]
