"""Drift: how the experts' loads change between windows and between kinds of traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from equipoise.report.labels import label_groups, traffic_labels
from equipoise.showing import in_short
from equipoise.trace import Trace

_MOST_WINDOWS = 256  # largest number of windows that are compared, to bound memory
_CALM_WINDOW = 32  # assignments per expert in a window; with fewer, chance hides the drift


@dataclass(frozen=True, kw_only=True)
class LabelDrift:
    """Mean correlation of load vectors within and between the values of one label."""

    within: float | None
    between: float

    __repr__ = in_short


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The change of the experts' loads from one window to the next.

    Parameters
    ----------
    window_steps
        Number of steps summed into a window, enough for most experts to be compared.
    num_windows
        Number of windows; no window mixes labels.
    correlation
        Mean Pearson correlation of a layer's load vectors in consecutive windows of equal labels.
    total_variation
        Mean share of the load that goes to other experts in the next window, 0 to 1.
    chance_variation
        Value that ``total_variation`` would have by chance alone.
    labels
        Similarity within and between the values of each label with two or more values. If
        ``between`` is far below ``within``, a plan made for one value does not suit another.
    """

    window_steps: int
    num_windows: int
    correlation: float | None
    total_variation: float | None
    chance_variation: float | None
    labels: Mapping[str, LabelDrift]

    __repr__ = in_short

    @property
    def headline(self) -> tuple[str, ...]:
        """Return a sentence for each label whose values have different hot experts."""
        return tuple(
            f"Hot experts differ by {name}: loads correlate {x.within:.2f} within one {name} and "
            f"{x.between:.2f} between two, so a plan made for one may not fit another."
            for name, x in self.labels.items()
            if x.within is not None and x.between < x.within / 2
        )


def measure_drift(trace: Trace) -> Drift:
    """Compare consecutive windows with equal labels, and all windows by label."""
    per_expert = trace.counts.sum(dtype=np.float64) / trace.counts.size
    calm = max(_CALM_WINDOW / per_expert, trace.num_steps / _MOST_WINDOWS)
    size = int(np.clip(np.ceil(calm), 1, max(1, trace.num_steps // 2)))
    windows = replace(trace, source_counts=None, tokens=None).windows(size)
    group = label_groups(windows)
    unit = unit_vectors(windows.counts)
    correlation: list[NDArray[np.float64]] = []
    moved: list[NDArray[np.float64]] = []
    chance: list[NDArray[np.float64]] = []
    for a, b in pairwise(range(windows.num_steps)):
        if group[a] != group[b]:
            continue
        known = unit[a].any(axis=1) & unit[b].any(axis=1)
        correlation.append(np.einsum("le,le->l", unit[a], unit[b])[known])
        variation, by_chance = _variation(windows.counts[a], windows.counts[b])
        moved.append(variation)
        chance.append(by_chance)
    return Drift(
        window_steps=size,
        num_windows=windows.num_steps,
        correlation=_mean(correlation),
        total_variation=_mean(moved),
        chance_variation=_mean(chance),
        labels=_label_drift(windows, unit),
    )


def unit_vectors(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Centre load vectors and scale them to length 1, so that products are correlations."""
    centred = counts - counts.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = np.zeros_like(centred)
    np.divide(centred, length, out=unit, where=length > 0)
    return unit


def _variation(
    a_LE: NDArray[np.integer], b_LE: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the total variation of two windows in each layer with load, and its chance level.

    The chance level is that of two Poisson samples of the pooled loads: the mean distance of two
    normals with total variance ``v`` is ``sqrt(2 v / pi)``.
    """
    size_a, size_b = a_LE.sum(axis=1, dtype=np.float64), b_LE.sum(axis=1, dtype=np.float64)
    known = (size_a > 0) & (size_b > 0)
    a, b = a_LE[known].astype(np.float64), b_LE[known].astype(np.float64)
    n_a, n_b = size_a[known, None], size_b[known, None]
    pooled = (a + b) / (n_a + n_b)
    by_chance = np.sqrt(2 / np.pi * pooled * (1 / n_a + 1 / n_b))
    return np.abs(a / n_a - b / n_b).sum(axis=1) / 2, by_chance.sum(axis=1) / 2


def _label_drift(windows: Trace, unit: NDArray[np.float64]) -> dict[str, LabelDrift]:
    drift = {}
    for name, values in traffic_labels(windows).items():
        kinds = dict.fromkeys(values.tolist())
        if len(kinds) < 2:
            continue
        all_sum, all_pairs = _pair_products(unit)
        sums, pairs = zip(*(_pair_products(unit[values == kind]) for kind in kinds), strict=True)
        if all_pairs > sum(pairs):
            drift[name] = LabelDrift(
                within=sum(sums) / sum(pairs) if sum(pairs) else None,
                between=(all_sum - sum(sums)) / (all_pairs - sum(pairs)),
            )
    return drift


def _pair_products(unit: NDArray[np.float64]) -> tuple[float, int]:
    """Sum the correlations of all pairs of windows over all layers; also return their number.

    The square of a sum of unit vectors is their number plus twice the products of their pairs.
    """
    known = np.count_nonzero(unit.any(axis=2), axis=0)  # (L,)
    square = (unit.sum(axis=0) ** 2).sum(axis=1)
    return float((square - known).sum() / 2), int((known * (known - 1)).sum() // 2)


def _mean(parts: list[NDArray[np.float64]]) -> float | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.mean()) if len(values) else None
