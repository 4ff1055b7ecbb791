"""How fast ranks compute, from what they did and how long it took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STEP = 1.25  # speeds are powers of this: smaller differences are noise
_LEAST_STEPS = 2  # from the median that a rank has to be to count as different


def in_steps(work: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Speeds of ranks, relative to the median, from the rows, active experts and seconds of each.

    Speeds are powers of 1.25. A rank has 1 if it is less than two such steps from the median, or
    had nothing to do.

    Depending on the rows of an expert, the time goes with the rows or with the active experts. A
    rank counts as slow, or fast, only as far as both say so: few rows on many experts look slow
    per row and are not.
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
