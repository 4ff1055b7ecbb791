"""Process groups that can be ended while somebody waits in them.

What torch 2.13 with gloo does, as measured, and what follows from it here:

- When a peer is killed, a collective that waits for *it* raises at once, since its connections
  close. One that waits for a live peer goes on waiting.
- When a peer is stopped, a collective raises after the time-out of the group; a wait for a
  point-to-point message has no time-out at all.
- ``abort()`` of gloo's group, called by another thread, ends none of these waits. Shutting the
  group's connections down ends all of them at once, on both ends. So the sockets that making a
  group has opened are remembered, and shut down when the group is over.
- ``destroy_process_group`` returns at once after all of this, threads that still wait included,
  and the next ``init_process_group`` on a fresh prefix of the store works.
- The number of the groups that a process has tried to make is part of the keys under which it
  looks for the others; after a failed attempt it has to be put back (``forget_groups``).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist


@dataclass
class Links:
    """A process group, and our own handles of the connections that making it has opened."""

    group: dist.ProcessGroup
    sockets: list[socket.socket]

    @classmethod
    def made(cls, make: Callable[[], dist.ProcessGroup | None]) -> Links:
        """Make a group; every member does it at the same time."""
        before = _tcp_sockets()
        served = {one.getsockname()[1] for one in before.values() if _listens(one)}
        for one in before.values():
            one.close()
        group = make()
        assert group is not None  # this process is in it
        ours = []
        for key, one in _tcp_sockets().items():
            # What a server of this process has accepted meanwhile is not the group's.
            if key in before or _listens(one) or one.getsockname()[1] in served:
                one.close()
            else:
                ours.append(one)
        return cls(group, ours)

    def cut(self) -> None:
        """Have all that waits in the group raise, here and at the other ends."""
        for connection in self.sockets:
            with suppress(OSError):  # the other end was first
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.sockets = []
        self.group.abort()  # for backends that have other connections than sockets


def forget_groups() -> None:
    """Put torch in the state of a process that has made no group yet, after a failed attempt.

    The numbers that it gives groups are part of the keys under which processes meet. A failed
    attempt counts, and only the end of a default group starts them anew.
    """
    if not dist.is_initialized():
        alone = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it
        dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
    dist.destroy_process_group()


def _tcp_sockets() -> dict[str, socket.socket]:
    """Handles, to be closed, of this process's TCP sockets by numbers that are used only once."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed by another thread meanwhile
            target = str(entry.readlink())
            if target.startswith("socket:") and target not in found:
                one = socket.socket(fileno=os.dup(int(entry.name)))
                if one.family in (socket.AF_INET, socket.AF_INET6):
                    found[target] = one
                else:
                    one.close()
    return found


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
