from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise import read_map
from equipoise.engines.formats import MapContext

ROOT = Path(__file__).parents[2]


def torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`examples/serve.py` as its head says to start it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "examples/serve.py"),
            *map(str, arguments),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """Run the example in this process, as the first that torchrun has started, and be refused.

    Returns
    -------
    Last line on standard error.
    """
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "examples" / "serve.py"), run_name="__main__")
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.long
def test_every_request_is_answered_once(tmp_path):
    done = torchrun(2, "--requests", 40, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)["number"] for line in lines) == [*range(40)]


def test_a_map_for_other_processes_is_refused_before_serving(tmp_path):
    path = tmp_path / "map.json"
    path.write_text("{}")
    done = torchrun(2, "--map", path)
    assert done.returncode != 0
    assert re.search(rf"serve.py: error: .*{path}", done.stderr)
    assert done.stderr.count("serve.py: error:") == 1
    assert "Epoch" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--results", "missing"), "There is no folder missing for results; create it first."),
        (("--keep", "missing/map.json"), "There is no folder missing for the map; make it."),
        (("--requests", "-1"), "limit is -1; expected 0 or more"),
        (
            ("--additional-config", '{"gate_eplb": true}'),
            "dynamic_eplb is false by default, and there is no expert_map_path",
        ),
        (
            ("--eplb-config", '{"num_redundant_experts": 3}'),
            "num_redundant_experts: 35 slots do not divide over 2 ranks; nearest legal",
        ),
        (("--load-balancer", "missing.yaml"), "missing.yaml does not exist."),
        (("--load-balancer", "num_slots: 32", "--map", "map.json"), "argument --map: not allowed"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(monkeypatch, capsys, arguments, why):
    assert refusal(monkeypatch, capsys, *arguments).startswith(f"serve.py: error: {why}")


@pytest.mark.long
def test_starts_from_the_map_it_came_to_and_stays(tmp_path):
    path = tmp_path / "map.json"
    done = torchrun(4, "--keep", path)
    assert done.returncode == 0, done.stderr
    assert "Move: moving" in done.stderr
    assert read_map(path, MapContext(num_ranks=4)).num_slots == 40
    written = path.read_bytes()
    done = torchrun(4, "--requests", 256, "--map", path, "--keep", path)
    assert done.returncode == 0, done.stderr
    assert "Move:" not in done.stderr
    assert path.read_bytes() == written


@pytest.mark.long
def test_a_map_recorded_in_a_first_run_is_served_and_stays_in_later_ones(tmp_path):
    record, kept = tmp_path / "eplb.json", tmp_path / "kept.json"
    first = {
        "dynamic_eplb": True, "num_iterations_eplb_update": 64, "gate_eplb": True,
        "num_wait_worker_iterations": 1, "expert_map_record_path": str(record),
        "init_redundancy_expert": 1,
    }  # fmt: skip
    done = torchrun(3, "--requests", 480, "--additional-config", json.dumps(first))
    assert done.returncode == 0, done.stderr
    assert "num_wait_worker_iterations is 1: 30 and more are advised" in done.stderr
    assert "longer than the wait of 1 that was set" in done.stderr
    assert done.stderr.count("Move: moving") == 1
    context = MapContext(num_ranks=3, num_experts=32)
    recorded = read_map(record, context, format="ascend")
    assert recorded.num_redundant == 1

    later = json.dumps({"expert_map_path": str(record)})
    done = torchrun(3, "--requests", 96, "--additional-config", later, "--keep", kept)
    assert done.returncode == 0, done.stderr
    assert "Move:" not in done.stderr
    assert (read_map(kept, context).slots == recorded.slots).all()
