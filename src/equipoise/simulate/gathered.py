"""Assignments gathered from recorded steps, so that a large step has the noise of a large one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MANY = 16  # beyond this ratio, drawing with or without replacement makes no difference


def enough(
    counts: NDArray[np.integer], size_T: NDArray[np.float64], start: int, wanted: int
) -> NDArray[np.int64]:
    """Sum the fewest steps, from a start on, that have enough assignments, or all steps."""
    reached = np.roll(size_T, -start).cumsum()
    steps = start + np.arange(min(int(np.searchsorted(reached, wanted)) + 1, len(size_T)))
    return np.asarray(counts[steps % len(size_T)].sum(axis=0, dtype=np.int64))


def drawn(rng: np.random.Generator, source_E: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """Draw assignments, none twice if there are enough; return zeros where there are none."""
    total = int(source_E.sum())
    if wanted <= total < _MANY * wanted:
        return rng.multivariate_hypergeometric(source_E, wanted)
    return drawn_from_shares(rng, source_E, wanted)


def drawn_from_shares(
    rng: np.random.Generator, source_E: NDArray[np.int64], wanted: int
) -> NDArray[np.int64]:
    """Draw assignments independently in these shares; return zeros where there are none."""
    total = int(source_E.sum())
    return rng.multinomial(wanted, source_E / total) if total else source_E
