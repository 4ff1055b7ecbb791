"""Every command that writes replaces regular files only, and refuses the rest before any work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from equipoise.cli import main
from tests.cli.samples import write_sample

PIPE = "new.json"
COMMANDS = {
    "report": "report run.safetensors --ranks 2 --html",
    "convert a recording": "convert run.safetensors --to equipoise -o",
    "convert to a folder": "convert run.safetensors --to trtllm -o",
    "convert a map": "convert map.json --to ascend -o",
    "plan": "plan run.safetensors --ranks 2 --planner contiguous --even-if-worse --for ascend -o",
    "diff": "diff map.json map.json --match --for ascend -o",
    "failover": "failover map.json run.safetensors --to-ranks 3 --for ascend -o",
    "failover to a folder": "failover map.json run.safetensors --lost rank --for ascend -o",
    "capture": "capture model --prompts prompts.txt -o",
}
FOLDERS = ("convert to a folder", "failover to a folder")


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("run.safetensors", "map.json"):
        write_sample(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("what", COMMANDS)
def test_a_pipe_is_refused_and_stays(what, here, capsys):
    os.mkfifo(PIPE)
    before = {path.name for path in here.iterdir()}
    assert main([*COMMANDS[what].split(), PIPE]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"equipoise: {PIPE}")
    assert err.count("\n") == 1
    assert stat.S_ISFIFO(os.lstat(PIPE).st_mode)
    assert {path.name for path in here.iterdir()} == before


@pytest.mark.parametrize("what", [what for what in COMMANDS if what != "capture"])
def test_a_link_to_nothing_makes_its_target(what, here, capsys):
    link = here / PIPE
    link.symlink_to("target.json")
    assert main([*COMMANDS[what].split(), PIPE]) == 0
    assert link.readlink() == Path("target.json")
    target = here / "target.json"
    assert target.is_dir() if what in FOLDERS else target.is_file()
    assert {path.name for path in here.iterdir()} == {
        *("run.safetensors", "map.json", PIPE, "target.json")
    }


@pytest.mark.parametrize("what", COMMANDS)
def test_the_sign_for_standard_output_is_no_file(what, here, capsys):
    assert main([*COMMANDS[what].split(), "-"]) == 2
    assert capsys.readouterr().err
    assert not (here / "-").exists()
