"""What the processes of ``test_launch`` do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from equipoise.errors import EquipoiseError


def sleep(ready: Path) -> None:
    """Wait for ever, having said so."""
    ready.write_text(str(os.getpid()))
    time.sleep(1000)


def ignore_sigterm(ready: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(ready)


def have_a_child(ready: Path) -> None:
    """Leave a process behind that ignores SIGTERM too."""
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", program])
    ready.write_text(str(child.pid))
    time.sleep(1000)


def refuse(ready: Path) -> None:
    raise EquipoiseError(f"{ready.name} cannot be used.")


def crash(ready: Path) -> None:
    print("x" * 200_000)  # more than a pipe holds
    raise RuntimeError("a defect")


def launch_and_wait(ready: Path) -> None:
    """Be a launcher that is going to be killed."""
    from equipoise.runtime.serving.processes import Processes

    with Processes(ignore_sigterm, {"child": {"ready": ready}}):
        time.sleep(1000)


if __name__ == "__main__":
    launch_and_wait(Path(sys.argv[1]))
