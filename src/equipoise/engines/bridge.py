"""A bridge: it exports an engine's metrics under our metrics' names.

It asks the engine, or reads its file, each time it is asked itself. It keeps the last answer only
to find what is new, so its values are never older than the engine's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from equipoise.control.advisor import plain_advisor
from equipoise.control.exposition import PREFIX, Samples
from equipoise.control.findings import Question
from equipoise.control.metric_families import (
    DESCRIPTIONS,
    counter,
    details,
    gauge,
    gauges,
)
from equipoise.control.metrics import FRESH_SECONDS
from equipoise.control.settings import Settings
from equipoise.dispatch import dispatcher
from equipoise.engines._shared.live import Latency, Live, Seen
from equipoise.engines.files import check_readable
from equipoise.engines.replay.http import Server
from equipoise.engines.trace_io import read_trace
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement
from equipoise.report.measured import aligned, contiguous, source_ranks
from equipoise.topology import Topology
from equipoise.trace import Trace

_SECONDS = 5.0
_MOST_ANSWER_BYTES = 1 << 25
_TAIL_BYTES = 1 << 20  # bytes read from the end of a log
_MOST_RECORDING_BYTES = 1 << 28

Source = Callable[[], tuple[float, Seen]]
"""Function that asks again; it returns the time of the values, since 1970, and the values."""


class Address:
    """A source: the metrics of a server.

    Parameters
    ----------
    url
        Address of the metrics, or of the server; then ``/metrics`` is added.
    live
        Interpreter of the engine's metrics and log.
    """

    def __init__(self, url: str, live: Live) -> None:
        base = url.rstrip("/").removesuffix("/metrics")
        self._server = Server(base, _SECONDS, most_bytes=_MOST_ANSWER_BYTES)
        self._live = live
        self._before = Samples("")

    def __call__(self) -> tuple[float, Seen]:
        """See ``Source``."""
        text = self._server.send("/metrics").decode(errors="replace")
        try:
            now = Samples(text)
        except FormatError as error:
            raise FormatError(
                f"{self._server.url}/metrics does not answer with metrics: {error}"
            ) from error
        before, self._before = self._before, now
        return time.time(), self._live.metrics(now, before)


class Log:
    """A source: a growing log; its last line about balance counts.

    Parameters
    ----------
    path
        Path of the log.
    live
        Interpreter of the engine's metrics and log.
    """

    def __init__(self, path: Path, live: Live) -> None:
        self._path, self._live = path, live

    def __call__(self) -> tuple[float, Seen]:
        """See ``Source``."""
        with self._path.open("rb") as file:
            changed = os.fstat(file.fileno()).st_mtime
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
        found = (self._live.line(text) for text in reversed(lines))
        seen = next((one for one in found if one is not None), None)
        if seen is None:
            raise EquipoiseError(
                f"The end of {self._path} says nothing about the balance of experts; have the "
                "engine log it, or give a recording."
            )
        return changed, seen


class Recording:
    """A source: a recording of any known format, which is measured again when it has changed.

    Parameters
    ----------
    path
        Path of a file or folder.
    num_ranks
        Number of ranks; ``None`` for that of the map, or of the ranks that recorded it.
    placement
        Map that is served; ``None`` for every expert once, in order.
    """

    def __init__(
        self, path: Path, num_ranks: int | None = None, placement: Placement | None = None
    ) -> None:
        self._path, self._num_ranks, self._placement = path, num_ranks, placement
        self._known: tuple[tuple[float, int], Seen] | None = None

    def __call__(self) -> tuple[float, Seen]:
        """See ``Source``."""
        state = _state(self._path)
        if state[1] > _MOST_RECORDING_BYTES:
            raise EquipoiseError(
                f"{self._path} has more than {_MOST_RECORDING_BYTES >> 20} MiB; give one of less, "
                "or begin a new one."
            )
        if self._known is None or self._known[0] != state:
            self._known = state, self._measured(read_trace(self._path))
        return state[0], self._known[1]

    def _measured(self, trace: Trace) -> Seen:
        """Measure what the controller of our own server would find."""
        placement = self._placement_of(trace)
        topology = Topology(placement.num_ranks)
        advisor = plain_advisor(dispatcher("even"), Settings(), topology, placement.num_slots)
        found = advisor(
            Question(number=0, current=placement, previous=None, plan_above=math.inf), trace
        )
        total = found.balance.get("")
        if total is None:
            raise EquipoiseError(f"No assignment was recorded in {self._path}.")
        phases = {p: b for p, b in found.balance.items() if p in ("prefill", "decode")}
        phases = phases or {"all": total}
        return Seen(
            imbalance={p: b.imbalance for p, b in phases.items()},
            excess={p: b.excess for p, b in phases.items()},
            balancedness=total.balancedness,
            ratio=total.imbalance,
            rank_load=found.rank_load,
            layer_imbalance=found.layer_imbalance,
        )

    def _placement_of(self, trace: Trace) -> Placement:
        if self._placement is not None:
            return aligned(self._placement, trace, self._num_ranks)
        ranks = self._num_ranks or source_ranks(trace)
        if ranks is None:
            raise EquipoiseError(f"{self._path} does not say on how many ranks; give --ranks.")
        return contiguous(trace, ranks)


def open_source(
    source: str, live: Live, *, num_ranks: int | None = None, placement: Placement | None = None
) -> Source:
    """Open a source: an address, a log of the engine, or a recording.

    Raises
    ------
    EquipoiseError
        A source that cannot be read, or ranks or a map where they have no meaning.
    """
    is_address = "://" in source
    path = Path(source)
    if not is_address:
        check_readable(path)
        if not _is_log(path, live):
            return Recording(path, num_ranks, placement)
    if num_ranks is not None or placement is not None:
        raise EquipoiseError(
            "--ranks and --map are for recordings: an engine's metrics and log are of the map it "
            "serves; leave them out."
        )
    return Address(source, live) if is_address else Log(path, live)


class Bridge(Collector):
    """A Prometheus collector that asks a source each time it is collected.

    Parameters
    ----------
    source
        Source to ask.
    with_details
        Flag to export series of single ranks and layers.
    clock
        Function that returns the time in seconds since 1970.
    """

    def __init__(
        self,
        source: Source,
        *,
        with_details: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source, self._with_details, self._clock = source, with_details, clock

    def describe(self) -> list[Metric]:
        """Describe no metrics, so that registering does not ask the source."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the source's metrics, or only that it does not answer."""
        try:
            when, seen = self._source()
        except (EquipoiseError, OSError):
            yield gauge("bridge_up", 0)
            return
        yield gauge("bridge_up", 1)
        if seen.ratio is not None:
            yield gauge("last_look_timestamp_seconds", when)
        yield from _since_the_start(seen)
        if self._clock() - when <= FRESH_SECONDS:
            yield from _of_now(seen)
            if self._with_details:
                yield details("rank_load", "rank", enumerate(seen.rank_load))
                yield details("layer_imbalance", "layer", seen.layer_imbalance.items())


def _since_the_start(seen: Seen) -> Iterator[Metric]:
    for name, value in (
        ("tokens", seen.tokens),
        ("attention_wait_seconds", seen.attention_wait_seconds),
    ):
        if value is not None:
            yield counter(name, value)
    for name, waited in (("ttft_seconds", seen.ttft), ("tpot_seconds", seen.tpot)):
        if waited is not None:
            yield _histogram(name, waited)


def _of_now(seen: Seen) -> Iterator[Metric]:
    if seen.imbalance:
        yield gauges("imbalance", "phase", seen.imbalance)
    if seen.excess:
        floor = {phase: seen.imbalance[phase] - above for phase, above in seen.excess.items()}
        yield gauges("excess", "phase", seen.excess)
        yield gauges("noise_floor", "phase", floor)
    values: Mapping[str, float | None] = {
        "balancedness": seen.balancedness,
        "expert_load_balance_ratio": seen.ratio,
        "ttft_p99": seen.ttft.p99 if seen.ttft else None,
        "tpot_avg": seen.tpot.mean if seen.tpot else None,
        "attention_imbalance": seen.attention_imbalance,
    }
    for name, value in values.items():
        if value is not None:
            yield gauge(name, value)


def _histogram(name: str, waited: Latency) -> Metric:
    buckets = [("+Inf" if math.isinf(b) else str(b), count) for b, count in waited.buckets]
    about = DESCRIPTIONS[name]
    return HistogramMetricFamily(PREFIX + name, about, buckets=buckets, sum_value=waited.sum)


def _state(path: Path) -> tuple[float, int]:
    """Return the last change of a file or folder, and its size in bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    states = [file.stat() for file in files]
    return max((s.st_mtime for s in states), default=0.0), sum(s.st_size for s in states)


def _is_log(path: Path, live: Live) -> bool:
    if not path.is_file():
        return False
    try:
        Log(path, live)()
    except EquipoiseError:
        return False
    return True
