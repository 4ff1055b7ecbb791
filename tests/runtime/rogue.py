"""A process that reaches the store of others and wants to run code in theirs."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from equipoise.errors import EquipoiseError
from equipoise.runtime.members.membership import Membership


class Harm:
    """Runs when it is read as a pickle: leaves a file that names the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._folder}/ran-in-$PPID",)


def intrude(port: int, folder: Path, secret: str | None) -> None:
    """Get in as a member if that can be had, and send what does harm; else write to the store.

    Leaves a file that says what came of it.
    """
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    membership = Membership(
        store, "rogue", silence_seconds=2.0, timeout_seconds=20.0, secret=secret
    )
    try:
        epoch = membership.form()
    except EquipoiseError as error:
        _scribble(store)
        (folder / "refused").write_text(str(error))
        time.sleep(1000)  # alive, for the others to see
    else:
        heard: list[Any] = [None] * len(epoch.members)
        with suppress(Exception):  # what the others send is no pickle
            dist.all_gather_object(heard, Harm(folder))
        (folder / "joined").write_text(str(epoch.members))
    os._exit(0)


def _scribble(store: Any) -> None:
    """Write what members would, but for the signature."""
    board = dist.PrefixStore("equipoise", store)
    for number in (2, 3):
        board.set(f"members/{number}", '- ["rogue"]')
    for number in range(5, 8):
        board.set(f"name/{number}", "- rogue")
    board.set("want/rogue", "- 9")
    board.set("beat/rogue", "1")
