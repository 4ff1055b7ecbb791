"""The time that a change saves in a step, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.plan.weigh.budget import chances
from equipoise.plan.weigh.resample import block_length, resampled_means

Floats = NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.8
"""Confidence level of the intervals of a forecast."""

_RESAMPLED = 1000
_MOST_RESAMPLED_BLOCKS = 5
_MODELS_AT_ONCE = 32  # share the random numbers; few, to save memory
_MOST_BLOCKS = 16  # largest number of blocks whose signs are drawn


def gain(old_T: Floats, new_T: Floats) -> float:
    """Compute the share of the old time that is saved; negative if the new time is longer."""
    return float(1 - new_T.mean() / old_T.mean())


def gain_interval(
    old_MT: Floats,
    new_MT: Floats,
    *,
    strata: NDArray[np.int64],
    further_steps: int,
    lasting: int = 1,
    spread: float = 0.0,
    seed: int,
) -> Interval | None:
    """Compute the confidence interval of the gain in future steps; ``None`` for a single step.

    The level is ``CONFIDENCE``. Three sources of uncertainty enter: which steps happened to be
    recorded (by resampling circular blocks), which model is the true one, and, if the plan is made
    again, which steps it is made from. The first part is widened, because few blocks vary too
    little among each other and because a finite run varies too.

    Parameters
    ----------
    old_MT, new_MT
        Seconds of each step without and with the change, by ``M`` models, ``(M, T)``. The first
        model is the best guess and the others may be true; a single model is taken to be exact.
    strata
        Kind of each step, ``(T,)``. Future steps have the same kinds in the same numbers, so each
        kind is resampled by itself. If a kind has a single step, all count as one kind.
    further_steps
        Number of steps of the run that is forecast.
    lasting
        Number of consecutive steps that are similar, such as those of a request. Blocks are twice
        as long if at least two of them fit.
    spread
        Standard deviation of the difference in gain between this plan and another, from
        ``planning_spread``; 0 if this plan is used.
    seed
        Random seed of the resampling.
    """
    (interval,) = gain_intervals(
        old_MT,
        new_MT,
        strata=strata,
        further_steps=further_steps,
        lasting=lasting,
        spreads=[spread],
        seed=seed,
    )
    return interval


def gain_intervals(
    old_MT: Floats,
    new_MT: Floats,
    *,
    strata: NDArray[np.int64],
    further_steps: int,
    lasting: int,
    spreads: Sequence[float],
    seed: int,
) -> list[Interval | None]:
    """Compute the interval of ``gain_interval`` for each spread, from the same resampled steps."""
    T = old_MT.shape[1]
    if T == 1:
        return [None] * len(spreads)
    kinds, sizes = np.unique(strata, return_counts=True)
    parts = [np.flatnonzero(strata == kind) for kind in kinds]
    if sizes.min() == 1:
        parts = [np.arange(T)]
    rows = slice(1, None) if len(old_MT) > 1 else slice(None)
    old, new = (
        _further_means(times[rows], parts, lasting, wider=np.sqrt(1 + T / further_steps), seed=seed)
        for times in (old_MT, new_MT)
    )
    z = np.random.default_rng((seed, 1)).standard_normal(old.shape)
    return [_middle(1 - new / old + spread * z) for spread in spreads]


def _middle(gains: Floats) -> Interval:
    """Return the ends of the middle share ``CONFIDENCE`` of drawn gains."""
    low, high = np.quantile(gains, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def planning_spread(twin_gains: Sequence[tuple[float, float]]) -> float:
    """Estimate the standard deviation of the difference in gain between two plans.

    It is that of two plans from half the steps each. Plans from more steps differ as much, because
    most of the difference is how the packing happens to come out: measured in
    docs/results/forecasts.md.
    """
    apart = [a - b for a, b in twin_gains]
    return float(np.sqrt(np.mean(np.square(apart)))) if apart else 0.0


def chances_above(saved_AT: Floats) -> Floats:
    """Compute the probability that the best of several chance savings is as large as each.

    This is ``chances`` on at most 16 blocks of neighbouring steps.
    """
    parts = np.array_split(saved_AT, min(saved_AT.shape[1], _MOST_BLOCKS), axis=1)
    return chances(np.stack([part.mean(axis=1) for part in parts], axis=1))


def _further_means(
    times_MT: Floats,
    parts: Sequence[NDArray[np.int64]],
    lasting: int,
    *,
    wider: float,
    seed: int,
) -> Floats:
    """Draw the means that future steps may have, ``(M, draws)``; equal seeds draw equal steps.

    Resampled deviations of a part with ``b`` blocks are too small by ``sqrt(1 - 1 / b)``, and
    normal instead of following Student's t. Both are corrected.
    """
    lengths = [_block_steps(len(part), lasting) for part in parts]
    blocks = [len(part) / length for part, length in zip(parts, lengths, strict=True)]
    wider = wider * _student_over_normal(sum(blocks) - len(blocks))

    def drawn_means(times: Floats) -> Floats:
        means = np.repeat(times.mean(axis=1, keepdims=True), _RESAMPLED, axis=1)
        for number, (part, length, b) in enumerate(zip(parts, lengths, blocks, strict=True)):
            values = np.take(times, part, axis=1)
            drawn = resampled_means(
                values, block_steps=length, num_draws=_RESAMPLED, seed=seed + number
            )
            correction = wider * np.sqrt(b / (b - 1))
            deviation = drawn - values.mean(axis=1, keepdims=True)
            means += len(part) / times.shape[1] * correction * deviation
        return means

    starts = range(0, len(times_MT), _MODELS_AT_ONCE)
    return np.concatenate([drawn_means(times_MT[i : i + _MODELS_AT_ONCE]) for i in starts])


def _block_steps(num_steps: int, lasting: int) -> int:
    """Choose the length of a block: twice what lasts, so that neighbouring blocks differ."""
    few = max(block_length(num_steps), round(num_steps / _MOST_RESAMPLED_BLOCKS))
    return max(few, min(2 * lasting, num_steps // 2))


def _student_over_normal(freedom: float) -> float:
    """Compute the width of the confidence interval of Student's t over that of a normal."""
    from scipy.special import ndtri, stdtrit

    end = (1 + CONFIDENCE) / 2
    return float(stdtrit(freedom, end) / ndtri(end))
