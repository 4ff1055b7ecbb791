from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks.quality import costmodel
from equipoise.simulate.tables import Table
from tests.simulate.planted import compute_table, exchange_table, write


@pytest.fixture
def folder(tmp_path):
    write(compute_table(noise=0.02), tmp_path / "moe_compute_deepep.csv")
    write(exchange_table(), tmp_path / "alltoall.csv")
    return tmp_path


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["costmodel.py", *map(str, arguments), "--json"])
    costmodel.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_ranks_left_out_in_turn(folder, capsys, monkeypatch):
    compute, exchange = run(capsys, monkeypatch, "--fit", folder)
    assert compute["kept_aside"] == "each EP size in turn"
    assert compute["cells"] == 54
    assert compute["median_error"] < 0.03
    assert compute["tokens_only_error"] > 3 * compute["median_error"]
    assert compute["sign_right"] is None  # no copies in this table
    assert exchange["median_error"] < 0.01


def test_another_folder_and_a_gpu_that_was_not_fitted(
    folder, tmp_path_factory, capsys, monkeypatch
):
    other = tmp_path_factory.mktemp("other")
    table = compute_table()
    table["gpu"][:] = "H200"
    write(table, other / "moe_compute_deepep.csv")
    (compute,) = run(capsys, monkeypatch, "--fit", folder, "--score", other)
    assert list(compute["median_error_by_gpu"]) == ["H200"]
    assert compute["log_error"] > 0.17  # borrowed from the H100


def test_signs_compare_equal_cells_with_and_without_copies():
    """Two token counts; copies help in the second only, and the model says so of both."""
    rows = [(slots, eplb, tokens) for tokens in (1, 2) for slots, eplb in ((8, 0), (8, 1), (9, 1))]
    slots, eplb, tokens = np.array(rows).T
    same = ("gpu", "kernel", "dtype", "phase", "distribution")
    sizes = ("hidden_size", "inter_size", "top_k", "ep_size", "alpha")
    columns = {name: np.array(["x"] * 6) for name in same} | {
        name: np.ones(6, np.int64) for name in sizes
    }
    columns |= {"num_experts": np.full(6, 8), "num_slots": slots, "eplb": eplb}
    columns |= {"tokens_global": tokens, "time_us": np.array([2.0, 1, 3, 9, 8, 7])}
    said = np.array([2.0, 1, 3, 9, 6, 7])
    scored = costmodel.Scored(Table("", columns), said, *np.zeros((3, 6)))
    result = costmodel.signs(scored)
    assert result["pairs"] == 4
    assert result["sign_right"] == 0.75
    assert result["base_rate"] == 0.5
    assert result["sign_right_against_in_order"] == 1
    assert result["sign_right_against_balanced"] == 0.5
