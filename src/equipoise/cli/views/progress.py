"""How far long work is, said on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, TextIO

_LOG_SECONDS = 10.0

clock = time.monotonic
"""The time that bars and logs go by."""


class Progress(Protocol):
    """Receives the progress of long work."""

    def __call__(self, done: int, total: int, said: str = "") -> None:
        """Take how much is done, of how much, in equal parts of time; and what is being done."""


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on a terminal, else now and then a line, while the body runs."""
    if not sys.stderr.isatty():
        yield ProgressLog(title, sys.stderr, clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeRemaining

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemaining(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, said="")

        def tell(done: int, total: int, said: str = "") -> None:
            bar.update(task, completed=done, total=total, said=said)

        yield tell


@contextmanager
def progress_parts(title: str) -> Iterator[Callable[[str], Progress]]:
    """Bars one after the other, for parts of which nobody knows which takes longer."""
    with ExitStack() as stack:

        def begin(name: str) -> Progress:
            stack.close()
            return stack.enter_context(progress_bar(f"{title}, {name}"))

        yield begin


class ProgressLog:
    """Lines for a pipe or a file: at most one every ten seconds, and none of what takes less.

    Parameters
    ----------
    title
        Name of the work.
    out
        Stream for the lines.
    clock
        Function that returns the time in seconds.
    """

    def __init__(self, title: str, out: TextIO, clock: Callable[[], float]) -> None:
        self._title, self._out, self._clock = title, out, clock
        self._start = self._last = clock()

    def __call__(self, done: int, total: int, said: str = "") -> None:
        """Take how far the work is; perhaps write a line."""
        now = self._clock()
        if now - self._last < _LOG_SECONDS or done >= total:
            return
        self._last = now
        left = (now - self._start) * (total - done) / done if done else None
        parts = [f"{self._title}: {done / total:.0%}", said, "" if left is None else _left(left)]
        print(f"equipoise: {', '.join(filter(None, parts))}", file=self._out, flush=True)


class PartsOf:
    """Progress of work in equal parts, each of which tells how far it is itself.

    Parameters
    ----------
    whole
        Progress of the whole work.
    """

    def __init__(self, whole: Progress) -> None:
        self._whole = whole
        self._done, self._total = 0, 1

    def begin(self, done: int, total: int) -> None:
        """Take how many parts are done, of how many, before the next."""
        self._done, self._total = done, total
        self._whole(done, total)

    def __call__(self, done: int, total: int, said: str = "") -> None:
        """Take how much of the present part is done."""
        part = f"{self._done + 1} of {self._total}"
        self._whole(
            self._done * total + done, self._total * total, f"{part}: {said}" if said else part
        )


def _left(seconds: float) -> str:
    """A time that remains, in words."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s left"
    return f"about {seconds / 60:.0f} min left"
