"""What a change takes off a step, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.plan.weigh.budget import chances
from equipoise.plan.weigh.resample import block_length, resampled_means

Floats = NDArray[np.float64]

CONFIDENCE = 0.8
"""Confidence level of the intervals of a forecast."""

_RESAMPLED = 1000
_MOST_BLOCKS = 16  # whose signs are drawn


def gain(old_T: Floats, new_T: Floats) -> float:
    """Share of the old time that is saved; negative if the new one is longer."""
    return float(1 - new_T.mean() / old_T.mean())


def gain_interval(
    old_MT: Floats, new_MT: Floats, *, further_steps: int, spread: float, seed: int
) -> tuple[float, float] | None:
    """Where the gain of further steps lies, at ``CONFIDENCE``; ``None`` for a single step.

    Three things may move it: the steps that happened to be recorded, by resampling blocks of them;
    which model is the true one; and the steps that happened to be planned on. Few blocks vary less
    among each other than what they are drawn from, and a finite run varies as well: the first part
    is widened for both.

    Parameters
    ----------
    old_MT, new_MT
        Seconds of each step by ``M`` models, ``(M, T)``. The first is the one at hand, the others
        are those that may be true; by itself the first is taken for true.
    further_steps
        Steps of the run that is forecast.
    spread
        Standard deviation of the gain between plans; see ``planning_spread``.
    """
    T = old_MT.shape[1]
    if T == 1:
        return None
    rows = slice(1, None) if len(old_MT) > 1 else slice(None)
    old, new = old_MT[rows], new_MT[rows]
    size = block_length(T)
    center = 1 - new.mean(axis=1, keepdims=True) / old.mean(axis=1, keepdims=True)
    resampled = 1 - _resampled(new, size, seed) / _resampled(old, size, seed)
    wider = _student_widening(T / size) * np.sqrt(1 + T / further_steps)
    z = np.random.default_rng((seed, 1)).standard_normal(resampled.shape)
    drawn = center + wider * (resampled - center) + spread * z
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def planning_spread(twin_gains: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of a gain between plans from other steps of the same traffic.

    Of two plans from half the steps each the gains differ by ``sqrt(2)`` of their deviation, and
    that is ``sqrt(2)`` of the deviation of plans from all steps.
    """
    apart = [(a - b) / 2 for a, b in twin_gains]
    return float(np.sqrt(np.mean(np.square(apart)))) if apart else 0.0


def chances_above(saved_AT: Floats) -> Floats:
    """How often chance would show the best of some savings as large as each, ``(A,)``.

    ``chances`` of blocks of neighbours, of which there are 16 at most.
    """
    parts = np.array_split(saved_AT, min(saved_AT.shape[1], _MOST_BLOCKS), axis=1)
    return chances(np.stack([part.mean(axis=1) for part in parts], axis=1))


def _resampled(rows_MT: Floats, size: int, seed: int) -> Floats:
    """Means of the same drawn steps for every row, one row at a time to save memory."""
    means = [
        resampled_means(row, block_steps=size, num_draws=_RESAMPLED, seed=seed) for row in rows_MT
    ]
    return np.stack(means)


def _student_widening(blocks: float) -> float:
    """What resampled deviations of a mean are multiplied by to be those of Student's t."""
    from scipy.special import ndtri, stdtrit

    end = (1 + CONFIDENCE) / 2
    freedom = max(blocks - 1, 1.0)
    return float(stdtrit(freedom, end) / ndtri(end) * np.sqrt(blocks / freedom))
