"""Ranks whose times vary by chance: the slowest rank takes longer than any rank's mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_REACH = 5.0  # standard deviations on either side that are integrated over
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def expected_slowest(rank_seconds: Floats, jitter: float) -> Floats:
    """Return the mean time of the slowest rank.

    Every rank's time is normally distributed and independent of the others. If ranks have equal
    shares, sometimes one and sometimes another is the slowest. Balancing therefore saves less than
    the decrease of the largest share suggests.

    Parameters
    ----------
    rank_seconds
        Mean time of each rank, ``(..., R)``.
    jitter
        Standard deviation of a rank's time, relative to its mean.

    Returns
    -------
    ``(...)`` float64, never less than the largest mean.
    """
    largest = np.asarray(rank_seconds.max(axis=-1), dtype=np.float64)
    if not jitter or rank_seconds.shape[-1] == 1:
        return largest
    from scipy.special import ndtr

    spread = jitter * rank_seconds
    low = (rank_seconds - _REACH * spread).max(axis=-1)
    high = (rank_seconds + _REACH * spread).max(axis=-1)
    # E max = high - integral of P(all are done by x) over x from low to high.
    half = (high - low) / 2
    total = np.zeros_like(largest)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        x = (low + half * (1 + node))[..., None]
        done = ndtr((x - rank_seconds) / np.maximum(spread, 1e-300)).prod(axis=-1)
        total += weight * done
    slowest: Floats = np.maximum(largest, high - half * total)
    return slowest
