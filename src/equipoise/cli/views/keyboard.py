"""Single keys, as they are pressed."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Self

_MOST_BYTES = 64
_ARROWS = {"\x1b[B": "j", "\x1b[C": "j", "\x1b[A": "k", "\x1b[D": "k"}


class Keyboard:
    """The keys of the terminal at standard input; none if that is not a terminal."""

    def __init__(self) -> None:
        self._number = sys.stdin.fileno() if sys.stdin.isatty() else None

    def __enter__(self) -> Self:
        if self._number is not None:
            self._before = termios.tcgetattr(self._number)
            tty.setcbreak(self._number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._number is not None:
            termios.tcsetattr(self._number, termios.TCSADRAIN, self._before)

    def keys(self, seconds: float) -> list[str]:
        """What was pressed within that time; arrows are ``j`` and ``k``."""
        if self._number is None:
            time.sleep(seconds)
            return []
        if not select.select([self._number], [], [], seconds)[0]:
            return []
        text = os.read(self._number, _MOST_BYTES).decode("utf-8", "replace")
        for arrow, key in _ARROWS.items():
            text = text.replace(arrow, key)
        return list(text)
