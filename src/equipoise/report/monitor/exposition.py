"""Prometheus's text format, and the state of a serving group from our metrics in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from equipoise.control.controller import State
from equipoise.errors import FormatError
from equipoise.report.monitor.look import Counts, Look, harmless

_PREFIX = "equipoise_"
_MOST = 1e18  # largest number that is shown; a larger one is no measurement
_MOST_SERIES = 100_000
_LINE = re.compile(r"equipoise_(\w+)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?\s*")
_LABEL = re.compile(r'\s*(\w+)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")
_STATES = [state.value for state in State]

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Page:
    """The metrics of equipoise that one process exports, without their prefix."""

    series: Mapping[str, Sequence[tuple[Labels, float]]] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """Return the first value of a metric."""
        found = self.series.get(name)
        return found[0][1] if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the values of a metric by the value of a label."""
        return {
            harmless(labels[label]): value
            for labels, value in self.series.get(name, ())
            if label in labels
        }

    def by_number(self, name: str, label: str) -> dict[int, float]:
        """Return the values by a label that is a rank or layer number, in ascending order."""
        found = self.by(name, label)
        numbers = {text: int(text) for text in found if re.fullmatch("[0-9]{1,5}", text)}
        return {number: found[text] for text, number in sorted(numbers.items(), key=lambda n: n[1])}


def parse_page(text: str) -> Page:
    """Read the metrics of equipoise from a page; others are ignored.

    Raises
    ------
    FormatError
        A page without our metrics, or with a damaged line of ours.
    """
    series: dict[str, list[tuple[Labels, float]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith(_PREFIX):
            continue
        match = _LINE.fullmatch(line)
        value = _number(match[3]) if match else None
        labels = _labels(match[2] or "") if match else None
        if match is None or value is None or labels is None:
            raise FormatError(
                f"line {number} is not in Prometheus's text format: {harmless(line)!r}."
            )
        if number > _MOST_SERIES:
            raise FormatError(f"it has more than {_MOST_SERIES:,} lines.")
        if math.isfinite(value):
            series.setdefault(match[1], []).append((labels, value))
    if not series:
        raise FormatError(
            "none of its lines is a metric of equipoise (they begin with equipoise_); give the "
            "address at which a serving group answers Prometheus, such as "
            "http://127.0.0.1:9400/metrics."
        )
    return Page(series)


def look_at_pages(pages: Sequence[Page], *, time: float, silent: Mapping[str, str]) -> Look:
    """Combine the pages of one serving group's processes.

    Counters are added up. All else comes from rank 0, which looks at the loads.
    """
    head = max(pages, key=_is_head)
    of = head.value
    imbalance, excess = head.by("imbalance", "phase"), head.by("excess", "phase")
    floor = {
        phase: imbalance[phase] - above for phase, above in excess.items() if phase in imbalance
    }
    state = of("state")
    return Look(
        time=time,
        model=_info(head, "model"),
        state=_STATES[int(state)] if state is not None and 0 <= state < len(_STATES) else "",
        num_ranks=_whole(of("ranks")),
        map_version=_whole(of("map_version")),
        looked_at=of("last_look_timestamp_seconds"),
        imbalance=imbalance,
        noise_floor=floor | head.by("noise_floor", "phase"),
        rank_load=head.by_number("rank_load", "rank"),
        layer_imbalance=head.by_number("layer_imbalance", "layer"),
        counts=_counts(pages, head),
        ttft_p99=max(_known(page.value("ttft_p99") for page in pages), default=None),
        predicted_gain=of("predicted_gain_seconds"),
        achieved_gain=of("achieved_gain_seconds"),
        recovery_seconds=max(
            _known(page.value("recovery_seconds") for page in pages), default=None
        ),
        alarms=frozenset(
            name for page in pages for name, on in page.by("alarm", "name").items() if on
        ),
        silent=silent,
    )


def _is_head(page: Page) -> tuple[bool, bool]:
    return 0.0 in page.by("rank", "process").values(), "imbalance" in page.series


def _counts(pages: Sequence[Page], head: Page) -> Counts:
    """Add up the processes' counters; times come from rank 0, because all ranks step together."""

    def total(name: str) -> float:
        return sum(_known(page.value(name) for page in pages))

    def has(name: str) -> bool:
        return any(name in page.series for page in pages)

    buckets = head.by("step_seconds_bucket", "le")
    return Counts(
        steps=head.value("step_seconds_count") or 0.0,
        step_seconds=head.value("step_seconds_sum") or 0.0,
        step_buckets={
            edge: count for text, count in buckets.items() if (edge := _number(text)) is not None
        },
        stall_seconds=head.value("stall_seconds_sum") or 0.0,
        tokens=total("tokens_total") if has("tokens_total") else None,
        moved_slots=total("moved_slots_total") if has("moved_slots_total") else None,
        moved_bytes=total("moved_bytes_total"),
        rebalances=head.by("rebalances_total", "outcome"),
        failures=total("failures_total"),
        failed_requests=sum(
            page.by("requests_total", "status").get("failed", 0.0) for page in pages
        ),
    )


def _info(page: Page, label: str) -> str:
    labels, _ = next(iter(page.series.get("info", ())), ({}, 0.0))
    return harmless(labels.get(label, ""))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _number(text: str) -> float | None:
    """Read a number as Prometheus writes it, possibly infinite; ``None`` for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isfinite(value) and abs(value) > _MOST else value


def _labels(text: str) -> dict[str, str] | None:
    """Read the labels between braces; ``None`` if they are damaged."""
    labels, at = {}, 0
    while at < len(text.rstrip()):
        match = _LABEL.match(text, at)
        if match is None:
            return None
        labels[match[1]] = _ESCAPE.sub(lambda e: "\n" if e[1] == "n" else e[1], match[2])
        at = match.end()
    return labels
