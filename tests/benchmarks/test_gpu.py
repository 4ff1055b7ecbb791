"""The GPU benchmark without a GPU: its parts at small sizes on the CPU, its table, its refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import dispatch, ranks
from benchmarks.gpu.__main__ import main, run, table_line
from benchmarks.gpu.sizes import SMALL, hot_copies, popularity
from benchmarks.gpu.timing import Row, TimeBudget, samples

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_all_parts_run_at_small_sizes(tmp_path, capsys):
    status = run(SMALL, CPU, 60, tmp_path / "gpu.json")
    printed = capsys.readouterr().out
    assert status == 0, printed
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["machine"]["device"] == "CPU"
    assert [row["right"] for row in written["rows"]] == 6 * [True]
    assert [row["what"].split(",")[0] for row in written["rows"]] == [
        *2 * ["dispatch of a layer"], *2 * ["step of a layer"], *2 * ["step of 4 virtual ranks"],
    ]  # fmt: skip
    assert printed.count("| right |") == 6


def test_a_wrong_answer_is_seen(monkeypatch):
    plain = dispatch.GpuMinMax.dispatch

    def off_by_one(self, ids, layer):
        slots = plain(self, ids, layer)
        return slots if self.backend == "torch" else slots + 1

    monkeypatch.setattr(dispatch.GpuMinMax, "dispatch", off_by_one)
    assert not any(row.right for row in dispatch.measure(SMALL, CPU, TimeBudget(60)))


def test_weights_that_do_not_follow_the_move_are_seen(monkeypatch):
    monkeypatch.setattr(
        ranks.VirtualRanks, "copy", lambda self, _new: setattr(self, "spare", self.slots)
    )
    rest, moving = ranks.measure(SMALL, CPU, TimeBudget(60))
    assert rest.right
    assert not moving.right


def test_a_spent_time_budget_leaves_one_sample():
    assert len(samples(lambda: None, 100, CPU, TimeBudget(0))) == 1


def test_hot_copies_are_a_placement_of_all_experts():
    placement = hot_copies(popularity(SMALL, 0), SMALL, SMALL.ranks)
    assert placement.num_slots == SMALL.experts + SMALL.redundant
    assert (placement.copies >= 1).all()


@pytest.mark.parametrize(("median", "told"), [(29.0, "30, met"), (31.0, "30, missed")])
def test_the_table_tells_whether_the_target_is_met(median, told):
    row = Row("dispatch", median, 40.0, "us", right=True, samples=5, target=30.0)
    assert table_line(row) == f"| dispatch | {median:.1f} | 40.0 | {told} | right | 5 |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_sentence_and_status_2(capsys):
    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "No GPU is here: run this where PyTorch finds a CUDA device.\n"


def test_arguments_are_checked(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--seconds", "soon"])
    assert ended.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_needs_torch_and_numpy_only():
    """What a CUDA image of PyTorch lacks is not imported, and nothing has to be installed."""
    script = (
        "import sys; lacking = ('numba', 'scipy', 'yaml', 'safetensors', 'transformers')\n"
        "sys.modules.update(dict.fromkeys(lacking))\n"
        "import torch\n"
        "from benchmarks.gpu.__main__ import run\n"
        "from benchmarks.gpu.sizes import SMALL\n"
        "sys.exit(run(SMALL, torch.device('cpu'), 60, None))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
