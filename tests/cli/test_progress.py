"""What is said while work takes long."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from equipoise.cli.views import progress
from equipoise.cli.views.progress import PartsOf, ProgressLog, progress_bar, progress_parts
from tests.cli.samples import write_sample


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_in_ten_seconds_at_most():
    clock, out = Clock(), io.StringIO()
    log = ProgressLog("planning", out, clock)
    for done in range(1, 1001):  # two minutes
        clock.now += 0.125
        log(done, 1000, f"stage {done // 200}")
    lines = out.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[0] == "equipoise: planning: 8%, stage 0, about 2 min left"
    assert lines[7] == "equipoise: planning: 64%, stage 3, about 45 s left"


def test_short_work_is_silent_and_so_is_its_end():
    clock, out = Clock(), io.StringIO()
    log = ProgressLog("reading", out, clock)
    clock.now += 9
    log(1, 2)
    clock.now += 9
    log(2, 2)
    assert out.getvalue() == ""


def test_a_log_before_anything_is_done_promises_nothing():
    clock, out = Clock(), io.StringIO()
    log = ProgressLog("reading", out, clock)
    clock.now += 11
    log(0, 4)
    assert out.getvalue() == "equipoise: reading: 0%\n"


def test_parts_fill_the_whole():
    told: list[tuple[float, str]] = []
    parts = PartsOf(lambda done, total, said="": told.append((done / total, said)))
    for part in range(2):
        parts.begin(part, 2)
        parts(250, 1000, "sum")
        parts(1000, 1000)
    assert [share for share, _ in told] == [0, 0.125, 0.5, 0.5, 0.625, 1]
    assert [said for _, said in told] == ["", "1 of 2: sum", "1 of 2", "", "2 of 2: sum", "2 of 2"]


def test_parts_of_unknown_lengths_have_an_estimate_each(monkeypatch):
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "clock", clock)
    monkeypatch.setattr(sys, "stderr", out)
    with progress_parts("simulating") as begin:
        for name in ("planning", "serving"):
            tell = begin(name)
            clock.now += 20
            tell(1, 4)
    assert out.getvalue().splitlines() == [
        "equipoise: simulating, planning: 25%, about 60 s left",
        "equipoise: simulating, serving: 25%, about 60 s left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_what_is_done(monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("planning [x]") as progress:
        progress(300, 1000, "groups [y], best 1.234")
    assert "planning [x]" in err.getvalue()
    assert "groups [y], best 1.234" in err.getvalue()


def test_a_pipe_gets_nothing_of_short_work(capsys):
    with progress_bar("planning") as progress:
        progress(300, 1000, "groups")
    assert capsys.readouterr() == ("", "")


# The compiler -------------------------------------------------------------------------------------


KERNEL = """
from equipoise.dispatch._compiler import njit

@njit(nogil=True)
def add(a, b):
    return a + b
"""

PROGRAM = """
import sys
from equipoise.cli import say_compiling
from equipoise.compiling import telling_of_compiling

with telling_of_compiling(say_compiling):
    import kernel
    assert kernel.add(1, 2) == 3
    assert kernel.add(1.0, 2.0) == 3
"""

ONCE = "equipoise: compiling kernels, once per installation\n"
ALWAYS = (
    "equipoise: compiling kernels, in every run, since there is no folder to keep them in; "
    "set NUMBA_CACHE_DIR to one\n"
)


@pytest.fixture
def said(tmp_path) -> Callable[[], str]:
    """Run a kernel in a process of its own, with a home for its user; what that says."""
    (tmp_path / "kernel.py").write_text(KERNEL)
    home = f"{tmp_path / 'home'}"
    environment = {"HOME": home, "XDG_CACHE_HOME": home, "NUMBA_CACHE_DIR": ""}

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-B", "-c", PROGRAM],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stderr

    return run


def test_compiling_is_said_once_and_in_the_first_run_only(said):
    assert [said(), said()] == [ONCE, ""]


def test_a_package_that_cannot_be_written_is_compiled_once_for_each_user(said, tmp_path):
    (tmp_path / "__pycache__").write_text("modes do not stop the superuser, a file does")
    assert [said(), said()] == [ONCE, ""]
    assert any((tmp_path / "home").rglob("kernel.add-*.nbi"))


def test_without_a_folder_for_the_cache_kernels_are_compiled_in_every_run(said, tmp_path):
    for folder in ("__pycache__", "home"):
        (tmp_path / folder).write_text("no folder")
    assert [said(), said()] == [ALWAYS, ALWAYS]


@pytest.mark.long
def test_a_command_says_that_it_compiles(tmp_path):
    write_sample(tmp_path, "run.safetensors")
    command = "plan run.safetensors --ranks 2 --redundant 2 --planner greedy"
    for expected in (ONCE, ""):
        done = subprocess.run(
            [sys.executable, "-m", "equipoise", *command.split()],
            cwd=tmp_path,
            env=os.environ | {"NUMBA_CACHE_DIR": f"{tmp_path / 'cache'}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == expected
