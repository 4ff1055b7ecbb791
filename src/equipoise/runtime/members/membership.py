"""Membership: new process groups whenever a process dies, leaves or joins.

It has no transport of its own: processes meet in a ``torch.distributed`` store (``board``), and a
process group ends when its connections are cut (``links``).
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Lock, Thread

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from equipoise.checks import check_count, check_number
from equipoise.control.messages import PeerError
from equipoise.errors import EquipoiseError
from equipoise.runtime.members.board import GONE, LEAVES, Board, Watch, own_client
from equipoise.runtime.members.links import Links, forget_groups
from equipoise.runtime.members.secret import VARIABLE, Seal

_POLL_SECONDS = 0.02  # between looks at the store while an epoch is agreed on
_GRACE_SECONDS = 1.0  # between the first and the last member when all regroup as planned
_ATTEMPTS = 3  # at making the process groups of the same members
_MOST_SECONDS = 1e6  # of a time that is given

logger = logging.getLogger("equipoise.runtime")


@dataclass(frozen=True)
class Epoch:
    """A time in which the same processes serve together.

    Parameters
    ----------
    number
        Number of the epoch, from 1; numbers grow, and each belongs to one list of members.
    members
        Names in rank order: members of the last epoch in their order, then newcomers by name.
    rank
        Rank of this process.
    previous
        Rank of each member in this process's last epoch, -1 for those that were not in it.
    spare
        Process group of all members that only transfers use, until ``renew_spare`` returns another.
        The default process group is for everything else.
    """

    number: int
    members: tuple[str, ...]
    rank: int
    previous: tuple[int, ...]
    spare: dist.ProcessGroup


class Membership:
    """One process's part in deciding who serves, and in which process groups.

    ::

        membership = Membership(store, "host-3")
        while serving:
            epoch = membership.form(expected=4)   # makes the default process group
            ...                                   # until membership.failed, or a collective raises
        membership.close()

    A thread writes signs of life to the store and watches the others. When a member dies, falls
    silent, leaves or makes a new process group, ``failed`` says so and the connections of both
    process groups are shut down: every wait in them raises. All members then call ``form`` again; a
    member that does not do so for half the time-out stays out. A process that was stopped and
    continues finds that the others went on without it, and joins as a newcomer does: it calls
    ``form``, and is in as soon as the others regroup.

    For each epoch number one process, the first of those that want to be in, writes the list of
    members. Only the first list for a number counts, even if two processes write one.

    Parameters
    ----------
    store
        Store in which the processes meet. It has to outlive them: they do not recover from its
        owner's death. Make a ``FileStore`` without a number of processes, or it deletes its file
        early; it grows with every beat, and a process stopped at the wrong moment keeps it locked.
    name
        Name of the process, for people to read; a few characters are added to make it unique.
    timeout_seconds
        Time-out of collectives, and the longest that ``form`` waits before it gives up.
    silence_seconds
        Time without a sign of life after which a process counts as dead.
    beat_seconds
        Time between two signs of life, and between two looks at those of others.
    backend
        Backend of both process groups.
    secret
        Secret that all processes share, and with which they sign who they are and who serves; a
        process without it gets into no process group. ``None``: whoever reaches the store can join.

    Raises
    ------
    EquipoiseError
        An empty name; times that are not positive; a silence shorter than two beats; a secret of
        fewer than 16 characters.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        timeout_seconds: float = 30.0,
        silence_seconds: float = 5.0,
        beat_seconds: float = 0.5,
        backend: str = "gloo",
        secret: str | None = None,
    ) -> None:
        check_number("beat_seconds", beat_seconds, low=1e-3, high=_MOST_SECONDS)
        check_number("silence_seconds", silence_seconds, low=2 * beat_seconds, high=_MOST_SECONDS)
        check_number("timeout_seconds", timeout_seconds, low=1e-3, high=_MOST_SECONDS)
        if not name:
            raise EquipoiseError("The name of a member is empty; name the process.")
        self.name = f"{name}-{secrets.token_hex(4)}"
        self._timeout, self._silence, self._beat = timeout_seconds, silence_seconds, beat_seconds
        self._backend = backend
        self._store = store
        seal = Seal(secret)
        self._board = Board(store, seal)
        self._board.register(self.name)
        self._term: _Term | None = None
        self._silent: frozenset[str] = frozenset()
        self._stop = Event()
        self._thread = Thread(
            target=self._keep_watch, args=(Board(store, seal),), name="equipoise-beat", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> str | None:
        """Reason why the last epoch is over; ``None`` while it lasts."""
        return self._term.failed if self._term is not None else None

    @property
    def newcomers(self) -> bool:
        """Whether a process waits to join this epoch."""
        return self._term is not None and self._term.newcomers

    @property
    def departures(self) -> bool:
        """Whether a member of this epoch has said that it leaves."""
        return self._term is not None and self._term.departures

    def form(self, expected: int = 1) -> Epoch:
        """Agree on the next epoch and make its process groups; retries until they are made.

        Every member of the last epoch calls it, and every process that wants to join.

        Parameters
        ----------
        expected
            Number of members that the very first epoch waits for; later epochs ignore it.

        Raises
        ------
        EquipoiseError
            No epoch with this process came about in ``timeout_seconds``; its process groups cannot
            be made; the store does not answer; there is another default process group; this process
            is new, and those that serve have another secret.
        """
        check_count("expected", expected)
        if self._stop.is_set():
            raise EquipoiseError("This membership is closed; make another.")
        if dist.is_initialized() and (self._term is None or self._term.ended):
            raise EquipoiseError("There is a default process group already; destroy it first.")
        try:
            if self._term is not None and not self._term.planned(self._board.wants(), self._silent):
                self._term.fail("this process makes a new process group")
            return self._form(expected)
        except BaseException as error:
            with suppress(RuntimeError):
                self._board.want(self.name, 0)  # or the others would wait for it
            if isinstance(error, RuntimeError):
                raise EquipoiseError(f"The store does not answer: {error}") from error
            raise

    def renew_spare(self) -> dist.ProcessGroup:
        """Make a process group in place of ``Epoch.spare``, after a transfer in it failed.

        Collective. Every wait in the old one raises: point-to-point messages of gloo have no
        time-out.

        Raises
        ------
        EquipoiseError
            There is no epoch.
        RuntimeError
            The epoch is over, or a member does not take part, as in any collective.
        """
        term = self._term
        if term is None:
            raise EquipoiseError("There is no process group to renew; form an epoch first.")
        if term.failed is not None:  # which this process may not have noticed yet
            raise PeerError(f"The epoch is over: {term.failed}.")
        term.spare.cut()
        dist.destroy_process_group(term.spare.group)
        spare = Links.made(lambda: dist.new_group(timeout=timedelta(seconds=self._timeout)))
        term.replace_spare(spare)
        return spare.group

    def leave(self) -> None:
        """Say that this process leaves: it serves until the others regroup, and then closes."""
        self._board.want(self.name, LEAVES)

    def close(self) -> None:
        """Tell the others that this process is gone, and end the process groups."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with suppress(RuntimeError):  # the store may be gone
            self._board.want(self.name, GONE)
        self._dissolve("this process has left")
        # A process group that is still referenced when the interpreter ends can abort it.
        self._term = None

    def _form(self, expected: int) -> Epoch:
        failures: Counter[tuple[str, ...]] = Counter()
        while True:
            number, members = self._agree(expected)
            self._dissolve(f"epoch {number} follows")
            try:
                self._term = self._make_groups(number, members)
                return self._term.epoch
            except RuntimeError as error:  # most likely a member has died meanwhile
                logger.warning("Epoch %d did not come about: %s", number, error)
                forget_groups()
                failures[members] += 1
                if failures[members] == _ATTEMPTS:
                    raise EquipoiseError(
                        f"The process group of {', '.join(members)} cannot be made: {error}"
                    ) from error

    def _agree(self, expected: int) -> tuple[int, tuple[str, ...]]:
        """Wait for a newer list of members that has this process in it."""
        tried, members = self._board.latest()
        number, wanted, since = tried, 0, time.monotonic()
        while number == tried or self.name not in members:
            if self._board.strangers and not number:  # and nobody with the secret serves
                raise EquipoiseError(
                    f"{self.name} is refused: the processes that serve at this store have another "
                    f"secret, or none. Give all processes the same secret in {VARIABLE}."
                )
            if number > tried:  # without this process, which wants to be in the next
                tried, since = number, time.monotonic()
            if wanted != self._board.next_number:
                wanted = self._board.next_number
                self._board.want(self.name, wanted)
            elif (waited := time.monotonic() - since) > self._timeout:
                raise EquipoiseError(
                    f"{self.name} got into no process group in {self._timeout:g} s; the last epoch "
                    f"is {tried}, of {len(members)} members. Call form again to continue waiting."
                )
            else:
                self._propose(wanted, members, expected, patient=waited < self._timeout / 2)
                time.sleep(_POLL_SECONDS)
            number, members = self._board.latest()
        return number, members

    def _propose(self, number: int, old: tuple[str, ...], expected: int, *, patient: bool) -> None:
        """Write the list of members of an epoch, if it is this process's turn and all are ready."""
        wants = self._board.wants()
        live = {name: want for name, want in wants.items() if name not in self._silent}
        order = dict.fromkeys((*old, *sorted(live)))
        ready = [name for name in order if live.get(name) == number]
        if not ready or ready[0] != self.name:
            return
        missing = any(0 <= live.get(name, GONE) < number for name in old)
        if missing and (patient or self.name not in old):
            return
        if old or len(ready) >= expected:
            self._board.propose(number, ready)

    def _make_groups(self, number: int, members: tuple[str, ...]) -> _Term:
        """Make the process groups of an epoch; all its members do it at the same time.

        They were alive a moment ago, so the time-out is short until all have arrived.
        """
        patience = timedelta(seconds=min(self._timeout, 2 * self._silence))
        rank = members.index(self.name)

        def whole() -> dist.ProcessGroup | None:
            dist.init_process_group(
                self._backend,
                store=PrefixStore(f"equipoise/{number}", own_client(self._store)),
                rank=rank,
                world_size=len(members),
                timeout=patience,
            )
            return dist.group.WORLD

        every = Links.made(whole)
        try:
            spare = Links.made(lambda: dist.new_group(timeout=patience))
        except RuntimeError:
            every.cut()
            raise
        for link in (every, spare):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout), link.group)
        last = self._term.epoch.members if self._term is not None else ()
        previous = tuple(last.index(name) if name in last else -1 for name in members)
        logger.info("Epoch %d: rank %d of %s.", number, rank, ", ".join(members))
        return _Term(Epoch(number, members, rank, previous, spare.group), every, spare)

    def _end_term(self, why: str) -> None:
        if self._term is not None:
            self._term.fail(why)

    def _dissolve(self, why: str) -> None:
        """End the process groups, for good."""
        self._end_term(why)
        if self._term is not None and not self._term.ended:
            self._term.ended = True
            if dist.is_initialized():
                dist.destroy_process_group()

    def _keep_watch(self, board: Board) -> None:
        """Run the thread: show signs of life, look at those of the others."""
        watch = Watch(self._beat, self._silence)
        try:
            while not self._stop.wait(self._beat):
                board.beat(self.name)
                self._silent = watch.silent(board.beats()) - {self.name}
                if self._term is not None and self._term.failed is None:
                    self._judge(self._term, board)
        except RuntimeError as error:
            self._end_term(f"the store does not answer: {error}")

    def _judge(self, term: _Term, board: Board) -> None:
        """Find out whether the epoch is over, and who wants to join or leave."""
        number, members = term.epoch.number, term.epoch.members
        latest, _ = board.latest()
        wants = board.wants()
        planned = term.planned(wants, self._silent)
        others = [name for name in members if name != self.name]
        silent = [name for name in others if name in self._silent]
        gone = [name for name in others if wants.get(name) == GONE]
        ahead = [name for name in others if wants.get(name, 0) > number]
        if latest > number:
            term.fail(f"epoch {latest} was agreed on")
        elif silent:
            term.fail(f"no sign of life of {', '.join(silent)} for {self._silence:g} s")
        elif term.behind(gone + ahead, _GRACE_SECONDS if planned else 0):
            said = [f"{name} has left" for name in gone]
            term.fail(", ".join(said + [f"{name} makes a new process group" for name in ahead]))


@dataclass
class _Term:
    """An epoch while this process is in it. Two threads use it; ``fail`` may be called by both."""

    epoch: Epoch
    whole: Links
    spare: Links
    newcomers: bool = False
    departures: bool = False
    failed: str | None = None
    ended: bool = False  # the process groups are destroyed
    _going_since: float = math.inf
    _lock: Lock = field(default_factory=Lock)

    def fail(self, why: str) -> None:
        """End every wait in the process groups, the first time it is called."""
        with self._lock:
            if self.failed is not None:
                return
            self.failed = why
            self.whole.cut()
            self.spare.cut()
        logger.info("Epoch %d is over: %s.", self.epoch.number, why)

    def replace_spare(self, spare: Links) -> None:
        """Have another process group end with the epoch."""
        with self._lock:
            self.spare = spare
            if self.failed is not None:  # meanwhile
                spare.cut()

    def planned(self, wants: dict[str, int], silent: frozenset[str]) -> bool:
        """Take in who wants to join or leave; return whether that is a reason to regroup."""
        number, members = self.epoch.number, self.epoch.members
        self.newcomers = any(
            want > number and name not in members and name not in silent
            for name, want in wants.items()
        )
        self.departures = any(wants.get(name) == LEAVES for name in members)
        return self.newcomers or self.departures

    def behind(self, going: list[str], grace_seconds: float) -> bool:
        """Whether other members have been going for longer than may be."""
        now = time.monotonic()
        self._going_since = min(self._going_since, now) if going else math.inf
        return now - self._going_since >= grace_seconds
