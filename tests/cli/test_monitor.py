"""The command itself: against a real server, in a pipe and on a terminal with keys."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from equipoise.cli import main
from tests.engines.vllm.test_load_stats import FIRST, META, SECOND, write
from tests.report.monitor.servers import exposition, group


@pytest.fixture
def server():
    with group(exposition(4, layers=2)) as serving:
        yield serving


def test_a_line_for_each_look_and_a_summary(server, capsys):
    assert main(["monitor", server.address, "--looks", "2", "--interval", "0.1"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0].startswith("   0:00  Imbalance decode 1.31, chance gives 1.08  4 ranks  map 1")
    assert lines[1].startswith("   0:00  Imbalance")
    assert lines[2].split() == ["map", "seconds", "looks", "imbalance", "chance", "tokens/s"]
    assert lines[3].split()[:4] == ["1", "0", "2", "1.310"]


def test_a_document_a_line(server, capsys):
    assert main(["monitor", server.address, "--looks", "2", "--interval", "0.1", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["ranks"] == second["ranks"] == 4
    assert first["imbalance"] == {"decode": 1.31}


def test_a_growing_file(tmp_path, capsys):
    path = write(tmp_path / "stats.jsonl", META, FIRST, SECOND)
    assert main(["monitor", str(path), "--looks", "1"]) == 0
    assert "Imbalance 1.00, chance gives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere does not exist."),
        ("127.0.0.1:1", "127.0.0.1:1: it does not answer (Connection refused)."),
        ("ftp://host", "is not an address"),
        ("127.0.0.1:1 --ranks 4", "--ranks are for recordings"),
        ("nowhere 127.0.0.1:1", "only addresses can be watched several at a time"),
        ("127.0.0.1:1 --ask nothing://", "is not an address"),
        ("127.0.0.1:1 --interval 0", "--interval"),
        ("127.0.0.1:1 --looks 0", "--looks"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    assert main(["monitor", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


PATIENCE_SECONDS = 60
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A command on a terminal of 80 x 24."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.number, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(inner)
        self.inner = inner
        self.process = subprocess.Popen(
            [sys.executable, "-m", "equipoise", "monitor", *arguments],
            stdin=inner, stdout=inner, stderr=inner, cwd=folder,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
        )  # fmt: skip
        self.seen = ""

    def press(self, key: str, wait_for: str) -> None:
        """Press a key and read until the screen shows a text that was not there before."""
        os.write(self.number, key.encode())
        self.until(wait_for)

    def until(self, text: str) -> None:
        self.seen = ""
        while text not in _COLOUR.sub("", self.seen):
            assert select.select([self.number], [], [], PATIENCE_SECONDS)[0], self.seen
            assert len(self.seen) < 1 << 20, f"{text!r} is not in the last pictures"
            self.seen += os.read(self.number, 1 << 16).decode("utf-8", "replace")

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.number)
        os.close(self.inner)


def test_keys_on_a_terminal(server, tmp_path):
    terminal = Terminal(tmp_path, server.address, "--interval", "0.1")
    try:
        terminal.until("Ranks: load over the mean")
        assert "\x1b[?1049h" in terminal.seen  # a screen of its own
        terminal.press("d", "Imbalance of layer 1 1.11")
        terminal.press("\x1b[B", "Imbalance of layer 0 1.10")
        terminal.press("d", "Imbalance decode 1.31")
        terminal.press("p", "PAUSED")
        terminal.press("l", "Asked for fresh figures at /look.")
        terminal.press("h", "Written to equipoise-monitor-")
        server.text = "\x1b[2Jjunk"
        terminal.press("p", "line 1 is not in")
        terminal.press("q", "tokens/s\r\n")
        assert terminal.process.wait(timeout=PATIENCE_SECONDS) == 0
        assert termios.tcgetattr(terminal.inner) == terminal.before
    finally:
        terminal.close()
    assert "POST /look HTTP/1.0" in server.asked
    (page,) = tmp_path.glob("*.html")
    assert "Imbalance decode 1.31" in page.read_text()


def test_ctrl_c_ends_with_the_summary(server, tmp_path):
    terminal = Terminal(tmp_path, server.address)
    try:
        terminal.until("Events")
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("chance  tokens/s")
        assert terminal.process.wait(timeout=PATIENCE_SECONDS) == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.close()
