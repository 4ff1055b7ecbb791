"""The first tutorial: its commands run as printed, and print what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from equipoise.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial" / "first-plan.md").read_text("utf-8")
BLOCK = re.compile(r"(?ms)^```sh\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?")
ENGINE = re.compile(r"(?m)^\| [^|]+ \| `(--for [^`]+)` \| `([^`]+)` \|$")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs commands in an empty folder, and gives what they print."""
    monkeypatch.chdir(tmp_path)

    def printed(commands: str) -> str:
        text = commands.replace("\\\n", " ").replace("$TRACE", "sample")
        for command in text.splitlines():
            name, *arguments = shlex.split(command)
            assert name == "equipoise"
            assert main(arguments) == 0, command
        return _one_line(capsys.readouterr().out)

    return printed


def test_commands_print_what_the_page_shows(run):
    named, *blocks = BLOCK.findall(PAGE)
    assert named[0] == "TRACE=sample\n"
    assert len(blocks) == 6
    for commands, shown in blocks:
        rest = run(commands)
        for part in shown.split("\n...\n"):
            assert _one_line(part) in rest
            rest = rest.partition(_one_line(part))[2]


def test_every_engine_is_started_with_the_flags_of_the_table(run):
    rows = ENGINE.findall(PAGE)
    assert len(rows) == 4
    for options, flags in rows:
        command = f"equipoise plan $TRACE --ranks 8 --redundant 16 --planner greedy {options}"
        assert flags in run(command)
        assert Path(options.split()[-1]).is_file()


def _one_line(text: str) -> str:
    return " ".join(text.split())
