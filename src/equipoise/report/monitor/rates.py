"""Rates between two looks, computed from counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.report.monitor.look import Look


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The recent rates of a system; ``None`` if its counters do not say.

    Parameters
    ----------
    step_seconds
        Mean time of a step.
    step_p50, step_p99
        Median and 99th percentile of the time of a step, in seconds.
    stalled
        Share of the time in which serving waited for balancing.
    """

    tokens_per_second: float | None = None
    step_seconds: float | None = None
    step_p50: float | None = None
    step_p99: float | None = None
    stalled: float | None = None


def rates(first: Look, last: Look) -> Rates:
    """Compute the rates between two looks at the same run."""
    a, b, seconds = first.counts, last.counts, last.time - first.time
    if seconds <= 0:
        return Rates()
    steps = b.steps - a.steps
    buckets = {
        edge: count - a.step_buckets.get(edge, 0.0) for edge, count in b.step_buckets.items()
    }
    return Rates(
        tokens_per_second=None
        if a.tokens is None or b.tokens is None
        else max(b.tokens - a.tokens, 0.0) / seconds,
        step_seconds=(b.step_seconds - a.step_seconds) / steps if steps > 0 else None,
        step_p50=quantile(buckets, 0.5),
        step_p99=quantile(buckets, 0.99),
        stalled=max(b.stall_seconds - a.stall_seconds, 0.0) / seconds if steps > 0 else None,
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Compute a quantile of a histogram, by the rule of Prometheus.

    Values are assumed to be evenly spread within a bucket, and at the lower edge of the last, open
    bucket.

    Parameters
    ----------
    buckets
        Number of values that are at most the key.
    """
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if total <= 0:
        return None
    lower, below = 0.0, 0.0
    for edge in edges:
        count = buckets[edge]
        if count >= share * total:
            if edge == float("inf"):
                return lower
            inside = (share * total - below) / (count - below) if count > below else 1.0
            return lower + (edge - lower) * inside
        lower, below = edge, count
    return lower
