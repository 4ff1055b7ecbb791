"""Messages between processes through a store, and the detection of silent processes."""

from __future__ import annotations

import json
import time
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store

from equipoise.errors import EquipoiseError
from equipoise.runtime.members.secret import Seal

LEAVES, GONE = -1, -2  # instead of the number of the epoch that a process wants to be in


class Board:
    """Messages between processes, in keys of a store. For one thread, with its own client.

    All entries but the beats are signed; an entry without a valid signature is ignored.

    ======================  ===================================================================
    ``name/i``              Name of the process that came as the i-th.
    ``beat/name``           A number that grows while the process lives.
    ``want/name``           The epoch it wants to be in, 0 if none yet; or ``LEAVES``; or ``GONE``.
    ``members/number``      The members of an epoch, written once.
    ======================  ===================================================================
    """

    def __init__(self, store: Store, seal: Seal | None = None) -> None:
        self._store = PrefixStore("equipoise", own_client(store))
        self._seal = seal or Seal(None)
        self._names: list[str] = []
        self._next_name = 1
        self._latest: tuple[int, tuple[str, ...]] = 0, ()
        self.next_number = 1
        """The first epoch number without a list of members."""
        self.strangers = False
        """Whether a process without the secret has written such a list."""

    def register(self, name: str) -> None:
        """Enter a process under its name."""
        self.beat(name)
        self.want(name, 0)
        number = 1
        while not self._write_once(f"name/{number}", name):
            number += 1

    def beat(self, name: str) -> None:
        """Show life."""
        self._store.add(f"beat/{name}", 1)

    def want(self, name: str, number: int) -> None:
        """Say which epoch a process wants to be in."""
        key = f"want/{name}"
        self._store.set(key, self._seal.close(key, str(number)))

    def beats(self) -> dict[str, int]:
        """The beats of all processes so far, in the order in which they came."""
        values = self._of_names("beat")
        return {name: _number(value.decode(errors="replace")) for name, value in values.items()}

    def wants(self) -> dict[str, int]:
        """The epoch that each process wants to be in."""
        return {
            name: _number(self._seal.open(f"want/{name}", value))
            for name, value in self._of_names("want").items()
        }

    def latest(self) -> tuple[int, tuple[str, ...]]:
        """Number and members of the last epoch agreed on; 0 and ``()`` before the first."""
        while self._store.check([key := f"members/{self.next_number}"]):
            members = self._seal.open(key, self._store.get(key))
            if members is None:
                self.strangers = True
            else:
                self._latest = self.next_number, tuple(json.loads(members))
            self.next_number += 1
        return self._latest

    def propose(self, number: int, members: list[str]) -> None:
        """Write the list of members of an epoch, unless another process has."""
        self._write_once(f"members/{number}", json.dumps(members))

    def _write_once(self, key: str, text: str) -> bool:
        """Write an entry unless there is one; return whether it is there now."""
        entry = self._seal.close(key, text)
        return bool(self._store.compare_set(key, "", entry).decode(errors="replace") == entry)

    def _of_names(self, what: str) -> dict[str, bytes]:
        while self._store.check([key := f"name/{self._next_name}"]):
            name = self._seal.open(key, self._store.get(key))
            if name is not None:
                self._names.append(name)
            self._next_name += 1
        values = self._store.multi_get([f"{what}/{name}" for name in self._names])
        return dict(zip(self._names, values, strict=True))


class Watch:
    """The time since each process's beats last changed, by this process's own clock.

    The clock stands still while this process is stopped; otherwise it would take all the others
    for dead when it continues.
    """

    def __init__(self, beat_seconds: float, silence_seconds: float) -> None:
        self._most, self._silence = 2 * beat_seconds, silence_seconds
        self._now, self._looked = 0.0, time.monotonic()
        self._seen: dict[str, tuple[int, float]] = {}  # beats, and since when

    def silent(self, beats: dict[str, int]) -> frozenset[str]:
        """Take in all beats and return the names of the processes that are silent."""
        looked, self._looked = self._looked, time.monotonic()
        self._now += min(self._looked - looked, self._most)
        for name, beat in beats.items():
            if beat != self._seen.get(name, (None, 0))[0]:
                self._seen[name] = beat, self._now
        return frozenset(
            name for name, (_, since) in self._seen.items() if self._now - since > self._silence
        )


def own_client(store: Any) -> Store:
    """Open a connection to the same store for one thread.

    A client of ``TCPStore`` does one thing at a time: a wait blocks every other call.
    """
    if not hasattr(store, "clone"):
        raise EquipoiseError(
            f"The store is a {type(store).__name__} without clone(); expected a store of "
            "torch.distributed in a version of torch whose stores can be cloned."
        )
    own: Store = store.clone()
    return own


def _number(text: str | None) -> int:
    """The number in an entry; 0 if it holds none."""
    try:
        return int(text or "0")
    except ValueError:
        return 0
