"""Means of steps that chance might have shown instead of those recorded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def block_length(num_steps: int) -> int:
    """Steps of a block, if nobody says: the cube root of their number."""
    size: int = round(num_steps ** (1 / 3))
    return size


def resampled_means(values: Floats, *, block_steps: int, num_draws: int, seed: int) -> Floats:
    """Means over the same number of steps, drawn in circular blocks (Politis and Romano, 1992).

    Blocks keep neighbours together, which tell much the same.

    Parameters
    ----------
    values
        One value a step, ``(..., T)``: every series is drawn at the same steps.

    Returns
    -------
    ``(..., num_draws)``.
    """
    T = values.shape[-1]
    size = min(T, block_steps)
    twice = np.concatenate([values, values[..., :size]], axis=-1)
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), twice.cumsum(axis=-1)], axis=-1)
    first = np.random.default_rng(seed).integers(0, T, (num_draws, -(-T // size)))
    length = np.full(first.shape[1], size)
    length[-1] = T - length[:-1].sum()  # the last block makes it T steps again
    means: Floats = (sums[..., first + length] - sums[..., first]).sum(axis=-1) / T
    return means
