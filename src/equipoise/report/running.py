"""The state of a running group, read from its /metrics address, for the dashboard's live view."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from math import isfinite
from typing import Any

from equipoise.control.controller import State
from equipoise.errors import EquipoiseError

_PREFIX = "equipoise_"
_MOST_BYTES = 1 << 22
_PART_BYTES = 1 << 16
_QUOTED = 120


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A handler that refuses redirects, so that only the given address is asked."""

    def redirect_request(self, *_: Any) -> None:
        return None


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
"""Opener that ignores proxies of the environment, because the group is in the same network."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The state of a group at one moment; ``None`` for what it does not say.

    Parameters
    ----------
    imbalance, excess
        Imbalance, and imbalance above chance, by phase.
    state
        State of the controller.
    ranks
        Number of ranks that serve together.
    steps, step_seconds
        Number of forward passes since the start, and their total time.
    stall_seconds, moved_bytes, failures
        Totals since the start.
    outcomes, requests
        Numbers of attempts to balance and of requests, by outcome.
    alarms
        Names of the alarms that are on.
    """

    imbalance: dict[str, float]
    excess: dict[str, float]
    state: str | None
    ranks: float | None
    steps: float | None
    step_seconds: float | None
    stall_seconds: float | None
    moved_bytes: float | None
    failures: float | None
    outcomes: dict[str, float]
    requests: dict[str, float]
    alarms: list[str]


@dataclass(frozen=True)
class RunningGroup:
    """A running group, read at the address of its metrics.

    Parameters
    ----------
    url
        Address, such as ``http://127.0.0.1:9400/metrics``.
    timeout_seconds
        Longest wait for an answer.

    Raises
    ------
    EquipoiseError
        A text that is no address, or prometheus-client is not installed.
    """

    url: str
    timeout_seconds: float = 3.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            fine = fine and parts.username is None
        except ValueError:
            fine = False
        if not fine:
            raise EquipoiseError(
                f"The address of the metrics is {self.url[:_QUOTED]!r}; expected one such as "
                "http://127.0.0.1:9400/metrics, without a user name."
            )
        try:
            import prometheus_client.parser  # noqa: F401  # refuses now, not at the first look
        except ImportError as error:
            raise EquipoiseError(
                "Metrics of a running group are read with prometheus-client, which is not "
                "installed; pip install 'equipoise[runtime]'."
            ) from error

    def look(self) -> Sight:
        """Ask the group for its state.

        Raises
        ------
        EquipoiseError
            No answer, an error, or an answer that is too long or without metrics of equipoise.
        """
        return sight_of(self._text(), self.url)

    def _text(self) -> str:
        try:
            with _DIRECT.open(self.url, timeout=self.timeout_seconds) as answer:
                data = self._read(answer)
        except urllib.error.HTTPError as error:
            error.close()
            raise EquipoiseError(
                f"{self.url} answers with status {error.code}; expected metrics."
            ) from error
        except EquipoiseError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())[:_QUOTED]
            raise EquipoiseError(
                f"{self.url} cannot be reached: {reason}. Does the group still run?"
            ) from error
        return data.decode("utf-8", "replace")

    def _read(self, answer: HTTPResponse) -> bytes:
        """Read the whole answer within the deadline, even if the server sends it slowly."""
        give_up = time.monotonic() + self.timeout_seconds
        data = b""
        while part := answer.read1(_PART_BYTES):
            data += part
            if len(data) > _MOST_BYTES:
                raise EquipoiseError(
                    f"{self.url} answers more than {_MOST_BYTES >> 20} MiB; expected metrics."
                )
            if time.monotonic() > give_up:
                raise TimeoutError(f"no whole answer within {self.timeout_seconds:g} s")
        return data


def sight_of(text: str, where: str) -> Sight:
    """Read the state from metrics in Prometheus's text format; errors as ``RunningGroup.look``.

    Parameters
    ----------
    where
        Source of the metrics, for messages.
    """
    samples = list(_samples(text, where))
    if not samples:
        raise EquipoiseError(
            f"{where} answers without a metric of equipoise; give the address of rank 0 of a "
            "group that serves with --metrics-port."
        )

    def one(name: str) -> float | None:
        return next((value for known, _, value in samples if known == name), None)

    def by(name: str, label: str) -> dict[str, float]:
        return {
            labels[label]: value
            for known, labels, value in samples
            if known == name and label in labels
        }

    state = one("state")
    states = list(State)
    is_known = state is not None and state in range(len(states))
    return Sight(
        imbalance=by("imbalance", "phase"),
        excess=by("excess", "phase"),
        state=states[int(state)].value if state is not None and is_known else None,
        ranks=one("ranks"),
        steps=one("step_seconds_count"),
        step_seconds=one("step_seconds_sum"),
        stall_seconds=one("stall_seconds_sum"),
        moved_bytes=one("moved_bytes_total"),
        failures=one("failures_total"),
        outcomes=by("rebalances_total", "outcome"),
        requests=by("requests_total", "status"),
        alarms=[name for name, value in by("alarm", "name").items() if value],
    )


def _samples(text: str, where: str) -> Iterable[tuple[str, dict[str, str], float]]:
    """Yield name (without prefix), labels and value of each finite sample of equipoise."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(_PREFIX) and isfinite(sample.value):
                    yield sample.name.removeprefix(_PREFIX), sample.labels, sample.value
    except Exception as error:  # the parser may raise anything on other formats
        raise EquipoiseError(
            f"{where} answers with something else than Prometheus's text format."
        ) from error
