"""Prometheus's text format, read: the samples of one answer, as numbers to ask for.

Needs no other package, so that whoever only watches installs none.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from equipoise.errors import FormatError

PREFIX = "equipoise_"
"""Prefix of the names of our own metrics."""

Labels = Mapping[str, str]

Buckets = tuple[tuple[float, float], ...]
"""Upper bound of each bucket, ascending, and how many values are up to it."""

_MOST_SAMPLES = 1 << 18
_MOST = 1e18  # a larger number cannot be a measurement
_QUOTED = 60
_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t\r]*")
_LABEL = re.compile(r'[ \t]*(\w+)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:,[ \t]*|$)')
_ESCAPE = re.compile(r"\\(.)")


class Samples:
    """The samples of one answer, by name.

    Parameters
    ----------
    text
        Samples in Prometheus's text format; those that are not finite, or above 1e18, are left out.

    Raises
    ------
    FormatError
        A line of another format, or too many samples.
    """

    def __init__(self, text: str) -> None:
        self._by_name: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for number, (name, labels, value) in enumerate(_samples(text)):
            if number == _MOST_SAMPLES:
                raise FormatError(f"it has more than {_MOST_SAMPLES:,} samples.")
            if abs(value) <= _MOST:
                self._by_name[name].append((labels, value))

    @property
    def names(self) -> set[str]:
        """Names of all samples."""
        return set(self._by_name)

    def total(self, name: str, /, **labels: str) -> float | None:
        """Add up the samples of a name that have these labels; ``None`` if there are none."""
        values = [value for has, value in self._named(name) if labels.items() <= has.items()]
        return sum(values) if values else None

    def by(self, name: str, label: str, /, **labels: str) -> dict[str, float]:
        """Add up the samples that have these labels, for each value of another label."""
        sums: dict[str, float] = defaultdict(float)
        for has, value in self._named(name):
            if label in has and labels.items() <= has.items():
                sums[has[label]] += value
        return dict(sums)

    def table(self, name: str, row: str, column: str, /) -> dict[str, dict[str, float]]:
        """Add up the samples for each value of one label, and of another one in it."""
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for has, value in self._named(name):
            if row in has and column in has:
                sums[has[row]][has[column]] += value
        return {key: dict(cells) for key, cells in sums.items()}

    def buckets(self, name: str, /, **labels: str) -> Buckets:
        """Return the buckets of a histogram, of all its series together; empty without any."""
        sums: dict[float, float] = defaultdict(float)
        for has, value in self._named(f"{name}_bucket"):
            if labels.items() <= has.items():
                sums[_number(has.get("le", ""))] += value
        return tuple(sorted((bound, sums[bound]) for bound in sums if not math.isnan(bound)))

    def values(self, name: str, label: str) -> list[str]:
        """Return the values that a label has in the samples of a name, in the order of the text."""
        return list(dict.fromkeys(has[label] for has, _ in self._named(name) if label in has))

    def _named(self, name: str) -> list[tuple[Labels, float]]:
        return self._by_name.get(name, [])


def grown(now: float | None, before: float | None) -> float:
    """Compute how much a counter has grown: all of it if it began again."""
    if now is None:
        return 0.0
    return now - before if before is not None and before <= now else now


def grown_buckets(now: Buckets, before: Buckets) -> Buckets:
    """Return the buckets of the values that have come since."""
    known = dict(before)
    began_again = any(count < known.get(bound, 0.0) for bound, count in now)
    if began_again or known.keys() != dict(now).keys():
        return now
    return tuple((bound, count - known[bound]) for bound, count in now)


def quantile(buckets: Buckets, share: float) -> float | None:
    """Compute a quantile of a histogram by the rule of Prometheus; ``None`` without values.

    Values are taken to be evenly spread within a bucket, and above all finite bounds to be at the
    highest of these.
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


def _samples(text: str) -> Iterator[tuple[str, Labels, float]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        labels = _labels(match[2] or "") if match else None
        if match is None or labels is None or not _is_number(match[3]):
            raise FormatError(
                f"line {number} is not in Prometheus's text format: {line[:_QUOTED]!r}."
            )
        yield match[1], labels, _number(match[3])


def _labels(text: str) -> Labels | None:
    """Read the labels between braces; ``None`` if they are damaged."""
    labels, at = {}, 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            return None
        labels[match[1]] = _ESCAPE.sub(lambda e: "\n" if e[1] == "n" else e[1], match[2])
        at = match.end()
    return labels


def _number(text: str) -> float:
    """Read a number as Prometheus writes it; NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_number(text: str) -> bool:
    return text == "NaN" or not math.isnan(_number(text))
