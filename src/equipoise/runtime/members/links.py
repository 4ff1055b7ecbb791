"""Process groups that can be ended while a thread waits in them.

What torch 2.13 with gloo was measured to do, and what follows:

- When a peer is killed, a collective that waits for *it* raises at once, since its connections
  close. One that waits for a live peer goes on waiting.
- When a peer is stopped, a collective raises after the time-out of its process group; a wait for a
  point-to-point message has no time-out at all.
- ``abort()`` of a gloo process group, called by another thread, ends none of these waits. Shutting
  its connections down ends all of them at once, on both ends. So we remember the sockets that were
  opened when the process group was made, and shut them down when it is over.
- ``destroy_process_group`` then returns at once, even while threads still wait, and the next
  ``init_process_group`` on a fresh prefix of the store works.
- Processes find each other under keys that contain how many process groups this process has tried
  to make; after a failed attempt that number has to be reset (``forget_groups``).
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
    """A process group, and our own handles of the connections that were opened when it was made."""

    group: dist.ProcessGroup
    sockets: list[socket.socket]

    @classmethod
    def made(cls, make: Callable[[], dist.ProcessGroup | None]) -> Links:
        """Make a process group; every member does it at the same time."""
        before = _tcp_sockets()
        served = {one.getsockname()[1] for one in before.values() if _listens(one)}
        for one in before.values():
            one.close()
        group = make()
        assert group is not None  # this process is in it
        ours = []
        for key, one in _tcp_sockets().items():
            # A connection that a server of this process accepts meanwhile is not the group's.
            if key in before or _listens(one) or one.getsockname()[1] in served:
                one.close()
            else:
                ours.append(one)
        return cls(group, ours)

    def cut(self) -> None:
        """Make every wait in the process group raise, here and at the other ends."""
        for connection in self.sockets:
            with suppress(OSError):  # the other end was first
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.sockets = []
        self.group.abort()  # for backends whose connections are not sockets


def forget_groups() -> None:
    """Reset torch to the state before the first process group, after a failed attempt to make one.

    Processes meet under keys that contain the number of the process group. A failed attempt counts
    too, and only the end of a default process group resets the number.
    """
    if not dist.is_initialized():
        alone = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it
        dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
    dist.destroy_process_group()


def _tcp_sockets() -> dict[str, socket.socket]:
    """Handles of this process's TCP sockets, to be closed, by numbers that are used only once."""
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
