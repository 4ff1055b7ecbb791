"""Histograms and recent values of measurements.

One thread writes, and the thread that answers Prometheus reads. Every reader works on a copy.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of all histograms of seconds, two to three per decade."""


class Histogram:
    """A histogram of all values since the start.

    Parameters
    ----------
    bounds
        Upper bounds of the buckets, ascending; a last bucket without a bound is added.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """Sum of all values."""

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += float(value)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the upper bound of each bucket, and the number of values up to it."""
        bounds = (*map(str, self._bounds), "+Inf")
        total, rows = 0, []
        for bound, count in zip(bounds, tuple(self._counts), strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


class Recent:
    """The last values, with their times.

    Parameters
    ----------
    most
        Number of values to keep.
    """

    def __init__(self, most: int) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=most)

    def add(self, time: float, value: float) -> None:
        """Keep a value."""
        self._kept.append((time, float(value)))

    def since(self, time: float) -> list[tuple[float, float]]:
        """Return times and values from a time on, in the order they came."""
        return [kept for kept in self._kept.copy() if kept[0] >= time]


def mean(values: Sequence[float]) -> float | None:
    """Compute the mean; ``None`` for no values."""
    return sum(values) / len(values) if values else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """Compute a quantile: the least value that at least this share of values do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None
