"""Starting processes that serve together on this machine, and making sure that they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Self

import torch.distributed as dist

from equipoise.errors import EquipoiseError

_LAST_WORDS = 4096  # bytes
_SPAWN = multiprocessing.get_context("spawn")


def local_store() -> Any:
    """Start a ``TCPStore`` on a free ``port``, for processes of this machine only."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        return dist.TCPStore(  # type: ignore[attr-defined]  # not in the module's __all__
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=server.detach(),
        )


class Processes:
    """Processes that each run a function, for as long as the ``with`` block lasts.

    Each is spawned into a session of its own: Ctrl-C reaches the caller only, and processes that it
    has started end with it. All end when the block is left, even those that ignore SIGTERM, and
    when the caller is killed. Their standard output and error do not reach the caller's terminal;
    ``ended`` has the last line.

    Parameters
    ----------
    target
        Function of a module, called with each mapping of ``calls`` as keyword arguments, which have
        to be picklable. An ``EquipoiseError`` ends its process with status 2 and one line.
    calls
        Keyword arguments by the name of the process.
    grace_seconds
        Time from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        target: Callable[..., object],
        calls: Mapping[str, Mapping[str, Any]],
        *,
        grace_seconds: float = 3.0,
    ) -> None:
        self._target, self._calls, self._grace = target, calls, grace_seconds
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        """Start them."""
        try:
            resource_tracker.ensure_running()  # here, so that Ctrl-C is ignored
            with _ctrl_c_held():  # children inherit it
                for name, call in self._calls.items():
                    self._children[name] = _Child.start(self._target, name, call)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End them: ask, wait, kill, and kill the processes that they have started."""
        children = self._children.values()
        try:
            for child in children:
                child.process.terminate()
            deadline = time.monotonic() + self._grace
            for child in children:
                child.wait_until(deadline)
        finally:
            for child in children:
                child.kill()

    @property
    def count(self) -> int:
        """Number of processes that were started."""
        return len(self._children)

    def ended(self) -> dict[str, str]:
        """Reason of each process that has ended: its status or signal, and its last line."""
        for child in self._children.values():
            child.listen()
        return {name: c.why for name, c in self._children.items() if not c.process.is_alive()}


class _Child:
    """A process and our end of its standard output and error."""

    def __init__(self, process: BaseProcess, output: Connection) -> None:
        self.process, self._output = process, output
        self._said = b""

    @classmethod
    def start(cls, target: Callable[..., object], name: str, call: Mapping[str, Any]) -> _Child:
        ours, theirs = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_run, args=(target, dict(call), theirs), name=name)
        process.start()
        theirs.close()
        os.set_blocking(ours.fileno(), False)
        return cls(process, ours)

    def listen(self) -> None:
        """Read what the process has written; a full pipe would block it."""
        with suppress(BlockingIOError):
            while more := os.read(self._output.fileno(), 1 << 16):
                self._said = (self._said + more)[-_LAST_WORDS:]

    @property
    def why(self) -> str:
        code = self.process.exitcode or 0
        status = (
            f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        )
        lines = self._said.decode(errors="replace").strip().splitlines()
        return ": ".join([status, *lines[-1:]])

    def wait_until(self, deadline: float) -> None:
        while self.process.is_alive() and time.monotonic() < deadline:
            self.listen()
            self.process.join(0.05)

    def kill(self) -> None:
        """End the process and those that it has started."""
        self.process.kill()
        assert self.process.pid is not None
        with suppress(ProcessLookupError):  # it has no session yet, or nothing is left in it
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self._output.close()


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(target: Callable[..., object], call: dict[str, Any], output: Connection) -> None:
    """Run the function in the process."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        target(**call)
    except EquipoiseError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
