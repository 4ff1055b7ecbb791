from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from equipoise.runtime.serving.processes import Processes, local_store
from tests.runtime import children

PATIENCE_SECONDS = 300  # a busy machine takes long to import torch


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def said(*files: Path) -> list[int]:
    """The process ids in these files, once they are there."""
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_all_end_with_the_block_and_those_they_have_started(tmp_path):
    files = [tmp_path / name for name in ("one", "other")]
    calls = {file.name: {"ready": file} for file in files}
    with Processes(children.have_a_child, calls, grace_seconds=0.5) as running:
        grandchildren = said(*files)
        assert (running.count, running.ended()) == (2, {})
        own = [child.process.pid for child in running._children.values()]
    assert not any(map(alive, own))
    wait_for(lambda: not any(map(alive, grandchildren)))  # killed, but nobody here collects them


def test_one_that_ignores_sigterm_is_killed_when_an_error_leaves_the_block(tmp_path):
    calls = {"p": {"ready": tmp_path / "p"}}
    with suppress(KeyboardInterrupt), Processes(children.ignore_sigterm, calls, grace_seconds=0.5):
        (pid,) = said(tmp_path / "p")
        raise KeyboardInterrupt
    assert not alive(pid)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (children.refuse, "ended with status 2: p cannot be used."),
        (children.crash, "ended with status 1: RuntimeError: a defect"),
    ],
)
def test_what_became_of_one_that_has_ended(tmp_path, capfd, target, why):
    with Processes(target, {"p": {"ready": tmp_path / "p"}}) as running:
        wait_for(running.ended)
        assert running.ended() == {"p": why}
    assert capfd.readouterr() == ("", "")


def test_one_that_is_killed_is_named_by_the_signal(tmp_path):
    with Processes(children.sleep, {"p": {"ready": tmp_path / "p"}}) as running:
        (pid,) = said(tmp_path / "p")
        os.kill(pid, signal.SIGKILL)
        wait_for(running.ended)
        assert running.ended() == {"p": "ended by SIGKILL"}


def test_ctrl_c_reaches_the_launcher_only_and_its_death_ends_them(tmp_path):
    command = [sys.executable, "-m", "tests.runtime.children", str(tmp_path / "p")]
    launcher = subprocess.Popen(command, start_new_session=True)
    try:
        (pid,) = said(tmp_path / "p")
        assert os.getpgid(pid) != os.getpgid(launcher.pid)
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(lambda: not alive(pid))


def test_the_store_is_for_this_machine():
    store = local_store()
    store.set("key", "value")
    assert store.get("key") == b"value"
    # Every address in 127/8 is this machine's: one that nobody listens at refuses.
    for address, refuses in (("127.0.0.1", False), ("127.0.0.2", True)):
        with socket.socket() as caller:
            assert bool(caller.connect_ex((address, store.port))) is refuses
