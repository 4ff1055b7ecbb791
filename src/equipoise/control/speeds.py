"""Estimates of the ranks' speeds, from their work and the time it took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STEP = 1.25  # speeds are powers of this, because smaller differences are noise
_LEAST_STEPS = 2  # least distance from the median, in powers, of a rank that counts as different


def in_steps(work: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Estimate the speeds of ranks relative to the median rank.

    Speeds are powers of 1.25. A rank has speed 1 if it is less than two such powers from the
    median, or had no work.

    The time of a rank depends on its rows or on its active experts, whichever dominates. A rank
    counts as slow or fast only as far as both measures agree: few rows on many experts are slow per
    row without a slow rank.

    Parameters
    ----------
    work
        Rows, active experts and seconds of each rank.
    """
    table = np.array(work, dtype=np.float64)
    idle = np.asarray((table <= 0).any(axis=1))
    if idle.all():
        return (1.0,) * len(work)
    table[idle] = 1.0
    rates = np.log(table[:, :2] / table[:, 2:])
    rates -= np.median(rates[~idle], axis=0)
    by_rows, by_experts = rates.T
    agreed = np.where(np.abs(by_rows) < np.abs(by_experts), by_rows, by_experts)
    steps = np.rint(agreed / np.log(_STEP))
    steps[idle | (by_rows * by_experts < 0) | (np.abs(steps) < _LEAST_STEPS)] = 0
    return tuple(float(_STEP**step) for step in steps)
