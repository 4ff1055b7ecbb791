"""The balance of ranks on a trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.noise import TraceNoiseFloor, trace_noise_floor
from equipoise.report.labels import label_groups
from equipoise.report.measured import Layout, rank_loads
from equipoise.showing import in_short
from equipoise.trace import Trace

_STEPS_AT_ONCE = 64
_MOST_STEPS = 256  # largest number of steps for a rank's 95th percentile, to bound memory


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The balance of ranks over some layers and steps; each layer of each step is a barrier.

    Barriers without load are left out. One average cannot be computed from another.

    Parameters
    ----------
    imbalance
        Mean of max/mean over the barriers, >= 1.
    imbalance_ratio
        Mean of (max - mean)/mean: the imbalance minus 1.
    balancedness
        Mean of mean/max, in (0, 1].
    p95, worst
        95th percentile and largest max/mean.
    of_window
        Max/mean of the load summed over steps, mean over layers. For steps of equal size it is
        never above ``imbalance``, because moving hot spots cancel in the sum, but every step waits
        for its own hot spot.
    floor, floor_std
        Mean and standard deviation of max/mean by chance alone, for steps of this size.
    excess
        Imbalance above the floor, caused by skew: ``imbalance - floor``.
    beyond_chance
        Share of the barriers whose imbalance is more than chance: a level that a fair router
        exceeds in fewer than 1 % of barriers.
    """

    imbalance: float
    imbalance_ratio: float
    balancedness: float
    p95: float
    worst: float
    of_window: float
    floor: float
    floor_std: float
    excess: float
    beyond_chance: float

    __repr__ = in_short

    @property
    def chance_share(self) -> float:
        """Share of ``imbalance - 1`` that chance alone explains, 0 to 1."""
        if self.imbalance <= 1.0:
            return 1.0
        return min(1.0, (self.floor - 1.0) / (self.imbalance - 1.0))


@dataclass(frozen=True, eq=False)
class RankView:
    """The loads of ranks, reduced to the numbers that balance needs."""

    peak: NDArray[np.float64]  # (T, L)
    mean: NDArray[np.float64]  # (T, L)
    by_step: NDArray[np.float64]  # (T, L) max/mean
    p95: NDArray[np.float64]  # (L, R) of load over the mean of its step
    rank_load: NDArray[np.float64]  # (G, L, R), of each group of steps with equal labels
    group_of_step: NDArray[np.int64]  # (T,)
    floor: TraceNoiseFloor

    @classmethod
    def of(cls, trace: Trace, layout: Layout) -> RankView:
        """Compute the loads of ranks for a trace and a layout."""
        group = label_groups(trace)
        rank_load = np.zeros((int(group.max()) + 1, layout.num_layers, layout.num_ranks))
        peak = np.empty((trace.num_steps, trace.num_layers))
        mean = trace.counts.sum(axis=2, dtype=np.float64) / layout.num_ranks
        picked = _evenly_apart(trace.num_steps, _MOST_STEPS)
        shares = []
        for start in range(0, trace.num_steps, _STEPS_AT_ONCE):  # bounds the memory for long traces
            chunk = slice(start, start + _STEPS_AT_ONCE)
            loads = rank_loads(trace.counts[chunk], layout)
            peak[chunk] = loads.max(axis=2)
            np.add.at(rank_load, group[chunk], loads)
            here = picked[(picked >= start) & (picked < start + _STEPS_AT_ONCE)]
            shares.append(over_mean(loads[here - start]).astype(np.float32))
        p95 = _p95(np.concatenate(shares), mean[picked] > 0)
        by_step = np.divide(peak, mean, out=np.ones_like(peak), where=mean > 0)
        floor = trace_noise_floor(trace, layout.num_ranks)
        return cls(peak, mean, by_step, p95, rank_load, group, floor)

    @property
    def relative_step_time(self) -> float:
        """Sum of the busiest ranks' loads over the sum of the means."""
        return float(self.peak.sum() / self.mean.sum())

    def balance(
        self, *, layer: int | None = None, steps: NDArray[np.bool_] | None = None
    ) -> Balance | None:
        """Compute the balance of some barriers; ``None`` if they have no load."""
        pick = np.ix_(
            np.arange(len(self.mean)) if steps is None else np.flatnonzero(steps),
            np.arange(self.mean.shape[1]) if layer is None else np.array([layer]),
        )
        busy = self.mean[pick] > 0
        if not busy.any():
            return None
        gamma = self.by_step[pick][busy]
        floor = float(self.floor.mean[pick][busy].mean())
        groups = np.unique(self.group_of_step[pick[0].ravel()])
        window = self.rank_load[groups].sum(axis=0)[pick[1].ravel()]
        return Balance(
            imbalance=float(gamma.mean()),
            imbalance_ratio=float(gamma.mean() - 1.0),
            balancedness=float((1.0 / gamma).mean()),
            p95=float(np.percentile(gamma, 95)),
            worst=float(gamma.max()),
            of_window=float(imbalance(window[window.any(axis=1)]).mean()),
            floor=floor,
            floor_std=float(self.floor.std[pick][busy].mean()),
            excess=float(gamma.mean()) - floor,
            beyond_chance=float((gamma > self.floor.alarm_level[pick][busy]).mean()),
        )

    def busiest(self, layer: int) -> int:
        """Find the rank with the most load of a layer over all steps."""
        return int(self.rank_load[:, layer].sum(axis=0).argmax())

    def multiples(self) -> NDArray[np.float64]:
        """Compute loads over all steps as multiples of the mean rank's, ``(L, R)``."""
        return over_mean(self.rank_load.sum(axis=0))


def over_mean(loads: NDArray[np.number]) -> NDArray[np.float64]:
    """Divide loads by their row's mean; 0 where the row has no load."""
    x = loads.astype(np.float64)
    mean = x.mean(axis=-1, keepdims=True)
    multiple: NDArray[np.float64] = np.zeros_like(x)
    np.divide(x, mean, out=multiple, where=mean > 0)
    return multiple


def _evenly_apart(size: int, at_most: int) -> NDArray[np.int64]:
    """Choose evenly spaced indices, from the first to the last."""
    return np.linspace(0, size - 1, min(size, at_most)).astype(np.int64)


def _p95(share_TLR: NDArray[np.float32], busy_TL: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Compute the 95th percentile over the steps in which a layer has load; 0 without any."""
    p95 = np.zeros(share_TLR.shape[1:])
    for layer, busy in enumerate(busy_TL.T):
        if busy.any():
            p95[layer] = np.percentile(share_TLR[busy, layer], 95, axis=0)
    return p95
