"""Metrics of another program in Prometheus's text format."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from equipoise.errors import FormatError

Buckets = tuple[tuple[float, float], ...]
"""Upper bound of each bucket, ascending, and the number of values up to it."""


class Samples:
    """The samples of one answer, by name.

    Parameters
    ----------
    text
        Text in Prometheus's format; values that are not finite are left out.
    source
        Source of the text, for messages.

    Raises
    ------
    FormatError
        Text in another format.
    """

    def __init__(self, text: str, source: str) -> None:
        self._by_name: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if math.isfinite(sample.value):
                        self._by_name[sample.name].append((sample.labels, sample.value))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{source} does not answer in Prometheus's text format; give the address of its "
                "metrics, such as http://127.0.0.1:8000/metrics."
            ) from error

    def total(self, name: str, **labels: str) -> float | None:
        """Sum the samples of a metric that have these labels; ``None`` if there are none."""
        values = [value for has, value in self._named(name) if labels.items() <= has.items()]
        return sum(values) if values else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sum the samples that have these labels, for each value of another label."""
        sums: dict[str, float] = defaultdict(float)
        for has, value in self._named(name):
            if label in has and labels.items() <= has.items():
                sums[has[label]] += value
        return dict(sums)

    def buckets(self, name: str, **labels: str) -> Buckets:
        """Add up the buckets of all series of a histogram; empty if there are none."""
        sums: dict[float, float] = defaultdict(float)
        for has, value in self._named(f"{name}_bucket"):
            if labels.items() <= has.items():
                sums[_bound(has.get("le", ""))] += value
        return tuple(sorted((bound, sums[bound]) for bound in sums if not math.isnan(bound)))

    def values(self, name: str, label: str) -> list[str]:
        """List the values of a label in the samples of a metric, in the order of the text."""
        return list(dict.fromkeys(has[label] for has, _ in self._named(name) if label in has))

    def _named(self, name: str) -> list[tuple[Mapping[str, str], float]]:
        return self._by_name.get(name, [])


def grown(now: float | None, before: float | None) -> float:
    """Compute how much a counter has grown; after a restart, its whole value."""
    if now is None:
        return 0.0
    return now - before if before is not None and before <= now else now


def grown_buckets(now: Buckets, before: Buckets) -> Buckets:
    """Compute the buckets of the values since the last time."""
    known = dict(before)
    began_again = any(count < known.get(bound, 0.0) for bound, count in now)
    if began_again or known.keys() != dict(now).keys():
        return now
    return tuple((bound, count - known[bound]) for bound, count in now)


def quantile(buckets: Buckets, share: float) -> float | None:
    """Compute a quantile, assuming evenly spread values in each bucket; ``None`` for no values.

    Values above all finite bounds count as the highest bound, as in Prometheus.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= share * total:
            if math.isinf(bound):
                return low
            part = (share * total - below) / (count - below) if count > below else 1.0
            return low + (bound - low) * part
        low, below = bound, count
    return low


def _bound(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
