"""A run that is followed: a picture on a terminal, lines in a pipe, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.live import Live

from equipoise.cli.views.console import stdout
from equipoise.report.live import View

LINE_SECONDS = 3.0


class Screen:
    """Where a run is shown.

    Parameters
    ----------
    silent
        Whether nothing is shown at all.
    """

    def __init__(self, *, silent: bool) -> None:
        self._console, self._silent = stdout(), silent

    @property
    def _is_drawn(self) -> bool:
        return self._console.is_terminal and not self._silent

    def say(self, words: str) -> None:
        """Print a line in a pipe; a terminal has the picture."""
        if not (self._is_drawn or self._silent):
            self._console.print(words)

    def spinner(self, words: str) -> AbstractContextManager[object]:
        """Show on a terminal what is being done, while the body does it."""
        return self._console.status(words) if self._is_drawn else nullcontext()

    @contextmanager
    def following(self, view: View) -> Iterator[Callable[[], None]]:
        """Yield a function that shows the present; a line that says nothing new is left out."""
        last = ""

        def print_line() -> None:
            nonlocal last
            line = view.line()
            if line != last:
                self.say(line)
            last = line

        if self._is_drawn:
            with Live(view.render(), console=self._console, auto_refresh=False) as live:
                yield lambda: live.update(view.render(), refresh=True)
        else:
            yield _every(LINE_SECONDS, print_line)


def _every(seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    """Limit an action to once per interval."""
    due = 0.0

    def act() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            action()

    return act
