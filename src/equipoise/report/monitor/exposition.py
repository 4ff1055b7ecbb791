"""The state of a serving group from our metrics, in Prometheus's text format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from equipoise.control.controller import State
from equipoise.control.exposition import PREFIX, Buckets, Samples
from equipoise.errors import FormatError
from equipoise.report.monitor.look import Counts, Gain, Heat, Look, harmless

_NUMBER = re.compile("[0-9]{1,5}")
_STATES = [state.value for state in State]


class Page:
    """The metrics of equipoise that one process exports, without their prefix.

    Raises
    ------
    FormatError
        A page without our metrics, or with a damaged line.
    """

    def __init__(self, text: str) -> None:
        self._samples = Samples(text)
        if not any(name.startswith(PREFIX) for name in self._samples.names):
            raise FormatError(
                "none of its lines is a metric of equipoise (they begin with equipoise_); give "
                "the address at which a serving group answers Prometheus, such as "
                "http://127.0.0.1:9400/metrics."
            )

    def value(self, name: str) -> float | None:
        """Return the value of a metric."""
        return self._samples.total(PREFIX + name)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the values of a metric by the value of a label."""
        found = self._samples.by(PREFIX + name, label)
        return {harmless(text): value for text, value in found.items()}

    def by_number(self, name: str, label: str) -> dict[int, float]:
        """Return the values by a label that is a rank or layer number, in ascending order."""
        found = self.by(name, label)
        numbers = {text: int(text) for text in found if _NUMBER.fullmatch(text)}
        return {number: found[text] for text, number in sorted(numbers.items(), key=lambda n: n[1])}

    def heat(self, name: str) -> Heat | None:
        """Return the ranks of layers, if the same ranks are told in each."""
        rows = {
            int(layer): {int(rank): value for rank, value in row.items() if _NUMBER.fullmatch(rank)}
            for layer, row in self._samples.table(PREFIX + name, "layer", "rank").items()
            if _NUMBER.fullmatch(layer)
        }
        layers = sorted(rows)
        ranks = range(len(rows[layers[0]])) if layers else range(0)
        if not ranks or any(rows[layer].keys() != set(ranks) for layer in layers):
            return None
        values = [[rows[layer][rank] for rank in ranks] for layer in layers]
        return Heat(tuple(layers), np.array(values))

    def buckets(self, name: str) -> Buckets:
        """Return the buckets of a histogram."""
        return self._samples.buckets(PREFIX + name)

    def said(self, name: str, label: str) -> str:
        """Return the first value of a label; empty without one."""
        return harmless(next(iter(self._samples.values(PREFIX + name, label)), ""))


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
        model=head.said("info", "model"),
        state=_STATES[int(state)] if state is not None and 0 <= state < len(_STATES) else "",
        epoch=_whole(of("epoch")),
        num_ranks=_whole(of("ranks")),
        map_version=_whole(of("map_version")),
        looked_at=of("last_look_timestamp_seconds"),
        imbalance=imbalance,
        noise_floor=floor | head.by("noise_floor", "phase"),
        rank_load=head.by_number("rank_load", "rank"),
        layer_imbalance=head.by_number("layer_imbalance", "layer"),
        heat=head.heat("layer_rank_load"),
        counts=_counts(pages, head),
        ttft_p99=max(_known(page.value("ttft_p99") for page in pages), default=None),
        predicted_gain=_gain(head, "predicted"),
        achieved_gain=_gain(head, "achieved"),
        recovery_seconds=max(
            _known(page.value("recovery_seconds") for page in pages), default=None
        ),
        alarms=frozenset(
            name for page in pages for name, on in page.by("alarm", "name").items() if on
        ),
        silent=silent,
    )


def _gain(page: Page, name: str) -> Gain | None:
    seconds = page.value(f"{name}_gain_seconds")
    assignments = page.value(f"{name}_gain_assignments")
    return None if assignments is None else Gain(assignments, seconds)


def _is_head(page: Page) -> tuple[bool, bool]:
    return 0.0 in page.by("rank", "process").values(), bool(page.by("imbalance", "phase"))


def _counts(pages: Sequence[Page], head: Page) -> Counts:
    """Add up the processes' counters; times come from rank 0, because all ranks step together."""

    def total(name: str) -> float | None:
        values = _known(page.value(name) for page in pages)
        return sum(values) if values else None

    return Counts(
        steps=head.value("step_seconds_count") or 0.0,
        step_seconds=head.value("step_seconds_sum") or 0.0,
        step_buckets=head.buckets("step_seconds"),
        stall_seconds=head.value("stall_seconds_sum") or 0.0,
        tokens=total("tokens_total"),
        moved_slots=total("moved_slots_total"),
        moved_bytes=total("moved_bytes_total") or 0.0,
        rebalances=head.by("rebalances_total", "outcome"),
        failures=total("failures_total") or 0.0,
        failed_requests=sum(
            page.by("requests_total", "status").get("failed", 0.0) for page in pages
        ),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
