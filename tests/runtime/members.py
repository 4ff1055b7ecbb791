"""Real processes that serve in epochs, to be killed, stopped and made to leave by a test."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from equipoise.errors import EquipoiseError
from equipoise.runtime.members import membership as membership_module
from equipoise.runtime.members.board import Board
from equipoise.runtime.members.membership import Membership

TIMES = {"timeout_seconds": 20.0, "silence_seconds": 1.0, "beat_seconds": 0.1}
PATIENCE_SECONDS = 60  # a busy machine is slow, and only a failing test waits this long


@dataclass(frozen=True)
class Formed:
    """What a process tells of an epoch that it is in."""

    number: int
    members: tuple[str, ...]
    rank: int
    previous: tuple[int, ...]
    seconds: float  # the clock is the same in all processes of a machine
    threads: int
    files: int


class Members:
    """Processes by number, and all that they have told."""

    def __init__(self, folder: Path | None = None) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["torch.distributed", "equipoise.runtime.members.membership"]
        )
        self.path = None if folder is None else str(folder / "store")
        self.store: Any = self.open_store(self.path, None)
        self.processes: dict[int, Any] = {}
        self._pipes: dict[int, Connection] = {}
        self.formed: dict[int, list[Formed]] = {}
        self.ends: dict[int, list[str]] = {}  # why epochs were over, and errors

    @staticmethod
    def open_store(path: str | None, port: int | None) -> Any:
        if path is not None:
            return dist.FileStore(path)
        return dist.TCPStore("127.0.0.1", port or 0, None, port is None, wait_for_workers=False)

    def start(self, *numbers: int, expected: int = 1, how: str = "gather", **times: float) -> None:
        for number in numbers:
            ours, theirs = self._context.Pipe()
            where = (self.path, None) if self.path else (None, self.store.port)
            process = self._context.Process(
                target=_live,
                args=(number, where, expected, how, TIMES | times, theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            self.processes[number], self._pipes[number] = process, ours
            self.formed[number], self.ends[number] = [], []

    def send(self, number: int, text: str) -> None:
        self._pipes[number].send(text)

    def kill(self, *numbers: int) -> float:
        for number in numbers:
            os.kill(self.processes[number].pid, signal.SIGKILL)
        return time.monotonic()

    def stop(self, number: int) -> None:
        os.kill(self.processes[number].pid, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        os.kill(self.processes[number].pid, signal.SIGCONT)

    def together(self, *numbers: int, least: int = 1) -> Formed:
        """Wait until these, and nobody else, are in one epoch; what the first tells of it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.listen(0.1)
            last = [self.formed[number][-1] for number in numbers if self.formed[number]]
            if (
                len(last) == len(numbers)
                and len({epoch.members for epoch in last}) == 1
                and len({epoch.number for epoch in last}) == 1
                and len(last[0].members) == len(numbers)
                and last[0].number >= least
            ):
                return last[0]
        raise AssertionError(f"never together: {self.formed}, {self.ends}")

    def until(self, number: int, text: str) -> None:
        """Wait until a process has told an end, or an error, with this text."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(text in end for end in self.ends[number]):
            assert time.monotonic() < deadline, (self.formed, self.ends)
            self.listen(0.1)

    def listen(self, seconds: float) -> None:
        for pipe in wait(list(self._pipes.values()), timeout=seconds):
            number = next(n for n, other in self._pipes.items() if other is pipe)
            try:
                told = pipe.recv()
            except (EOFError, ConnectionResetError):  # it has ended, perhaps with words unread
                del self._pipes[number]
                continue
            (self.formed if isinstance(told, Formed) else self.ends)[number].append(told)

    def close(self) -> None:
        """Make sure that nobody has seen two lists of members for one number."""
        for process in self.processes.values():
            process.kill()
            process.join()
        while self._pipes:
            self.listen(0.1)
        lists: dict[int, set[tuple[str, ...]]] = {}
        for epochs in self.formed.values():
            numbers = [epoch.number for epoch in epochs]
            assert numbers == sorted(set(numbers))
            for epoch in epochs:
                lists.setdefault(epoch.number, set()).add(epoch.members)
        assert all(len(members) == 1 for members in lists.values()), lists


def _live(
    number: int, where: tuple, expected: int, how: str, times: dict[str, float], pipe: Connection
) -> None:
    torch.set_num_threads(1)
    membership_module._GRACE_SECONDS = times["silence_seconds"]  # patient where the test is
    orders = _Orders(pipe)
    if how.startswith("dies"):
        _die_once(how)
    membership = Membership(Members.open_store(*where), f"m{number}", **times)
    last: tuple[str, ...] = ()
    while not orders.done:
        try:
            epoch = membership.form(expected)
        except EquipoiseError as error:
            pipe.send(str(error))
            if "does not answer" in str(error):
                return
            continue
        assert epoch.members[epoch.rank] == membership.name
        assert epoch.previous == tuple(
            last.index(name) if name in last else -1 for name in epoch.members
        )
        last = epoch.members
        tasks, files = (len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("task", "fd"))
        told = (epoch.number, epoch.members, epoch.rank, epoch.previous)
        pipe.send(Formed(*told, time.monotonic(), tasks, files))
        try:
            _serve(membership, epoch, how, orders)
        except RuntimeError:
            pipe.send("raised")
        pipe.send(f"over: {membership.failed}")
    membership.close()
    pipe.send("closed")


def _serve(membership: Membership, epoch: Any, how: str, orders: _Orders) -> None:
    """Steps in which rank 0 says whether to go on, until it does not or the epoch is over."""
    while membership.failed is None:
        if orders.take("stall"):
            time.sleep(PATIENCE_SECONDS)
        if orders.take("leave"):
            membership.leave()
            orders.done = True
        if how == "rest":
            if membership.newcomers or membership.departures:
                return
            time.sleep(0.01)
            continue
        regroup = membership.newcomers or membership.departures or orders.take("regroup")
        say = torch.tensor(2 if orders.take("renew") else int(regroup))
        dist.broadcast(say, 0)
        if say.item() == 1:
            return
        if say.item() == 2:
            orders.tell(_renew(membership, epoch))
        _step(epoch, how)
        time.sleep(0.005)


def _step(epoch: Any, how: str) -> None:
    size = len(epoch.members)
    if how == "all_to_all":
        dist.all_to_all_single(torch.zeros(2 * size), torch.zeros(2 * size))
    elif how == "thread":
        thread = threading.Thread(target=_ring, args=(epoch,))
        thread.start()
        thread.join()
        dist.barrier()
    else:
        ranks = [torch.zeros(1) for _ in range(size)]
        dist.all_gather(ranks, torch.tensor([float(epoch.rank)]))
        assert [int(rank) for rank in ranks] == list(range(size))


def _ring(epoch: Any) -> None:
    """Send a message on to the next rank, over the spare group."""
    size, into = len(epoch.members), torch.zeros(4)
    if size == 1:
        return
    operations = [
        dist.P2POp(
            dist.isend, torch.ones(4), group=epoch.spare, group_peer=(epoch.rank + 1) % size
        ),
        dist.P2POp(dist.irecv, into, group=epoch.spare, group_peer=(epoch.rank - 1) % size),
    ]
    try:
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    except RuntimeError:
        return
    assert into.tolist() == [1] * 4


def _renew(membership: Membership, epoch: Any) -> str:
    """Renew the spare group while a thread waits in it for a message that never comes."""
    peer = (epoch.rank + 1) % len(epoch.members)
    operation = dist.P2POp(dist.irecv, torch.zeros(1), group=epoch.spare, group_peer=peer)
    ends: list[str] = []

    def wait_for_it() -> None:
        try:
            dist.batch_isend_irecv([operation])[0].wait()
        except RuntimeError:
            ends.append("released")

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    time.sleep(0.2)
    spare = membership.renew_spare()
    thread.join()
    total = torch.ones(1)
    dist.all_reduce(total, group=spare)
    return f"{ends} {int(total)}"


class _Orders:
    """Words of the test to a process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._words, self.done = pipe, [], False

    def tell(self, text: str) -> None:
        self._pipe.send(text)

    def take(self, word: str) -> bool:
        while self._pipe.poll():
            self._words.append(self._pipe.recv())
        if word in self._words:
            self._words.remove(word)
            return True
        return False


def _die_once(how: str) -> None:
    """Have this process die at a certain point of forming an epoch."""

    def die(*args: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def propose_and_die(board: Board, number: int, members: list[str]) -> None:
        write(board, number, members)
        die()

    write = Board.propose
    if how == "dies proposing":
        Board.propose = die
    elif how == "dies having proposed":
        Board.propose = propose_and_die
    elif how == "dies connecting":
        dist.init_process_group = die
