"""The load of every rank in every step under one layout of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.dispatch.base import Shares
from equipoise.dispatch.times import rank_speeds
from equipoise.placement import Placement
from equipoise.plan.evaluate import (
    Evaluation,
    evaluate,
    evaluate_without_balancing,
    ranks_without_balancing,
)
from equipoise.report.measured import Layout, rank_loads
from equipoise.topology import Topology

Floats = NDArray[np.float64]

MOST_CELLS = 540_000  # largest number of layouts x steps x layers x ranks: a page of 3 MB
MOST_COLUMNS = 64  # largest number of ranks side by side that can be distinguished


@dataclass(frozen=True, eq=False, kw_only=True)
class Laid:
    """The steps of a trace under one layout.

    Parameters
    ----------
    name
        Name of the layout, such as "no balancing".
    layout
        Placement, or an ``Uneven`` layout without copies.
    evaluation
        Peaks and means of all steps, ``(T, L)``.
    steps
        Positions of the steps that are shown rank by rank, ``(F,)``.
    multiples
        Load of each rank in those steps over the mean of its step and layer, ``(F, L, R)``; it is a
        time if the dispatcher has a cost. The largest of a step and layer is the imbalance.
    """

    name: str
    layout: Layout
    evaluation: Evaluation
    steps: NDArray[np.int64]
    multiples: Floats

    @property
    def loaded(self) -> NDArray[np.bool_]:
        """Mask of the steps and layers with load, ``(T, L)``."""
        return self.evaluation.mean > 0

    @property
    def by_layer(self) -> list[float | None]:
        """Imbalance of each layer, mean over the steps with load; ``None`` without any."""
        return means(self.evaluation.imbalance, self.loaded, axis=0)

    @property
    def by_step(self) -> list[float | None]:
        """Imbalance of each step, mean over the layers with load; ``None`` without any."""
        return means(self.evaluation.imbalance, self.loaded, axis=1)

    @property
    def sorted_ranks(self) -> tuple[Floats, Floats, Floats]:
        """Compute mean, 10th and 90th percentile of the busiest, second busiest, ... rank.

        Each is ``(R,)``, over the shown steps and layers with load. The first mean is the
        imbalance.
        """
        falling = -np.sort(-self.multiples[self.loaded[self.steps]], axis=1)
        low, high = np.percentile(falling, [10, 90], axis=0)
        return falling.mean(axis=0), low, high


def lay(
    load_TLE: NDArray[np.number],
    layouts: Mapping[str, Layout],
    dispatch: str | Dispatcher = "even",
) -> tuple[Laid, ...]:
    """Evaluate several layouts, by name, on the same number of ranks.

    In long recordings, only some evenly spaced steps are kept by rank; imbalance uses all steps.
    """
    if not layouts:
        return ()
    steps, layers, _ = load_TLE.shape
    num_ranks = next(iter(layouts.values())).num_ranks
    cells = len(layouts) * layers * min(num_ranks, MOST_COLUMNS)
    shown = min(steps, max(1, MOST_CELLS // cells))
    picked = np.linspace(0, steps - 1, shown).astype(np.int64)
    judge, load = dispatcher(dispatch, Topology(num_ranks)), load_TLE.astype(np.float64)
    return tuple(_laid(load, name, layout, judge, picked) for name, layout in layouts.items())


def _laid(
    load: Floats, name: str, layout: Layout, judge: Dispatcher, steps: NDArray[np.int64]
) -> Laid:
    if isinstance(layout, Placement):
        evaluation = evaluate(layout, load, dispatch=judge)
    else:
        topology = judge.topology or Topology(layout.num_ranks)
        evaluation = evaluate_without_balancing(load, topology, dispatch=judge)
    mean = evaluation.mean[steps][..., None]
    work = _work(load[steps], layout, judge)
    multiples = np.divide(work, mean, out=np.zeros_like(work), where=mean > 0)
    return Laid(name=name, layout=layout, evaluation=evaluation, steps=steps, multiples=multiples)


def _work(load_FLE: Floats, layout: Layout, judge: Dispatcher) -> Floats:
    """Compute the load or time of each rank in the dispatcher's unit, ``(F, L, R)``."""
    if not isinstance(layout, Placement):
        return _work_unbalanced(load_FLE, layout.num_ranks, judge)
    if judge.shares is Shares.EVEN and judge.cost is None and _equal(judge.topology):
        return rank_loads(load_FLE, layout)
    return np.stack([judge.split(load_LE, layout).rank_times for load_LE in load_FLE])


def _work_unbalanced(load_FLE: Floats, num_ranks: int, judge: Dispatcher) -> Floats:
    """Compute the load or time of each rank without balancing, ``(F, L, R)``."""
    rank_E = ranks_without_balancing(load_FLE.shape[-1], num_ranks)
    held_ER = (rank_E[:, None] == np.arange(num_ranks)).astype(np.float64)
    cost = judge.cost
    if cost is None:
        work = load_FLE @ held_ER
    else:
        work = cost.slot_seconds(load_FLE) @ held_ER + cost.fixed_seconds
    return np.asarray(work / rank_speeds(judge.topology, num_ranks, cost))


def _equal(topology: Topology | None) -> bool:
    return topology is None or topology.speed is None


def means(values: Floats, loaded: NDArray[np.bool_], axis: int) -> list[float | None]:
    """Average the loaded values along an axis; ``None`` where nothing is loaded."""
    count = loaded.sum(axis=axis)
    total = np.where(loaded, values, 0.0).sum(axis=axis)
    return [float(x) / int(n) if n else None for x, n in zip(total, count, strict=True)]
