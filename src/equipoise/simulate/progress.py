"""How far long work is, told to whoever asks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work."""

    def __call__(self, done: int, total: int, said: str = "") -> None:
        """Take how much is done, of how much, and what is being done."""


def part_of(whole: Progress | None, number: int, parts: int) -> Progress | None:
    """Progress of one of several parts of the work, counted from 0; all parts count the same."""
    if whole is None:
        return None

    def tell(done: int, total: int, said: str = "") -> None:
        whole(number * total + done, parts * total, said)

    return tell
