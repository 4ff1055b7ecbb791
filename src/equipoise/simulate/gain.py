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
_MOST_RESAMPLED_BLOCKS = 5
_MOST_BLOCKS = 16  # whose signs are drawn


def gain(old_T: Floats, new_T: Floats) -> float:
    """Share of the old time that is saved; negative if the new one is longer."""
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
) -> tuple[float, float] | None:
    """Where the gain of further steps lies, at ``CONFIDENCE``; ``None`` for a single step.

    Three things may move it: the steps that happened to be recorded, by resampling circular blocks
    of them; which model is the true one; and, if the plan is made again, the steps that happen to
    be planned on. Few blocks vary less among each other than what they are drawn from, and a finite
    run varies as well: the first part is widened for both.

    Parameters
    ----------
    old_MT, new_MT
        Seconds of each step by ``M`` models, ``(M, T)``. The first is the one at hand, the others
        are those that may be true; by itself the first is taken for true.
    strata
        Kind of each step, ``(T,)``: further steps are of the same kinds in the same numbers, so
        each is resampled by itself. If one has a single step, all are taken for one kind.
    further_steps
        Steps of the run that is forecast.
    lasting
        Steps that resemble each other, such as those of a request: blocks are twice as long, as far
        as two of them fit.
    spread
        Standard deviation of the gain between plans, see ``planning_spread``; 0 for the plan at
        hand.
    """
    T = old_MT.shape[1]
    if T == 1:
        return None
    kinds, sizes = np.unique(strata, return_counts=True)
    parts = [np.flatnonzero(strata == kind) for kind in kinds]
    if sizes.min() == 1:
        parts = [np.arange(T)]
    rows = slice(1, None) if len(old_MT) > 1 else slice(None)
    drawn = [
        _further_means(times[rows], parts, lasting, wider=np.sqrt(1 + T / further_steps), seed=seed)
        for times in (old_MT, new_MT)
    ]
    z = np.random.default_rng((seed, 1)).standard_normal(drawn[0].shape)
    gains = 1 - drawn[1] / drawn[0] + spread * z
    low, high = np.quantile(gains, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
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


def _further_means(
    times_MT: Floats,
    parts: Sequence[NDArray[np.int64]],
    lasting: int,
    *,
    wider: float,
    seed: int,
) -> Floats:
    """Means that further steps may have, ``(M, draws)``; equal seeds draw equal steps.

    Resampled deviations of a part with ``b`` blocks are ``sqrt(1 - 1 / b)`` of the true ones, and
    normal where Student's t is known.
    """
    lengths = [_block_steps(len(part), lasting) for part in parts]
    blocks = [len(part) / length for part, length in zip(parts, lengths, strict=True)]
    wider = wider * _student_over_normal(sum(blocks) - len(blocks))
    means = np.empty((len(times_MT), _RESAMPLED))
    for row, times in zip(means, times_MT, strict=True):  # one at a time, to save memory
        row[:] = times.mean()
        for number, (part, length, b) in enumerate(zip(parts, lengths, blocks, strict=True)):
            values = times[part]
            drawn = resampled_means(
                values, block_steps=length, num_draws=_RESAMPLED, seed=seed + number
            )
            correction = wider * np.sqrt(b / (b - 1))
            row += len(part) / len(times) * correction * (drawn - values.mean())
    return means


def _block_steps(num_steps: int, lasting: int) -> int:
    """Steps of a block: few blocks, and of twice what lasts, so that neighbours share little."""
    few = max(block_length(num_steps), round(num_steps / _MOST_RESAMPLED_BLOCKS))
    return max(few, min(2 * lasting, num_steps // 2))


def _student_over_normal(freedom: float) -> float:
    """The end of the interval of Student's t over that of a normal number."""
    from scipy.special import ndtri, stdtrit

    end = (1 + CONFIDENCE) / 2
    return float(stdtrit(freedom, end) / ndtri(end))
