from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from equipoise.cli import main
from equipoise.cli.commands import demo as module
from equipoise.cli.views import running
from tests.cli import fake_server

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300  # starting a process takes as long as importing torch


@pytest.fixture
def fake(monkeypatch):
    """The demo with two processes that only say they serve."""
    launch, _ = module._runtime()
    monkeypatch.setattr(module, "_runtime", lambda: (launch, fake_server.serve))
    return ["demo", "--processes", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--processes 1", 'Invalid value "1" for --processes. Must be >= 2.'),
        ("--seconds 0", 'Invalid value "0.0" for --seconds. Must be > 0.'),
        ("--seconds nan", 'Invalid value "nan" for --seconds.'),
        ("--metrics-port 70000", 'Invalid value "70000" for --metrics-port.'),
        ("--metrics-host 0.0.0.0", "--metrics-host needs --metrics-port; give both."),
        ("--metrics-details", "--metrics-details needs --metrics-port; give both."),
        ("--metrics-port 65534", "--metrics-port is 65534; 4 processes need one port each"),
        ("--model nowhere", "nowhere: there is no model here (no config.json); give the folder"),
        ("--dispatch fair", "fair"),
        ("--redundant 3", "35 slots do not divide over 4 ranks; nearest legal: 32 slots"),
        ("--redundant 5000", "96 already put every expert on each of 4 ranks"),
        ("--no-balance --redundant 4", "--no-balance has no redundant slots; leave --redundant"),
        ("--balance", "Unknown option: --balance."),
        ("more", "Too many arguments: more."),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("equipoise: ")
    assert message in err
    assert err.count("\n") == 1


def test_lines_in_a_pipe_and_a_table_at_the_end(fake, capsys, monkeypatch):
    monkeypatch.setattr(running, "LINE_SECONDS", 0.5)
    assert main([*fake, "--seconds", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert out.startswith("Compiling kernels; half a minute the first time.\n")
    assert "\nbalance-5m, 2 processes: 0 have started, " in out
    assert "  imbalance 1.50  " in out
    table = out.partition("\n\n")[2].splitlines()
    rows = [line.split()[0] for line in table]  # on a busy machine the first look may come late
    assert rows in (["from", "start", "shift"], ["from", "shift"])


def test_one_document(fake, capsys):
    assert main([*fake, "--seconds", "2", "--json", "--metrics-port", "9400"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    told = {s["domain"]: s["imbalance"] for s in document["stretches"]}
    assert told["tables"] == pytest.approx(1.5)
    assert told.get("docs", 1.1) == pytest.approx(1.1)  # the first look may come after the shift
    assert sum(s["seconds"] for s in document["stretches"]) >= 2
    assert document["ended"] == {}


def test_processes_that_cannot_serve_end_the_demo(fake, capsys):
    assert main([*fake, "--dispatch", "even"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("equipoise: p")
    assert "ended with status 2: not today." in err


@pytest.mark.parametrize(
    ("number", "status", "terminal"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_leaves_nothing_behind(tmp_path, number, status, terminal):
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"  # what is tested, whatever is installed
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm", "PYTHONPATH": paths}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    errors = tmp_path.with_suffix(".stderr")
    command = [sys.executable, __file__, "demo", "--processes", "2"]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=theirs, stderr=stderr, env=environment)
    os.close(theirs)
    try:
        # Two statuses make a speed, and the table; a terminal may show the first one twice.
        speed = rb"[1-9]\d* tokens/s" if terminal else rb"okens/s"
        assert re.search(speed, _read_until(ours, speed)), errors.read_text()
        started = _descendants(process.pid)
        shared = {path for pid in (process.pid, *started) for path in _shared_memory(pid)}
        process.send_signal(number)
        rest = _read_until(ours, None)
        assert process.wait(PATIENCE_SECONDS) == status
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert errors.read_text() == ""
    if terminal:
        assert b"seconds" in rest  # a head of the table, which the picture has not
    assert len(started) >= 2
    deadline = time.monotonic() + PATIENCE_SECONDS  # what is killed is not gone at once
    while any(map(_alive, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Importing torch makes an empty cache folder, one a user, which other programs may be using.
    assert [p for p in tmp_path.iterdir() if not p.name.startswith("torchinductor_")] == []
    assert not any(path.exists() for path in shared)


def test_shared_memory_is_seen_where_it_is_used():
    """What the test above relies on."""
    with closing(SharedMemory(create=True, size=1)) as memory:
        assert Path(f"/dev/shm/{memory.name}") in _shared_memory(os.getpid())
        memory.unlink()
    assert _shared_memory(os.getpid()) == set()


def _read_until(file: int, pattern: bytes | None) -> bytes:
    """What can be read, to the first match of a pattern or the end."""
    said = b""
    while pattern is None or not re.search(pattern, said):
        try:
            more = os.read(file, 4096)
        except OSError:  # the other end of a terminal is closed
            more = b""
        if not more:
            return said
        said += more
    return said


def _descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [below for child in children for below in _descendants(child)]


def _shared_memory(pid: int) -> set[Path]:
    """The files in shared memory that a process has mapped; not those that are unlinked already."""
    with suppress(FileNotFoundError):  # it has just ended
        mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
        places = (line.partition("/dev/shm/")[2] for line in mapped)
        return {Path("/dev/shm", name) for name in places if name and " (deleted)" not in name}
    return set()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    real, _ = module._runtime()
    module._runtime = lambda: (real, fake_server.serve)  # type: ignore[assignment]
    sys.exit(main())
