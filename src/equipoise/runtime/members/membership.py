"""Who serves: process groups that are made anew when a process dies, leaves or joins.

There is no transport of our own in it: processes meet in a ``torch.distributed`` store (``board``),
and groups end when their connections are cut (``links``).
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
_GRACE_SECONDS = 1.0  # between the first and the last member that regroup as planned
_ATTEMPTS = 3  # at making the groups of the same members
_MOST_SECONDS = 1e6  # that a time can be

logger = logging.getLogger("equipoise.runtime")


@dataclass(frozen=True)
class Epoch:
    """A time in which the same processes serve together.

    Parameters
    ----------
    number
        From 1; numbers grow, and no two lists of members have the same.
    members
        Names in the order of ranks: those of the epoch before in their order, then newcomers by
        name.
    rank
        Of this process.
    previous
        For each member its rank in this process's last epoch, -1 if it was not in it.
    spare
        All members in a process group for transfers, which nothing else uses, until
        ``renew_spare`` answers another. The default process group is for the rest.
    """

    number: int
    members: tuple[str, ...]
    rank: int
    previous: tuple[int, ...]
    spare: dist.ProcessGroup


class Membership:
    """The part of one process in deciding who serves, and in which process groups.

    ::

        membership = Membership(store, "host-3")
        while serving:
            epoch = membership.form(expected=4)   # makes the default process group
            ...                                   # until membership.failed, or a collective raises
        membership.close()

    A thread shows life in the store and watches the others. When a member dies, is silent or
    leaves, or makes a new group, ``failed`` says so and the connections of both groups are shut
    down: whatever waits in them raises. All members then call ``form`` again; who does not show
    up in it for half the time-out stays out. One that was stopped and comes back finds itself
    left behind, and gets in again as a newcomer does: by ``form``, as soon as the others regroup.

    For each number one process, the first of those that want to be in, writes down the members;
    only the first such list of a number counts, whoever else believes to be that process.

    Parameters
    ----------
    store
        Where the processes meet. It has to outlive them: of its owner's death they do not recover.
        A ``FileStore`` is made without a number of processes, or it deletes its file early; it
        grows with every beat, and a process stopped at the wrong moment keeps it locked.
    name
        For people to read; a few characters are added to tell processes apart.
    timeout_seconds
        Of collectives, and the longest that ``form`` waits without getting in.
    silence_seconds
        Without a sign of life after which a process counts as dead.
    beat_seconds
        Between signs of life, and between looks at those of others.
    backend
        Of both process groups.
    secret
        What all processes share, and sign with who they are and who serves; whoever does not have
        it gets into no group. ``None``: whoever reaches the store can join.

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
        """Why the last epoch is over; ``None`` while it is well."""
        return self._term.failed if self._term is not None else None

    @property
    def newcomers(self) -> bool:
        """Whether a process that is not in this epoch waits to be."""
        return self._term is not None and self._term.newcomers

    @property
    def departures(self) -> bool:
        """Whether a member of this epoch has said that it leaves."""
        return self._term is not None and self._term.departures

    def form(self, expected: int = 1) -> Epoch:
        """Agree on the next epoch and make its process groups; tries on until they stand.

        Every member of the last epoch calls it, and every process that wants to join.

        Parameters
        ----------
        expected
            Members that the very first epoch waits for; later ones do not look at it.

        Raises
        ------
        EquipoiseError
            No epoch with this process came about in ``timeout_seconds``; its group cannot be made;
            the store does not answer; another default process group is there; this process is new,
            and those who serve have another secret.
        """
        check_count("expected", expected)
        if self._stop.is_set():
            raise EquipoiseError("This membership is closed; make another.")
        if dist.is_initialized() and (self._term is None or self._term.ended):
            raise EquipoiseError("There is a default process group already; destroy it first.")
        try:
            if self._term is not None and not self._term.planned(self._board.wants(), self._silent):
                self._term.fail("this process makes a new group")
            return self._form(expected)
        except BaseException as error:
            with suppress(RuntimeError):
                self._board.want(self.name, 0)  # or the others would wait for it
            if isinstance(error, RuntimeError):
                raise EquipoiseError(f"The store does not answer: {error}") from error
            raise

    def renew_spare(self) -> dist.ProcessGroup:
        """Another group in place of ``Epoch.spare``, in which a transfer has failed (collective).

        Whatever waits in the old one raises; point-to-point messages of gloo have no time-out.

        Raises
        ------
        EquipoiseError
            There is no epoch.
        RuntimeError
            The epoch is over, or a member did not come, as from any collective.
        """
        term = self._term
        if term is None:
            raise EquipoiseError("There is no group to renew; form an epoch first.")
        if term.failed is not None:  # which this process may not have noticed yet
            raise PeerError(f"The epoch is over: {term.failed}.")
        term.spare.cut()
        dist.destroy_process_group(term.spare.group)
        spare = Links.made(lambda: dist.new_group(timeout=timedelta(seconds=self._timeout)))
        term.replace_spare(spare)
        return spare.group

    def leave(self) -> None:
        """Say that this process leaves: it serves on until the others regroup, and then closes."""
        self._board.want(self.name, LEAVES)

    def close(self) -> None:
        """Be gone, for the others to see, and end the process groups."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        with suppress(RuntimeError):  # the store may be gone
            self._board.want(self.name, GONE)
        self._dissolve("this process has left")
        # Threads of a group that is still referred to when the interpreter ends can abort it.
        self._term = None

    def _form(self, expected: int) -> Epoch:
        failures: Counter[tuple[str, ...]] = Counter()
        while True:
            number, members = self._agree(expected)
            self._dissolve(f"epoch {number} follows")
            try:
                self._term = self._make_groups(number, members)
                return self._term.epoch
            except RuntimeError as error:  # somebody has died meanwhile, most likely
                logger.warning("Epoch %d did not come about: %s", number, error)
                forget_groups()
                failures[members] += 1
                if failures[members] == _ATTEMPTS:
                    raise EquipoiseError(
                        f"The group of {', '.join(members)} cannot be made: {error}"
                    ) from error

    def _agree(self, expected: int) -> tuple[int, tuple[str, ...]]:
        """Wait for a list of members, a newer one than is known, that has this process in it."""
        tried, members = self._board.latest()
        number, wanted, since = tried, 0, time.monotonic()
        while number == tried or self.name not in members:
            if self._board.strangers and not number:  # and of those with the secret nobody serves
                raise EquipoiseError(
                    f"{self.name} is refused: those who serve at this store have another secret, "
                    f"or none. Give all processes the same in {VARIABLE}."
                )
            if number > tried:  # without this process: it is for the next
                tried, since = number, time.monotonic()
            if wanted != self._board.next_number:
                wanted = self._board.next_number
                self._board.want(self.name, wanted)
            elif (waited := time.monotonic() - since) > self._timeout:
                raise EquipoiseError(
                    f"{self.name} got into no group in {self._timeout:g} s; the last is epoch "
                    f"{tried} of {len(members)} members. Call form again to wait on."
                )
            else:
                self._propose(wanted, members, expected, patient=waited < self._timeout / 2)
                time.sleep(_POLL_SECONDS)
            number, members = self._board.latest()
        return number, members

    def _propose(self, number: int, old: tuple[str, ...], expected: int, *, patient: bool) -> None:
        """Write down the members of an epoch, if it is up to this process and time for it."""
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
        """The process groups of an epoch; all its members do it at the same time.

        They were alive a moment ago, so the time to wait for them is short until all are there.
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
        """The thread: show life, look at the others."""
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
        """Whether the epoch is over, and who wants in or out."""
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
            term.fail(", ".join(said + [f"{name} makes a new group" for name in ahead]))


@dataclass
class _Term:
    """An epoch while this process is in it. Two threads use it; ``fail`` may be called by both."""

    epoch: Epoch
    whole: Links
    spare: Links
    newcomers: bool = False
    departures: bool = False
    failed: str | None = None
    ended: bool = False  # the groups are destroyed
    _going_since: float = math.inf
    _lock: Lock = field(default_factory=Lock)

    def fail(self, why: str) -> None:
        """End what waits in the groups, the first time it is called."""
        with self._lock:
            if self.failed is not None:
                return
            self.failed = why
            self.whole.cut()
            self.spare.cut()
        logger.info("Epoch %d is over: %s.", self.epoch.number, why)

    def replace_spare(self, spare: Links) -> None:
        """Let another group end with the epoch."""
        with self._lock:
            self.spare = spare
            if self.failed is not None:  # meanwhile
                spare.cut()

    def planned(self, wants: dict[str, int], silent: frozenset[str]) -> bool:
        """Take in who wants in or out; whether there is a reason to regroup without a failure."""
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
