"""The state of a serving engine, in the terms of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from equipoise.control.exposition import (
    Buckets,
    Samples,
    grown,
    grown_buckets,
    quantile,
)

_ROUNDING = 1e-6  # rounding in sums over balanced passes
_MOST_DIGITS = 6  # longest layer number


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A latency that users see.

    Parameters
    ----------
    buckets, sum
        Histogram and sum of all values since the engine started, in seconds.
    p99, mean
        99th percentile and mean of the values since the last time; ``None`` if there are none.
    """

    buckets: Buckets
    sum: float
    p99: float | None
    mean: float | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The state found; whatever an engine does not say is empty or ``None``.

    Parameters
    ----------
    imbalance, excess
        Imbalance by phase, or under ``all``, and the part above chance.
    balancedness, ratio
        Mean rank over busiest rank, and busiest over mean, all phases together.
    rank_load
        Load of each rank over the mean rank's.
    layer_imbalance
        Busiest rank over mean rank by layer.
    ttft, tpot
        Time to the first token, and time per later token.
    tokens
        Number of generated tokens.
    attention_imbalance, attention_wait_seconds
        Tokens of the busiest attention rank over the mean rank's, and the time that ranks waited
        for each other there. No placement of experts can change these.
    """

    imbalance: Mapping[str, float] = field(default_factory=dict)
    excess: Mapping[str, float] = field(default_factory=dict)
    balancedness: float | None = None
    ratio: float | None = None
    rank_load: tuple[float, ...] = ()
    layer_imbalance: Mapping[int, float] = field(default_factory=dict)
    ttft: Latency | None = None
    tpot: Latency | None = None
    tokens: float | None = None
    attention_imbalance: float | None = None
    attention_wait_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Live:
    """An interpreter of an engine's metrics and log.

    Parameters
    ----------
    metrics
        Function that interprets the metrics, given those of now and of the last time.
    line
        Function that interprets a line of the log; it returns ``None`` for a line not on balance.
    """

    metrics: Callable[[Samples, Samples], Seen]
    line: Callable[[str], Seen | None]


def latency(now: Samples, before: Samples, *names: str) -> Latency | None:
    """Read the first existing histogram of these names."""
    for name in names:
        buckets = now.buckets(name)
        total = now.total(f"{name}_sum")
        if buckets and total is not None:
            fresh = grown_buckets(buckets, before.buckets(name))
            count = fresh[-1][1]
            added = grown(total, before.total(f"{name}_sum"))
            return Latency(
                buckets=buckets,
                sum=total,
                p99=quantile(fresh, 0.99),
                mean=added / count if count > 0 else None,
            )
    return None


def mean_since(now: Samples, before: Samples, name: str, **labels: str) -> float | None:
    """Compute the mean of a summary's or histogram's values since the last time."""
    count, total = (
        grown(now.total(f"{name}_{part}", **labels), before.total(f"{name}_{part}", **labels))
        for part in ("count", "sum")
    )
    return total / count if count > 0 else None


def of_balancedness(value: float | None) -> Seen | None:
    """Make a state from the balancedness alone; ``None`` if it is not a valid value."""
    if value is None or not 0 < value < 1 + _ROUNDING:
        return None
    value = min(value, 1.0)
    return Seen(imbalance={"all": 1 / value}, balancedness=value, ratio=1 / value)


def layer_of(text: str) -> int | None:
    """Read a layer number from a label; ``None`` if it is none."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
