"""For how many steps a router's taste lasts: requests, and what they are about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST_WINDOWS = 1024
_SOME_LAYERS = 8


def lasting_steps(load_TLE: Floats, kinds_T: NDArray[np.int64]) -> int:
    """Steps after which the loads of a kind of steps no longer resemble each other.

    That is where the autocorrelation of the experts' shares, all experts of some layers and all
    kinds together, has fallen to nothing. Many series tell it better than the one of a step's time.
    1 where no step resembles the next.

    Parameters
    ----------
    load_TLE
        Assignments of consecutive steps, ``(T, L, E)``.
    kinds_T
        Kind of each step; each is a sequence by itself.
    """
    layers = np.unique(np.linspace(0, load_TLE.shape[1] - 1, _SOME_LAYERS).astype(int))
    size = -(-len(load_TLE) // _MOST_WINDOWS)  # steps summed, to save time where there are many
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
    """Shares of the experts in windows of that many steps, ``(W, E)``."""
    starts = np.arange(0, len(load_TE), size)
    summed = np.add.reduceat(load_TE, starts)
    total = summed.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(summed, total, out=np.zeros_like(summed), where=total > 0))


def _autocovariance(series_WE: Floats) -> Floats:
    """Sum over lags' pairs and series of the products of deviations, ``(W,)``, by lag."""
    W = len(series_WE)
    spectrum = np.fft.rfft(series_WE - series_WE.mean(axis=0), 2 * W, axis=0)
    return np.asarray(np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=1), 2 * W)[:W])
