"""Names of files that would steer a terminal, and names that none can have."""

from __future__ import annotations

import shutil

import pytest

import equipoise as eq
from equipoise.cli import main

ODD = "a\x1b[31mred\x1b[2J"


@pytest.mark.parametrize(
    "command",
    [
        ["report", f"{ODD}.safetensors", "--ranks", "8"],
        ["report", f"{ODD}.safetensors", "--ranks", "8", "--map", f"{ODD}.json"],
        [
            *("plan", f"{ODD}.safetensors", "--ranks", "8", "--planner", "greedy"),
            *("--for", "equipoise", "-o", f"{ODD}2.json", "--even-if-worse"),
        ],
        ["convert", f"{ODD}.safetensors", "--to", "equipoise", "-o", f"{ODD}3.safetensors"],
        ["convert", f"{ODD}.json", "--to", "trtllm", "-o", f"{ODD}.yaml"],
        ["validate", f"{ODD}.json"],
        ["diff", f"{ODD}.json", f"{ODD}.json"],
        ["report", f"{ODD}.none"],
        ["validate", f"{ODD}.none"],
    ],
)
def test_no_name_of_a_file_steers_the_terminal(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(eq.sample_trace_path(), f"{ODD}.safetensors")
    trace = eq.read_trace(f"{ODD}.safetensors")
    plan = eq.Greedy().plan(eq.Problem(trace, eq.Topology(num_ranks=8), num_slots=40))
    eq.write_map(plan.placement, f"{ODD}.json", format="equipoise")
    main(command)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.out + said.err


def test_a_null_character_is_refused(capsys):
    assert main(["report", "a\0b", "--ranks", "2"]) == 2
    assert "null character" in capsys.readouterr().err
