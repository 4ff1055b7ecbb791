"""The ledger of which process serves which request, kept where it survives all of them.

The ledger is one value in the store: how many requests were given out, and which process serves
which. It is only ever replaced as a whole (``compare_set``), so a process that dies between two
calls loses nothing: once it is no longer a member, its requests are given to another process.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import msgspec
from torch.distributed.distributed_c10d import Store

from equipoise.errors import EquipoiseError

_KEY = "requests"


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Parameters
    ----------
    number
        Number of the request, from 0.
    prompt
        Token ids of the model, at least one. They are not checked here: see ``Door``.
    domain
        Kind of the text, for display.
    """

    number: int
    prompt: tuple[int, ...]
    domain: str = ""


class Source(Protocol):
    """Makes requests by number, the same in every process. It has to be picklable."""

    def __call__(self, number: int) -> Request:
        """The request of a number."""
        ...


class _Book(msgspec.Struct):
    """The content of the ledger: the first number not given out, and who serves which request."""

    next: int = 0
    of: dict[str, list[int]] = msgspec.field(default_factory=dict)


class Ledger:
    """Gives out the numbers of requests, each to one process at a time.

    Parameters
    ----------
    store
        Store that all processes share.
    name
        Name of this process.
    limit
        Number of requests; ``None``: no end.
    """

    def __init__(self, store: Store, name: str, limit: int | None = None) -> None:
        self._store, self._name = store, name
        self._limit = sys.maxsize if limit is None else limit
        self._seen = ""  # what the store held last; "" if nothing

    def exchange(
        self, finished: Collection[int], wanted: int, members: Collection[str]
    ) -> list[int]:
        """Hand in numbers that are finished and take others.

        Requests of processes that are no longer members are given out first. Numbers to hand in
        that another process has taken meanwhile are ignored.

        Returns
        -------
        The wanted number of requests, or fewer if there are no more.

        Raises
        ------
        EquipoiseError
            The store holds something else under the ledger's key.
        """
        while True:
            book = _read(self._seen)
            mine = [n for n in book.of.pop(self._name, []) if n not in set(finished)]
            taken = self._take(book, wanted, {*members, self._name})
            book.of[self._name] = mine + taken
            entry = msgspec.json.encode(book).decode()
            held = self._store.compare_set(_KEY, self._seen, entry).decode()
            if held == entry:
                self._seen = entry
                return taken
            self._seen = held

    def keep_only(self, numbers: Collection[int]) -> list[int]:
        """Those of the numbers that are still this process's; others have been given away."""
        entry = self._store.compare_set(_KEY, "", "").decode()
        mine = _read(entry).of.get(self._name, [])
        return [number for number in numbers if number in mine]

    def _take(self, book: _Book, wanted: int, members: Collection[str]) -> list[int]:
        """Take numbers from the book, first those of processes that are gone."""
        taken: list[int] = []
        for name in sorted(set(book.of) - set(members)):
            numbers = book.of[name]
            while numbers and len(taken) < wanted:
                taken.append(numbers.pop(0))
            if not numbers:
                del book.of[name]
        first = book.next
        book.next = min(first + wanted - len(taken), self._limit)
        return [*taken, *range(first, book.next)]


def _read(entry: str) -> _Book:
    try:
        return msgspec.json.decode(entry, type=_Book) if entry else _Book()
    except msgspec.MsgspecError as error:
        raise EquipoiseError(
            f"The store has no ledger of requests under {_KEY!r}, but something else: {error}. "
            "Give these processes a store of their own."
        ) from error
