"""Progress reports of long work."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The protocol of functions that receive the progress of long work."""

    def __call__(self, done: int, total: int, said: str = "") -> None:
        """Receive how much is done, of how much, and what is being done."""


class Parts(Protocol):
    """The protocol of functions that begin a part of long work, for parts of unknown lengths."""

    def __call__(self, name: str, /) -> Progress | None:
        """Begin a part; return a function that receives the part's progress."""


def part_of(whole: Progress | None, number: int, parts: int) -> Progress | None:
    """Make a progress function for one of several equal parts, counted from 0."""
    if whole is None:
        return None

    def tell(done: int, total: int, said: str = "") -> None:
        whole(number * total + done, parts * total, said)

    return tell
