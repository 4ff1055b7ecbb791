"""The metrics of a rank for Prometheus: the same series whatever the size of the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from threading import Event

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from equipoise.control.controller import Order, Outcome, State
from equipoise.control.findings import Balance, Failure, Finding
from equipoise.control.measured import Histogram, Recent, mean, quantile
from equipoise.control.metric_families import (
    cells,
    counter,
    counters,
    details,
    gauge,
    gauges,
    histogram,
    info,
    label,
)
from equipoise.control.metrics_page import LOOPBACK, listen
from equipoise.control.settings import Settings
from equipoise.control.watchdog import ALARMS
from equipoise.plan.weigh.gate import Decision

PHASES = ("prefill", "decode")
STATUSES = ("answered", "failed")

FRESH_SECONDS = 300.0
"""Seconds for which results of requests and looks are exported; looks at least 3 intervals."""

_STEPS = 256  # number of recent steps that are kept
_REQUESTS = 1024  # number of recent requests that are kept


class Metrics(Collector):
    """A Prometheus collector with the numbers of one rank.

    Register it with a ``prometheus_client`` registry, or print ``text``. All ranks can have one;
    what comes from looking at the loads only rank 0 knows, and only it has those series. No gauge
    outlives what it tells of: see equipoise explain metrics.

    Parameters
    ----------
    with_details
        Flag to export series of single ranks and layers.
    clock
        Function that returns the time in seconds since 1970.
    """

    def __init__(
        self, *, with_details: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._with_details, self._clock = with_details, clock
        self._labels: dict[str, str] = {}
        self._rank: dict[str, int] = {}
        self._epoch: int | None = None
        self._ranks: int | None = None
        self._ranks_wanted: int | None = None
        self._recovery_seconds: float | None = None
        self._state = State.WARM_UP
        self._version = 0
        self._look_steps: int | None = None
        self._wait_steps = 0
        self._last_look: tuple[float, Finding] | None = None
        self._last_move: float | None = None
        self._predicted: Decision | None = None
        self._achieved: Decision | None = None
        self._planner_seconds: float | None = None
        self._steps, self._stalls = Histogram(), Histogram()
        self._ttft, self._tpot = Histogram(), Histogram()
        self._last_steps = Recent(_STEPS)
        self._last_ttft, self._last_tpot = Recent(_REQUESTS), Recent(_REQUESTS)
        self._tokens = 0
        self._moved_slots = 0
        self._moved_bytes = 0
        self._failures = 0
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._requests = dict.fromkeys(STATUSES, 0)
        self._alarms = dict.fromkeys(ALARMS, False)

    # --- what happens ----------------------------------------------------------------------------

    def take_info(self, **labels: str) -> None:
        """Record what serves: ``version`` of equipoise, ``model``, ``dispatch``, ``planner``."""
        self._labels |= labels

    def take_settings(self, settings: Settings) -> None:
        """Record how often the loads are looked at."""
        self._look_steps = max(settings.update_interval, settings.settle_steps)

    def take_step(self, seconds: float, *, tokens: int = 0, stall_seconds: float = 0.0) -> None:
        """Record a forward pass: its seconds, its tokens, and the stall by balancing after it."""
        self._steps.add(seconds)
        self._stalls.add(stall_seconds)
        self._last_steps.add(self._clock(), seconds if tokens else 0.0)
        self._tokens += tokens

    def take_first_token(self, seconds: float) -> None:
        """Record a request's first token, and the seconds since the request was taken."""
        self._ttft.add(seconds)
        self._last_ttft.add(self._clock(), seconds)

    def take_later_tokens(self, seconds_per_token: float) -> None:
        """Record a finished request, and the seconds for each token after the first."""
        self._tpot.add(seconds_per_token)
        self._last_tpot.add(self._clock(), seconds_per_token)

    def take_order(self, order: Order) -> None:
        """Record an order."""
        self._state, self._version = order.state, order.version
        self._wait_steps = order.wait_steps
        if order.outcome is not None:
            self._outcomes[order.outcome] += 1
            self._failures += order.outcome is Outcome.FAILED

    def take_answer(self, answer: Finding | Failure) -> None:
        """Record an answer of the planner."""
        self._planner_seconds = answer.seconds
        if isinstance(answer, Failure):
            return
        self._last_look = self._clock(), answer
        if answer.predicted is not None:
            self._predicted = answer.predicted
        if answer.achieved is not None:
            self._achieved = answer.achieved

    def take_move(self, slots: int, moved_bytes: int) -> None:
        """Record that layers have moved: the slots and bytes that this rank received."""
        self._last_move = self._clock()
        self._moved_slots += slots
        self._moved_bytes += moved_bytes

    def take_answered(self, status: str) -> None:
        """Record an answered request with its status, one of ``STATUSES``."""
        self._requests[status] += 1

    def take_failure(self) -> None:
        """Record a failure that no order reports."""
        self._failures += 1

    def take_ranks(
        self,
        ranks: int,
        seconds: float,
        *,
        wanted: int,
        process: str,
        rank: int,
        epoch: int | None = None,
    ) -> None:
        """Record the ranks that serve from now on, and forget results of the ranks before.

        Parameters
        ----------
        ranks, wanted
            Number of ranks that serve together, and number at the start.
        seconds
            Time without serving: from the last step until these ranks serve.
        process, rank
            Name and rank of this process.
        epoch
            Number of the agreement on which ranks serve.
        """
        self._epoch = epoch
        self._ranks, self._recovery_seconds = ranks, seconds
        self._ranks_wanted, self._rank = wanted, {label(process): rank}
        self._last_look = self._predicted = self._achieved = self._planner_seconds = None

    def take_alarms(self, alarms: frozenset[str]) -> None:
        """Record the alarms that are on."""
        self._alarms = {name: name in alarms for name in ALARMS}

    @property
    def moved_bytes(self) -> int:
        """Bytes of experts that this rank has received."""
        return self._moved_bytes

    @property
    def failed_requests(self) -> int:
        """Number of requests that this rank could not serve."""
        return self._requests["failed"]

    # --- what is told ----------------------------------------------------------------------------

    def listen(self, port: int, host: str = LOOPBACK, *, asked: Event | None = None) -> int:
        """Serve the metrics over HTTP until the process ends; return the port."""
        return listen(self, port, host, asked=asked)

    def text(self) -> str:
        """Write all metrics in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as Prometheus's client requires."""
        now = self._clock()
        yield info(self._labels)
        yield gauges("rank", "process", self._rank)
        yield from _known(
            epoch=self._epoch,
            ranks=self._ranks,
            ranks_wanted=self._ranks_wanted,
            recovery_seconds=self._recovery_seconds,
            state=list(State).index(self._state),
            map_version=self._version,
            last_move_timestamp_seconds=self._last_move,
            planner_seconds=self._planner_seconds,
        )
        yield from _of_gain("predicted", self._predicted)
        yield from _of_gain("achieved", self._achieved)
        yield gauges("alarm", "name", self._alarms)
        yield from self._of_steps(now)
        yield from self._of_requests(now)
        yield from self._of_looks(now)
        yield counter("moved_slots", self._moved_slots)
        yield counter("moved_bytes", self._moved_bytes)
        yield counter("failures", self._failures)
        yield counters("rebalances", "outcome", {o.value: n for o, n in self._outcomes.items()})

    def _of_steps(self, now: float) -> Iterator[Metric]:
        yield histogram("step_seconds", self._steps)
        yield histogram("stall_seconds", self._stalls)
        yield counter("tokens", self._tokens)
        steps = self._last_steps.since(0.0)
        if len(steps) > 1:
            yield gauge("last_step_timestamp_seconds", steps[-1][0])
            began, busy = steps[0][0], sum(seconds for _, seconds in steps[1:])
            yield gauge("utilisation", min(busy / max(now - began, busy, 1e-9), 1.0))

    def _of_requests(self, now: float) -> Iterator[Metric]:
        yield histogram("ttft_seconds", self._ttft)
        yield histogram("tpot_seconds", self._tpot)
        yield counters("requests", "status", self._requests)
        ttft, tpot = (
            [seconds for _, seconds in last.since(now - FRESH_SECONDS)]
            for last in (self._last_ttft, self._last_tpot)
        )
        yield from _known(ttft_p99=quantile(ttft, 0.99), tpot_avg=mean(tpot))

    def _of_looks(self, now: float) -> Iterator[Metric]:
        """Yield the results of the last look, unless it is too long ago."""
        if self._last_look is None:
            return
        when, finding = self._last_look
        interval = self._look_interval
        yield gauge("last_look_timestamp_seconds", when)
        yield from _known(look_interval_seconds=interval)
        if now - when <= max(FRESH_SECONDS, 3 * (interval or 0.0)):
            yield from _of_balance(finding.balance)
            if self._with_details:
                yield details("rank_load", "rank", enumerate(finding.rank_load))
                yield details("layer_imbalance", "layer", finding.layer_imbalance.items())
                yield cells("layer_rank_load", finding.layer_rank_load)

    @property
    def _look_interval(self) -> float | None:
        """Estimate the seconds between two looks from the recent step time."""
        steps = self._last_steps.since(0.0)
        if self._look_steps is None or len(steps) < 2:
            return None
        cycle = (steps[-1][0] - steps[0][0]) / (len(steps) - 1)
        return (self._look_steps + self._wait_steps) * cycle


def _of_balance(balance: Mapping[str, Balance]) -> Iterator[Metric]:
    """Yield the balance by phase, or of all steps if phases were not recorded."""
    known = {phase: balance[phase] for phase in PHASES if phase in balance}
    total = balance.get("")
    if total is not None:
        yield gauge("balancedness", total.balancedness)
        yield gauge("expert_load_balance_ratio", total.imbalance)
        known = known or {"all": total}
    yield gauges("imbalance", "phase", {p: b.imbalance for p, b in known.items()})
    yield gauges("excess", "phase", {p: b.excess for p, b in known.items()})
    yield gauges("noise_floor", "phase", {p: b.imbalance - b.excess for p, b in known.items()})


def _of_gain(name: str, decision: Decision | None) -> Iterator[Metric]:
    """Yield a gain in assignments, and in seconds if the gate knows times."""
    if decision is not None:
        yield gauge(f"{name}_gain_assignments", decision.gain_assignments)
        if decision.knows_times:
            yield gauge(f"{name}_gain_seconds", decision.gain_seconds)


def _known(**values: float | None) -> Iterator[Metric]:
    """Yield a gauge for each value that is not ``None``."""
    return (gauge(name, value) for name, value in values.items() if value is not None)
