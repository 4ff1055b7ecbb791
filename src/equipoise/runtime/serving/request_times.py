"""Times of requests: to the first token, and from one token to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from equipoise.control.metrics import Metrics
from equipoise.runtime.serving.decoding import Batch


class RequestTimes:
    """Times the requests of one process and tells its metrics.

    A request that has to be served again, because a pass broke off or other processes came, is
    timed from when it was first taken: that is what its user waits.

    Parameters
    ----------
    metrics
        Observer that is told.
    clock
        Function that returns the time in seconds.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._taken: dict[int, float] = {}
        self._first: dict[int, float] = {}

    def take(self, numbers: Iterable[int]) -> None:
        """These requests were taken just now."""
        self._taken |= dict.fromkeys(numbers, self._clock())

    def see(self, batch: Batch) -> None:
        """A forward pass has given each request of a batch a token."""
        now = self._clock()
        numbers = [request.number for request in batch.requests]
        for number in numbers:
            if number not in self._first:
                self._first[number] = now
                self._metrics.take_first_token(now - self._taken[number])
        if batch.done and batch.new_tokens > 1:
            for number in numbers:
                later = (now - self._first[number]) / (batch.new_tokens - 1)
                self._metrics.take_later_tokens(later)

    def forget(self, numbers: Iterable[int]) -> None:
        """These requests are answered, or others serve them."""
        for number in numbers:
            self._taken.pop(number, None)
            self._first.pop(number, None)
