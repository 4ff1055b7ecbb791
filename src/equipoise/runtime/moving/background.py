"""Moving experts while the model serves."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.checks import check_number
from equipoise.migration import Migration
from equipoise.runtime.members.agreement import gather
from equipoise.runtime.moving.store import SlotStore, device_of
from equipoise.runtime.moving.transfer import (
    LayerMove,
    Outcome,
    check_migration,
    rows_that_move,
)

_EXIT_SECONDS = 5.0  # that threads have to end before the interpreter does


class BackgroundTransfer:
    """The transfer of ``transfer.py`` in a thread, one layer at a time, during forward passes.

    The thread gathers and checks a layer in its own buffer, over its own process group. Between
    forward passes every rank calls ``commit``, which writes the layer on all ranks or on none.
    Layers in which nothing moves are skipped. The constructor is collective::

        moving = BackgroundTransfer(migration, model.layers, group=spare)
        while not moving.done:
            model.step(...)
            moving.commit()
        moving.close()

    An error in the thread, also a time-out of its process group, ends the transfer but not serving.

    Parameters
    ----------
    migration, layers
        See ``transfer``.
    group
        Process group of the same ranks as the layers', which nothing else uses meanwhile.
    bytes_per_second
        Highest average rate at which this rank sends; ``None``: no limit.

    Raises
    ------
    EquipoiseError
        What ``transfer`` raises; and a limit that is not positive.
    """

    def __init__(
        self,
        migration: Migration,
        layers: Sequence[SlotStore],
        *,
        group: dist.ProcessGroup,
        bytes_per_second: float | None = None,
    ) -> None:
        self._stop = Event()
        self._pace = None
        if bytes_per_second is not None:
            check_number("bytes_per_second", bytes_per_second, low=1, high=float("inf"))
            self._pace = Throttle(bytes_per_second, wait=self._stop.wait)
        check_migration(migration, layers)
        self.migration = migration
        self._group = group
        self._moves = [LayerMove(migration, r, layers[r]) for r in rows_that_move(migration)]
        self._layers_group = layers[0].group
        self._device = device_of(layers[0])
        self._moved: list[int] = []
        self._failures: tuple[str, ...] = ()
        self._gathered: SimpleQueue[_Gathered] = SimpleQueue()
        self._consumed: SimpleQueue[None] = SimpleQueue()
        self._ready: _Gathered | None = None
        self._orderly = False
        self._thread = Thread(target=self._work, name="equipoise-transfer", daemon=True)
        self._thread.start()
        _transfers.add(self)

    @property
    def done(self) -> bool:
        """Whether all is moved or nothing more will be; the same on every rank."""
        return self._stop.is_set() or len(self._moved) == len(self._moves)

    @property
    def outcome(self) -> Outcome:
        """Outcome so far: what was moved, and what failed."""
        return Outcome(tuple(self._moved), self._failures)

    @property
    def orderly(self) -> bool:
        """Whether the thread on this rank has ended and left the process group free for other use.

        False after an error that broke off an exchange of messages.
        """
        return self._orderly and not self._thread.is_alive()

    def commit(self) -> int | None:
        """Write the next layer if it is ready on all ranks.

        Every rank calls it between the same forward passes; it takes one collective until ``done``.

        Returns
        -------
        The model's number of the layer that serves its new placement from now on, if any.
        """
        if self.done:
            return None
        state = self._agreed_state()
        if state == _State.FAILED:
            self._give_up()
        if state != _State.READY:
            return None
        assert self._ready is not None  # the state of all ranks includes this one
        move = self._moves[len(self._moved)]
        move.commit(self._ready.weights)
        _finish(self._device)  # before the other thread uses the memory again
        self._moved.append(move.layer.layer_id)
        self._ready = None
        self._consumed.put(None)
        return move.layer.layer_id

    def close(self) -> None:
        """End the transfer where it is and wait for the thread, at most a time-out.

        Afterwards the process group is free for other use. A transfer that is not done has to be
        closed on all ranks after the same ``commit``.
        """
        self.abandon()
        self._thread.join()

    def abandon(self) -> None:
        """End the transfer where it is without waiting: see ``orderly``.

        A process that ends waits for the thread, at most 5 seconds.
        """
        self._stop.set()
        self._consumed.put(None)

    def _agreed_state(self) -> _State:
        """The least advanced state of all ranks."""
        least = torch.tensor(int(self._own_state()), device=self._device)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._layers_group)
        return _State(int(least))

    def _own_state(self) -> _State:
        if self._ready is None:
            try:
                self._ready = self._gathered.get_nowait()
            except Empty:
                if self._thread.is_alive():
                    return _State.WAITING
                rank = dist.get_rank(self._layers_group)
                self._ready = _Gathered({}, [f"Rank {rank}: the thread of the transfer has died."])
        return _State.FAILED if self._ready.wrong else _State.READY

    def _give_up(self) -> None:
        wrong = self._ready.wrong if self._ready is not None else []
        every = gather(wrong, list[str], self._layers_group)
        self._failures = tuple(text for texts in every for text in texts)
        self._ready = None
        self.abandon()

    def _work(self) -> None:
        """Run the thread: gather a layer, publish it, wait until it is consumed."""
        with _own_stream(self._device):
            for move in self._moves:
                gathered = self._gather(move)
                self._gathered.put(gathered)
                self._consumed.get()
                if self._stop.is_set():
                    break
        self._orderly = not (self._moves and gathered.broken)

    def _gather(self, move: LayerMove) -> _Gathered:
        try:
            if move is self._moves[0]:
                # NCCL opens connections when all ranks first use a process group together.
                dist.all_reduce(torch.zeros((), device=self._device), group=self._group)
            return _Gathered(*move.stage(self._group, self._pace))
        except Exception as error:  # of any kind: all ranks have to be told
            where = f"Rank {move.layer.rank}, layer {move.layer.layer_id}"
            return _Gathered({}, [f"{where}: {error}"], broken=True)


_transfers: WeakSet[BackgroundTransfer] = WeakSet()


@atexit.register
def _end_threads() -> None:
    """End transfers that nobody has closed before the interpreter ends.

    A thread that returns from torch after the interpreter has ended aborts the process (SIGABRT).
    """
    transfers, until = tuple(_transfers), time.monotonic() + _EXIT_SECONDS
    for transfer in transfers:
        transfer.abandon()
    for transfer in transfers:
        transfer._thread.join(max(0.0, until - time.monotonic()))


@dataclass(frozen=True)
class _Gathered:
    """The result of ``stage``; ``broken`` if it raised."""

    weights: dict[str, Tensor]
    wrong: list[str]
    broken: bool = False


class _State(IntEnum):
    """The progress of a rank with a layer; the least advanced rank decides."""

    FAILED = 0
    WAITING = 1
    READY = 2


@dataclass
class Throttle:
    """Limits the average rate of sending since the first message.

    Parameters
    ----------
    bytes_per_second
        Highest average rate.
    wait
        Function that waits for a number of seconds.
    clock
        Function that returns the time in seconds.
    """

    bytes_per_second: float
    wait: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _free_at: float = field(default=float("-inf"), init=False)

    def __call__(self, sent_bytes: int) -> None:
        """Take in the bytes of a message and wait until they fit the rate."""
        now = self.clock()
        self._free_at = max(self._free_at, now) + sent_bytes / self.bytes_per_second
        self.wait(self._free_at - now)


def _own_stream(device: torch.device) -> AbstractContextManager[object]:
    """A CUDA stream other than that of the forward passes; nothing on other devices."""
    if device.type == "cuda":
        cuda: Any = torch.cuda  # torch does not annotate all of it
        return cast(AbstractContextManager[object], cuda.stream(cuda.Stream(device)))
    return nullcontext()


def _finish(device: torch.device) -> None:
    """Wait until the device has finished the work that this thread has queued."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
