"""From fractional shares to whole assignments that sum exactly to the loads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch.split import Split
from equipoise.dispatch.times import nodes_of_ranks, rank_speeds


def even_quotas(split: Split) -> NDArray[np.int64]:
    """``load // copies`` for each slot, one more for the lowest slots while a remainder lasts.

    Largest remainder where all remainders are equal. Ranks that hold many lower slots collect up
    to one assignment more for each expert.

    Returns
    -------
    ``(L, S)`` int64.
    """
    placement = split.placement
    copies, load = (
        np.take_along_axis(values, placement.slots, axis=1)
        for values in (placement.copies, split.load.astype(np.int64))
    )
    layer, expert, ordinal = np.nonzero(placement.slots_of_experts() >= 0)
    nth_copy = np.empty_like(placement.slots)
    nth_copy[layer, placement.slots_of_experts()[layer, expert, ordinal]] = ordinal
    return np.asarray(load // copies + (nth_copy < load % copies))


def whole_shares(split: Split) -> NDArray[np.int64]:
    """Quotas of a split whose shares are whole already, ``(L, S)``."""
    return split.shares.astype(np.int64)


def minmax_quotas(split: Split) -> NDArray[np.int64]:
    """With the least peak that whole numbers allow, near the shares or near the sources.

    Shares are rounded down, the rest goes to the ranks soonest done, and chains of single
    assignments relieve ranks above that peak. Integral capacities admit an integral flow, so it is
    reached: where all ranks are equal, the bound rounded up. If sources are known, a minimum-cost
    flow then finds, of all whole splits with that peak, one that keeps most on its rank and node.

    Returns
    -------
    ``(L, S)`` int64.
    """
    from equipoise.dispatch import _kernels, _near_kernels  # numba takes long to import

    p = split.placement
    speed = rank_speeds(split.topology, p.num_ranks)
    quotas = _kernels.minmax_quotas(
        split.load, split.shares, split.bottleneck_ranks, p.slots, speed
    )
    if split.source_load is None:
        return quotas
    nodes = nodes_of_ranks(split.topology, p.num_ranks)
    return _near_kernels.nearest_quotas(split.source_load, quotas, p.slots, speed, nodes)
