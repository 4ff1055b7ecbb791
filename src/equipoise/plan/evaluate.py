"""Scoring of a placement on loads, seen or unseen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_type
from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.dispatch.base import TOO_MUCH_LOAD
from equipoise.dispatch.times import rank_speeds
from equipoise.errors import EquipoiseError
from equipoise.frames import data_frame
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.showing import heat_html, in_short
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """Peak and mean rank load of every step and layer.

    A layer without load in a step has imbalance 1, and is left out of all averages.

    Parameters
    ----------
    peak
        Load of the busiest rank, ``(T, L)``, in the dispatcher's unit: assignments, or seconds if
        the dispatcher has a cost.
    mean
        Load of the mean rank, ``(T, L)``, in the same unit.
    dispatch
        Name of the dispatcher that shared the load over the copies.
    layer_ids
        Layer numbers of the model; empty numbers them from 0.
    """

    peak: NDArray[np.float64]
    mean: NDArray[np.float64]
    dispatch: str
    layer_ids: tuple[int, ...] = ()

    @cached_property
    def imbalance(self) -> NDArray[np.float64]:
        """Peak over mean, >= 1, ``(T, L)``."""
        return np.divide(self.peak, self.mean, out=np.ones_like(self.mean), where=self.mean > 0)

    @property
    def mean_imbalance(self) -> float:
        """Mean imbalance over steps and layers with load."""
        return float(self._loaded.mean())

    @property
    def p95_imbalance(self) -> float:
        """95th percentile of the imbalance over steps and layers with load."""
        return float(np.quantile(self._loaded, 0.95))

    @property
    def worst_imbalance(self) -> float:
        """Largest imbalance of any step and layer."""
        return float(self._loaded.max())

    @property
    def relative_step_time(self) -> float:
        """Sum of the peaks over sum of the means: 1.3 is a step 30 % longer than balanced."""
        mean = self.mean.sum()
        return float(self.peak.sum() / mean) if mean > 0 else 1.0

    @property
    def mean_peak(self) -> float:
        """Mean peak of steps and layers with load, in the dispatcher's unit."""
        loaded = self.mean > 0
        return float(self.peak[loaded].mean()) if loaded.any() else 0.0

    def to_frame(self) -> Any:
        """Make a ``DataFrame`` with a row for each step and layer, in pandas or else in polars.

        Columns: ``step`` (its position), ``layer``, ``peak``, ``mean`` and ``imbalance``.

        Raises
        ------
        EquipoiseError
            Neither pandas nor polars is installed.
        """
        steps, layers = self.peak.shape
        return data_frame(
            {
                "step": np.repeat(np.arange(steps), layers),
                "layer": np.tile(np.array(self.layer_ids or range(layers)), steps),
                "peak": self.peak.ravel(),
                "mean": self.mean.ravel(),
                "imbalance": self.imbalance.ravel(),
            }
        )

    def __repr__(self) -> str:
        steps, layers = self.peak.shape
        return (
            f"Evaluation({steps} steps, {layers} layers, imbalance {self.mean_imbalance:.3f} on "
            f"average, {self.p95_imbalance:.3f} at p95, {self.worst_imbalance:.3f} at worst, "
            f"{self.dispatch})"
        )

    def _repr_html_(self) -> str:
        return heat_html(
            repr(self),
            self.imbalance.T,
            "Load of the busiest rank over the mean: a row for each layer, a column for each step.",
        )

    @property
    def _loaded(self) -> NDArray[np.float64]:
        loaded = self.imbalance[self.mean > 0]
        return loaded if loaded.size else np.ones(1)


def evaluate(
    placement: Placement, load: Trace | ArrayLike, *, dispatch: str | Dispatcher = "even"
) -> Evaluation:
    """Score a placement on loads, for instance on steps that were held out of planning.

    Parameters
    ----------
    placement
        Placement to score.
    load
        Trace with the placement's layers, or assignments ``(L, E)`` or ``(T, L, E)``; not changed.
    dispatch
        Dispatcher that shares an expert's load over its copies, by name or as an object. ``"even"``
        shares equally; ``"minmax"`` keeps the busiest rank of every step and layer as low as
        possible; ``DISPATCHERS`` lists the others. A dispatcher by name is given the trace's
        ``top_k``. If a dispatcher object has speeds or a cost, peaks and means are times.

    Returns
    -------
    Peak and mean of every step and layer, with summaries.

    Raises
    ------
    EquipoiseError
        Layers or experts other than the placement's, loads that are negative or not finite, or an
        unknown dispatcher.
    """
    if isinstance(load, Trace) and load.layer_ids != placement.layer_ids:
        raise EquipoiseError(
            f"The trace has layers {format_ids(load.layer_ids)}, the placement "
            f"{format_ids(placement.layer_ids)}; select the same layers of both."
        )
    top_k = load.top_k if isinstance(load, Trace) else None
    loads, known = _steps(load), dispatcher(dispatch, top_k=top_k)
    return Evaluation(
        peak=known.peaks(loads, placement),
        mean=_mean(loads, known, placement.num_ranks),
        dispatch=known.name,
        layer_ids=placement.layer_ids,
    )


def evaluate_without_balancing(
    load: Trace | ArrayLike, topology: Topology, *, dispatch: str | Dispatcher = "even"
) -> Evaluation:
    """Score the layout without balancing: every expert once, in order, without copies.

    If ``R`` does not divide ``E``, the first ``E mod R`` ranks hold one expert more, as in the
    engines. A ``Placement`` cannot express that, because its ranks have equal numbers of slots.
    No expert has copies, so dispatchers differ only in speeds and costs.

    Parameters
    ----------
    load, dispatch
        Parameters of ``evaluate``; a dispatcher by name is given the topology.
    topology
        Ranks that the experts are on.

    Raises
    ------
    EquipoiseError
        Loads that are negative or not finite, or an unknown dispatcher.
    """
    num_ranks = check_type("topology", topology, Topology).num_ranks
    loads, known = _steps(load), dispatcher(dispatch, topology)
    with np.errstate(over="ignore"):  # an overflow to infinity is refused below
        if loads.sum(axis=-1).max() >= TOO_MUCH_LOAD:
            raise EquipoiseError(
                "A layer has 2**53 assignments or more in a step; give the counts of one batch, or "
                "scale them down."
            )
    rank_E = ranks_without_balancing(loads.shape[-1], num_ranks)
    held_ER = (rank_E[:, None] == np.arange(num_ranks)).astype(np.float64)
    cost = known.cost
    times = loads @ held_ER if cost is None else cost.slot_seconds(loads) @ held_ER
    if cost is not None:
        times += cost.fixed_seconds
    speed = rank_speeds(known.topology, num_ranks, cost)
    return Evaluation(
        peak=(times / speed).max(axis=-1),
        mean=_mean(loads, known, num_ranks),
        dispatch=known.name,
        layer_ids=load.layer_ids if isinstance(load, Trace) else (),
    )


def ranks_without_balancing(num_experts: int, num_ranks: int) -> NDArray[np.int64]:
    """Find each expert's rank without balancing, ``(E,)``; the first ranks may hold one more."""
    least, more = divmod(num_experts, num_ranks)
    return np.repeat(np.arange(num_ranks), least + (np.arange(num_ranks) < more))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two placements compared on the same steps.

    Parameters
    ----------
    before, after
        Mean peak over steps and layers with load, in the dispatcher's unit.
    noise
        Half width of the 95 % confidence interval of ``before - after``; ``None`` for a single
        step, from which no interval follows.
    num_steps
        Number of steps compared.
    """

    before: float
    after: float
    noise: float | None
    num_steps: int

    @property
    def gain(self) -> float:
        """Gain of ``after`` as a share of ``before``; negative if ``after`` is higher."""
        return (self.before - self.after) / self.before if self.before > 0 else 0.0

    @property
    def is_sure(self) -> bool:
        """Whether ``after`` is lower by more than chance explains."""
        return self.noise is not None and self.before - self.after > self.noise

    __repr__ = in_short


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """Compare two evaluations of the same steps, step by step."""
    loaded = before.mean > 0
    saved = np.where(loaded, before.peak - after.peak, 0.0) * loaded.size / max(1, loaded.sum())
    return Comparison(
        before=before.mean_peak,
        after=after.mean_peak,
        noise=_noise(saved),
        num_steps=len(saved),
    )


def _noise(saved_TL: NDArray[np.float64]) -> float | None:
    """Compute half the 95 % confidence interval of the mean; ``None`` for a single step.

    Neighbouring steps are similar, so the error is estimated from blocks of steps; a block has the
    cube root of their number. Layers may vary independently or together; the larger error counts.
    """
    steps, layers = saved_TL.shape
    if steps == 1:
        return None
    blocks = np.array_split(saved_TL, steps // max(1, round(steps ** (1 / 3))))
    means_BL = np.stack([block.mean(axis=0) for block in blocks])
    apart_BL = means_BL - means_BL.mean(axis=0)
    freedom = len(blocks) - 1
    squares = max((apart_BL**2).sum(), (apart_BL.sum(axis=1) ** 2).sum())
    error = np.sqrt(squares / freedom / len(blocks)) / layers
    return float(_students_t(freedom * layers) * error)


def _students_t(freedom: int) -> float:
    """Compute the 97.5 % quantile of Student's t within 1.5 %, by its series in 1 / freedom."""
    return float(np.polyval([3.0, 2.56, 2.82, 2.37, 1.96], 1 / freedom))


def _steps(load: Trace | ArrayLike) -> NDArray[np.float64]:
    """Check the loads and return them as ``(T, L, E)``."""
    loads = as_loads(load.counts if isinstance(load, Trace) else load)
    return loads[None] if loads.ndim == 2 else loads


def _mean(load_TLE: NDArray[np.float64], known: Dispatcher, num_ranks: int) -> NDArray[np.float64]:
    """Compute the load or time of a rank under perfect balance, ``(T, L)``."""
    cost = known.cost
    if cost is None:
        return np.asarray(load_TLE.sum(axis=-1) / num_ranks)
    work = cost.slot_seconds(load_TLE).sum(axis=-1) + num_ranks * cost.fixed_seconds
    speed = rank_speeds(known.topology, num_ranks, cost)
    return np.where(load_TLE.any(axis=-1), work / speed.sum(), 0.0)
