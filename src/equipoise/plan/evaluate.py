"""What a placement does on loads, seen or unseen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import as_loads
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.dispatch.split import rank_speeds
from equipoise.errors import EquipoiseError
from equipoise.layers import format_ids
from equipoise.placement import Placement
from equipoise.trace import Trace


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Rank loads of every step and layer, in two numbers each.

    A step whose layer has no load counts as balanced, 1, and is left out of every summary.

    Parameters
    ----------
    peak
        Assignments on the busiest rank, ``(T, L)``, or the time of the slowest: the dispatcher's
        unit.
    mean
        The same of the mean rank, ``(T, L)``.
    dispatch
        The dispatcher that shared the load over the copies.
    """

    peak: NDArray[np.float64]
    mean: NDArray[np.float64]
    dispatch: str

    @cached_property
    def imbalance(self) -> NDArray[np.float64]:
        """Peak over mean, >= 1, ``(T, L)``."""
        return np.divide(self.peak, self.mean, out=np.ones_like(self.mean), where=self.mean > 0)

    @property
    def mean_imbalance(self) -> float:
        """Mean over steps and layers with load."""
        return float(self._loaded.mean())

    @property
    def p95_imbalance(self) -> float:
        """What 95 % of steps and layers with load stay below (linear interpolation)."""
        return float(np.quantile(self._loaded, 0.95))

    @property
    def worst_imbalance(self) -> float:
        """The largest of any step and layer."""
        return float(self._loaded.max())

    @property
    def relative_step_time(self) -> float:
        """Summed peaks over summed means: every layer waits for its busiest rank."""
        mean = self.mean.sum()
        return float(self.peak.sum() / mean) if mean > 0 else 1.0

    @property
    def _loaded(self) -> NDArray[np.float64]:
        loaded = self.imbalance[self.mean > 0]
        return loaded if loaded.size else np.ones(1)


def evaluate(
    placement: Placement, load: Trace | ArrayLike, *, dispatch: str | Dispatcher = "even"
) -> Evaluation:
    """Score a placement on loads, e.g. on steps that were held out of planning.

    Parameters
    ----------
    load
        A trace of the placement's layers, or assignments ``(L, E)`` or ``(T, L, E)``.
    dispatch
        How copies share an expert's load: ``"even"``, equally; ``"minmax"``, so that the busiest
        rank of every step and layer gets as little as possible; or a dispatcher that knows the
        ranks' speeds or a cost: then peaks and means are its times.

    Raises
    ------
    EquipoiseError
        Layers or experts that are not the placement's, loads that are NaN, infinite or negative,
        an unknown dispatcher.
    """
    if isinstance(load, Trace):
        if load.layer_ids != placement.layer_ids:
            raise EquipoiseError(
                f"The trace has layers {format_ids(load.layer_ids)}, the placement "
                f"{format_ids(placement.layer_ids)}; select the same layers of both."
            )
        load = load.counts
    loads = as_loads(load)
    if loads.ndim == 2:
        loads = loads[None]
    known = dispatcher(dispatch)
    return Evaluation(
        peak=known.peaks(loads, placement),
        mean=_mean(loads, known, placement.num_ranks),
        dispatch=known.name,
    )


def _mean(load_TLE: NDArray[np.float64], known: Dispatcher, num_ranks: int) -> NDArray[np.float64]:
    """What a rank takes if all share everything to perfection, ``(T, L)``."""
    cost: RankCost | None = getattr(known, "cost", None)
    if cost is None:
        return np.asarray(load_TLE.sum(axis=-1) / num_ranks)
    work = cost.slot_seconds(load_TLE).sum(axis=-1) + num_ranks * cost.fixed_seconds
    speed = rank_speeds(getattr(known, "topology", None), num_ranks, cost)
    return np.where(load_TLE.any(axis=-1), work / speed.sum(), 0.0)
