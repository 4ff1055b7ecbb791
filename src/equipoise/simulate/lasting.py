"""The number of steps for which routing stays similar, as it does within a request or topic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST_WINDOWS = 1024
_SOME_LAYERS = 8


def lasting_steps(load_TLE: Floats, kinds_T: NDArray[np.int64]) -> int:
    """Estimate the number of steps after which loads are no longer similar.

    It is the lag at which the autocorrelation of the experts' shares has fallen to 0, for some
    layers and all kinds of steps together. Many series of experts give a better estimate than the
    one series of step times. The result is 1 if no step resembles the next.

    Parameters
    ----------
    load_TLE
        Assignments of consecutive steps, ``(T, L, E)``.
    kinds_T
        Kind of each step; each kind is a separate sequence.
    """
    layers = np.unique(np.linspace(0, load_TLE.shape[1] - 1, _SOME_LAYERS).astype(int))
    size = -(-len(load_TLE) // _MOST_WINDOWS)  # steps per window, more than 1 to save time
    together = np.zeros(0)
    for kind in np.unique(kinds_T):
        steps = load_TLE[kinds_T == kind]
        for layer in layers:
            found = _autocovariance(_windows(steps[:, layer], size))
            longer, shorter = sorted((together, found), key=len, reverse=True)
            together = longer + np.pad(shorter, (0, len(longer) - len(shorter)))
    ended = np.flatnonzero(together <= 0)
    return size * int(max(ended[0] if len(ended) else len(together), 1))


def _windows(load_TE: Floats, size: int) -> Floats:
    """Compute the experts' shares in windows of several steps, ``(W, E)``."""
    starts = np.arange(0, len(load_TE), size)
    summed = np.add.reduceat(load_TE, starts)
    total = summed.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(summed, total, out=np.zeros_like(summed), where=total > 0))


def _autocovariance(series_WE: Floats) -> Floats:
    """Compute the autocovariance for each lag, summed over series, ``(W,)``."""
    W = len(series_WE)
    spectrum = np.fft.rfft(series_WE - series_WE.mean(axis=0), 2 * W, axis=0)
    return np.asarray(np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=1), 2 * W)[:W])
