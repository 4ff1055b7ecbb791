"""Rates between two looks, computed from counters."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.control.exposition import grown_buckets, quantile
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
    buckets = grown_buckets(b.step_buckets, a.step_buckets)
    return Rates(
        tokens_per_second=None
        if a.tokens is None or b.tokens is None
        else max(b.tokens - a.tokens, 0.0) / seconds,
        step_seconds=(b.step_seconds - a.step_seconds) / steps if steps > 0 else None,
        step_p50=quantile(buckets, 0.5),
        step_p99=quantile(buckets, 0.99),
        stalled=max(b.stall_seconds - a.stall_seconds, 0.0) / seconds if steps > 0 else None,
    )
