"""What an engine says of itself while it serves, in the words of this package."""

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

_ROUNDING = 1e-6  # in sums of passes that are all balanced
_MOST_DIGITS = 6  # of a layer


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A time that users wait.

    Parameters
    ----------
    buckets, sum
        All values since the engine began, in seconds.
    p99, mean
        The same of the values since the last time; ``None`` where there are none.
    """

    buckets: Buckets
    sum: float
    p99: float | None
    mean: float | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found; whatever an engine does not say is empty or ``None``.

    Parameters
    ----------
    imbalance, excess
        Busiest rank over mean rank by phase, or under ``all``; and what of it chance does not do.
    balancedness, ratio
        Mean rank over busiest rank, and busiest over mean, all phases together.
    rank_load
        Load of each rank over that of the mean rank.
    layer_imbalance
        Busiest rank over mean rank by layer.
    ttft, tpot
        Time to first token, and per token after it.
    tokens
        Tokens generated.
    attention_imbalance, attention_wait_seconds
        Tokens of the busiest attention rank over the mean one's, and the time ranks have waited
        for each other there: what no placement of experts can change.
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
    """How an engine is understood.

    Parameters
    ----------
    metrics
        Function that reads its metrics: those of now, and those of the last time.
    line
        Function that reads a line of its log; ``None`` where the line says nothing of balance.
    """

    metrics: Callable[[Samples, Samples], Seen]
    line: Callable[[str], Seen | None]


def latency(now: Samples, before: Samples, *names: str) -> Latency | None:
    """The first histogram of these names that there is."""
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
    """Mean of the values of a summary or a histogram that have come since the last time."""
    count, total = (
        grown(now.total(f"{name}_{part}", **labels), before.total(f"{name}_{part}", **labels))
        for part in ("count", "sum")
    )
    return total / count if count > 0 else None


def of_balancedness(value: float | None) -> Seen | None:
    """What mean over busiest alone says; ``None`` if it is none."""
    if value is None or not 0 < value < 1 + _ROUNDING:
        return None
    value = min(value, 1.0)
    return Seen(imbalance={"all": 1 / value}, balancedness=value, ratio=1 / value)


def layer_of(text: str) -> int | None:
    """The number of a layer, as a label has it; ``None`` if it is none."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
