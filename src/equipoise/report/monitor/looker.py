"""Repeated looks at a source, in a separate thread."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Event, Thread

from equipoise.errors import EquipoiseError
from equipoise.report.monitor.look import Look, Source

Answer = list[Look] | EquipoiseError


class Looker:
    """A thread that looks at a source, so that keys are answered while the source is slow.

    Parameters
    ----------
    seconds
        Time between two looks.
    """

    def __init__(self, source: Source, seconds: float) -> None:
        self._source, self._seconds = source, seconds
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._at_once = Event()
        Thread(target=self._work, name="looker", daemon=True).start()

    def hurry(self) -> None:
        """Look now instead of after the rest of the interval."""
        self._at_once.set()

    def answer(self, patience_seconds: float | None = None) -> Answer | None:
        """Return the next answer, or ``None`` if there is none within this time."""
        try:
            return self._answers.get(timeout=patience_seconds)
        except Empty:
            return None

    def _work(self) -> None:
        while True:
            self._at_once.wait(self._seconds)
            self._at_once.clear()
            try:
                self._answers.put(self._source.look())
            except EquipoiseError as error:
                self._answers.put(error)
