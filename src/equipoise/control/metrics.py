"""What a rank tells Prometheus: about twenty series, whatever the size of the model."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from equipoise.control.controller import Order, Outcome, State
from equipoise.control.findings import Balance, Failure, Finding
from equipoise.control.watchdog import ALARMS
from equipoise.errors import EquipoiseError

PHASES = ("prefill", "decode")
STATUSES = ("answered", "failed")

LOOPBACK = "127.0.0.1"

DESCRIPTIONS = {
    "imbalance": "Busiest rank over mean rank, mean over the last window, by phase.",
    "excess": "Imbalance above what chance gives a fair router, by phase.",
    "balancedness": "Mean rank over busiest rank, mean over the last window.",
    "step_seconds": "Forward passes, and the time they took.",
    "rebalances": "Attempts to balance, by what became of them.",
    "requests": "Requests that this rank has answered, by whether they could be served.",
    "moved_bytes": "Bytes of experts that this rank received.",
    "stall_seconds": "Time in which serving waited for balancing.",
    "predicted_gain_seconds": "What the last plan was expected to save in a step.",
    "achieved_gain_seconds": "What the last move has saved in a step.",
    "planner_seconds": "Time of the last look at the loads, planning included.",
    "state": "0 warm-up, 1 observe, 2 plan, 3 move, 4 settle.",
    "ranks": "Ranks that serve together.",
    "recovery_seconds": "Time without serving when the ranks last changed.",
    "failures": "Planners, transfers and attempts to keep a map that failed.",
    "alarm": "1 while a watchdog barks.",
}
"""Every metric, without the prefix ``equipoise_`` and the suffix ``_total`` of counters."""


class Metrics(Collector):
    """Numbers of one rank, told the way Prometheus asks for them.

    Register it with a ``prometheus_client`` registry, or print ``text``. All ranks can have one;
    what comes from looking at the loads only rank 0 knows, and only it has those series.
    """

    def __init__(self) -> None:
        self._state = State.WARM_UP
        self._balance: dict[str, Balance] = {}
        self._predicted: float | None = None
        self._achieved: float | None = None
        self._planner_seconds: float | None = None
        self._ranks: int | None = None
        self._recovery_seconds: float | None = None
        self._steps = 0
        self._step_seconds = 0.0
        self._stall_seconds = 0.0
        self._moved_bytes = 0
        self._failures = 0
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._requests = dict.fromkeys(STATUSES, 0)
        self._alarms = dict.fromkeys(ALARMS, False)

    def take_step(self, seconds: float, *, stall_seconds: float = 0.0) -> None:
        """A forward pass has taken so long; serving then waited for balancing."""
        self._steps += 1
        self._step_seconds += seconds
        self._stall_seconds += stall_seconds

    def take_order(self, order: Order) -> None:
        """An order has come."""
        self._state = order.state
        if order.outcome is not None:
            self._outcomes[order.outcome] += 1
            self._failures += order.outcome is Outcome.FAILED

    def take_answer(self, answer: Finding | Failure) -> None:
        """The planner has answered."""
        self._planner_seconds = answer.seconds
        if isinstance(answer, Failure):
            return
        self._balance = dict(answer.balance)
        if answer.predicted is not None:
            self._predicted = answer.predicted.gain_seconds
        if answer.achieved is not None:
            self._achieved = answer.achieved.gain_seconds

    def take_bytes(self, moved_bytes: int) -> None:
        """Count bytes of experts that have arrived on this rank."""
        self._moved_bytes += moved_bytes

    def take_answered(self, status: str) -> None:
        """A request was answered: one of ``STATUSES``."""
        self._requests[status] += 1

    def take_failure(self) -> None:
        """Something failed of which no order tells."""
        self._failures += 1

    def take_ranks(self, num_ranks: int, seconds: float) -> None:
        """Note the ranks that serve from now on, and the time since the last step until they do."""
        self._ranks, self._recovery_seconds = num_ranks, seconds

    def take_alarms(self, alarms: frozenset[str]) -> None:
        """These watchdogs bark."""
        self._alarms = {name: name in alarms for name in ALARMS}

    @property
    def moved_bytes(self) -> int:
        """Of experts that have arrived on this rank."""
        return self._moved_bytes

    @property
    def failed_requests(self) -> int:
        """Requests that this rank could not serve."""
        return self._requests["failed"]

    def listen(self, port: int, host: str = LOOPBACK) -> int:
        """Answer Prometheus until the process ends, whoever asks.

        Parameters
        ----------
        port, host
            Where; by default only programs on this machine can ask, ``"0.0.0.0"`` lets all. Port 0
            is any that is free.

        Returns
        -------
        The port.

        Raises
        ------
        EquipoiseError
            An address or a port that cannot be had.
        """
        registry = CollectorRegistry()
        registry.register(self)
        try:
            server, _ = start_http_server(port, addr=host, registry=registry)
        except (OSError, OverflowError, UnicodeError) as error:
            raise EquipoiseError(
                f"Port {port} of {host!r} cannot answer Prometheus: {error}."
            ) from error
        return int(server.server_port)

    def text(self) -> str:
        """All of it in Prometheus's text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry).decode()

    def collect(self) -> Iterator[Metric]:
        """What Prometheus's client asks for."""
        for name in ("imbalance", "excess"):
            yield _gauge(name, "phase", {p: getattr(b, name) for p, b in self._phases.items()})
        for name, value in (
            ("balancedness", self._balance[""].balancedness if "" in self._balance else None),
            ("predicted_gain_seconds", self._predicted),
            ("achieved_gain_seconds", self._achieved),
            ("planner_seconds", self._planner_seconds),
            ("state", list(State).index(self._state)),
            ("ranks", self._ranks),
            ("recovery_seconds", self._recovery_seconds),
        ):
            if value is not None:
                yield GaugeMetricFamily(*_head(name), value=value)
        yield _gauge("alarm", "name", self._alarms)
        yield SummaryMetricFamily(
            *_head("step_seconds"), count_value=self._steps, sum_value=self._step_seconds
        )
        for name, number in (
            ("moved_bytes", self._moved_bytes),
            ("stall_seconds", self._stall_seconds),
            ("failures", self._failures),
        ):
            yield CounterMetricFamily(*_head(name), value=number)
        yield _counter("rebalances", "outcome", {o.value: n for o, n in self._outcomes.items()})
        yield _counter("requests", "status", self._requests)

    @property
    def _phases(self) -> dict[str, Balance]:
        """By phase; all together where phases were not recorded."""
        known = {phase: self._balance[phase] for phase in PHASES if phase in self._balance}
        total = self._balance.get("")
        return known if known or total is None else {"all": total}


def _head(name: str) -> tuple[str, str]:
    return f"equipoise_{name}", DESCRIPTIONS[name]


def _counter(name: str, label: str, numbers: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(*_head(name), labels=[label])
    for value, number in numbers.items():
        family.add_metric([value], number)
    return family


def _gauge(name: str, label: str, values: dict[str, float] | dict[str, bool]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(*_head(name), labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family
