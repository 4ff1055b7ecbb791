"""Quotas: whole assignments, made from fractional shares, that sum exactly to the loads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch.split import Split
from equipoise.dispatch.times import nodes_of_ranks, rank_speeds


def even_quotas(split: Split) -> NDArray[np.int64]:
    """Give each slot ``load // copies`` assignments, and the lowest slots one more for the rest.

    A rank with many such lower slots may therefore get up to one assignment more for each expert.

    Returns
    -------
    Assignments per slot, ``(L, S)`` int64.
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
    """Return the quotas of a split whose shares are whole already, ``(L, S)``."""
    return split.shares.astype(np.int64)


def minmax_quotas(split: Split) -> NDArray[np.int64]:
    """Compute quotas with the least peak that whole numbers allow.

    Shares are rounded down, the rest goes to the ranks that finish first, and chains of single
    assignments relieve ranks above the least peak. This peak is always reached, because integral
    capacities admit an integral flow; if all ranks are equal, it is the bound rounded up. If
    sources are known, a minimum-cost flow finds the split with this peak that keeps the most
    assignments on their rank and node.

    Returns
    -------
    Assignments per slot, ``(L, S)`` int64.
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
