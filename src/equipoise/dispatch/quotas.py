"""From fractional shares to whole assignments that sum exactly to the loads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch.split import Split


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


def minmax_quotas(split: Split) -> NDArray[np.int64]:
    """Near the shares, with the least peak that whole numbers allow: the bound, rounded up.

    Shares are rounded down, the rest goes to the lighter ranks, and chains of single assignments
    relieve ranks above that peak. Integral capacities admit an integral flow, so it is reached.

    Returns
    -------
    ``(L, S)`` int64.
    """
    from equipoise.dispatch import _kernels  # numba takes long to import

    return _kernels.minmax_quotas(
        split.load,
        split.shares,
        np.ceil(split.bound),
        split.placement.slots,
        split.placement.num_ranks,
    )
