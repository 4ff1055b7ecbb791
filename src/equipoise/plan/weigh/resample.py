"""Resampling of steps (block bootstrap), to estimate how much chance changes a mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def block_length(num_steps: int) -> int:
    """Return the default length of a block: the cube root of the number of steps."""
    size: int = round(num_steps ** (1 / 3))
    return size


def resampled_means(values: Floats, *, block_steps: int, num_draws: int, seed: int) -> Floats:
    """Draw means by the circular block bootstrap (Politis and Romano, 1992).

    Each draw has ``T`` steps. Blocks keep neighbouring steps together, because they are similar.

    Parameters
    ----------
    values
        Value of each step, ``(..., T)``; all series are drawn at the same steps. Not changed.
    block_steps
        Number of steps in a block.
    num_draws
        Number of means to draw.
    seed
        Random seed.

    Returns
    -------
    Means ``(..., num_draws)``.
    """
    T = values.shape[-1]
    size = min(T, block_steps)
    twice = np.concatenate([values, values[..., :size]], axis=-1)
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), twice.cumsum(axis=-1)], axis=-1)
    first = np.random.default_rng(seed).integers(0, T, (num_draws, -(-T // size)))
    length = np.full(first.shape[1], size)
    length[-1] = T - length[:-1].sum()  # the last block is shorter, so that there are T steps
    means: Floats = (sums[..., first + length] - sums[..., first]).sum(axis=-1) / T
    return means
