"""Publishing the status of a serving process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from logging import Handler, LogRecord
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.distributed.distributed_c10d import Store

from equipoise.control.status import Arrival, Status, arrival_key, status_key

SECONDS = 0.25
"""Seconds from one status to the next."""

_LOG_LINES = 5


class Publisher:
    """Adds up forward passes and publishes a ``Status`` in the store, as JSON.

    Recent values (the load of each rank, the imbalance, the time of a step with all balancing)
    cover the time since the last status. The last lines of the log are added.

    Parameters
    ----------
    store
        Store in which to publish.
    name
        Name of this process.
    clock
        Function that returns the time in seconds.
    """

    def __init__(
        self, store: Store, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._name, self._clock = store, name, clock
        self._began = self._last = clock()
        self._log = LastLines()
        self._tokens = 0
        self._load: NDArray[np.int64] | None = None
        self.forget()

    @property
    def log(self) -> LastLines:
        """Handler that keeps the last lines that the runtime logs."""
        return self._log

    def arrive(self, arrival: Arrival) -> None:
        """Publish how far this process is before its first step."""
        self._store.set(arrival_key(self._name), arrival.value)

    def take_load(self, load_R: NDArray[np.int64]) -> None:
        """Add the assignments that a layer had on each rank, ``(R,)``."""
        self._load = load_R if self._load is None else self._load + load_R
        if load_R.any():
            self._imbalances.append(float(load_R.max() / load_R.mean()))

    def take_step(self, tokens: int, seconds: float) -> None:
        """Add a step: the tokens it has generated on this rank, and its duration."""
        self._tokens += tokens
        self._steps += 1
        self._seconds += seconds

    @property
    def due(self) -> bool:
        """Whether it is time to publish again."""
        return self._clock() - self._last >= SECONDS

    def publish(self, **facts: Any) -> None:
        """Publish what was added up since the last time; ``facts`` are all other fields."""
        self._last = self._clock()
        shown: dict[str, Any] = {
            key: printable(fact) if isinstance(fact, str) else fact for key, fact in facts.items()
        }
        status = Status(
            name=self._name,
            tokens=self._tokens,
            rank_load=() if self._load is None else tuple(self._load.tolist()),
            imbalance=float(np.mean(self._imbalances)) if self._imbalances else 1.0,
            step_seconds=self._seconds / max(self._steps, 1),
            log=tuple(self._log.lines),
            time=self._last - self._began,
            **shown,
        )
        self._store.set(status_key(self._name), status.encode())
        self.forget()

    def forget(self) -> None:
        """Forget all but the tokens generated, because the ranks have changed."""
        self._load = None
        self._imbalances: list[float] = []
        self._steps = 0
        self._seconds = 0.0


class LastLines(Handler):
    """The last lines of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)

    def emit(self, record: LogRecord) -> None:
        """Keep a line, whatever level it has."""
        self.lines.append(printable(record.getMessage()))


def printable(text: str) -> str:
    """Replace control characters and halves of characters by question marks, for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
