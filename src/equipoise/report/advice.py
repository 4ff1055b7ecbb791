"""Advice at the end of a report: a quick forecast whether balancing would help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from equipoise.cost import costs_for
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.report.spent import spent
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.forecast import Verdict, forecast, quickest
from equipoise.topology import Topology
from equipoise.trace import Trace

_MOST_CELLS = 1 << 18  # largest number of steps x layers x experts, for a few seconds of work
_FEWEST_LAYERS = 4
_MOST_STEPS = 1024


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The verdicts of a forecast like ``equipoise forecast --planner greedy``.

    Parameters
    ----------
    verdicts
        Verdict for each published cost of this number of ranks, by name.
    spent
        Sentences on the parts of an unseen step, by the same names; see ``report.spent``.
    basis
        Sentence on what the verdicts are based on.
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
    """Forecast with the fastest planner; a long trace is reduced to some layers and steps.

    If no forecast can be made from a trace, the verdict is "insufficient evidence".

    Parameters
    ----------
    current
        Map in force, if it has these layers and experts.
    progress
        Function that is called with the number of costs done and of all.
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
    """Return the verdict and the sentences on the parts of a step."""
    if current is not None:
        is_same = current.layer_ids == trace.layer_ids
        current = current if is_same and current.num_experts == trace.num_experts else None
    try:
        answer = forecast(
            trace,
            Topology(num_ranks),
            UncertainCost.published(cost),
            planner=quickest,
            current=current,
        )
    except EquipoiseError as error:  # too few steps, or no load
        return Verdict(kind="insufficient evidence", why=str(error)), []
    return answer.verdict, spent(answer)


def _some(trace: Trace) -> Trace:
    """Take evenly spaced steps and layers of a trace if it is too long."""
    T, L, E = trace.counts.shape
    steps = min(T, _MOST_STEPS)
    layers = min(L, max(_FEWEST_LAYERS, _MOST_CELLS // (steps * E)))
    if (steps, layers) == (T, L):
        return trace
    chosen = [trace.layer_ids[i] for i in _spaced(L, layers)]
    return trace.select(layers=chosen, steps=np.array(_spaced(T, steps)))


def _spaced(number: int, chosen: int) -> list[int]:
    """Choose evenly spaced positions, including the last."""
    return [number - 1 - i * number // chosen for i in reversed(range(chosen))]
