from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality import churn
from benchmarks.quality.swift import Swift
from equipoise.placement import Placement
from equipoise.plan import Problem, evaluate
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.conftest import SHARED_DATA

DEEPSEEK_A = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]


@pytest.mark.parametrize(
    ("estimate", "ranks", "peak"),
    [
        ("shipped", [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [9, 10, 11, 0]], 342.0),
        ("corrected", [[0, 1, 2, 5], [3, 4, 5, 1], [6, 7, 8, 10], [9, 10, 11, 4]], 285.5),
    ],
)
def test_swift_on_the_published_loads(estimate, ranks, peak):
    # K10
    old = Placement(
        [[0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 0]], num_ranks=4, num_experts=12
    )
    new = Swift(estimate=estimate).place(Problem([DEEPSEEK_A], Topology(4), 16), old)
    assert new.by_rank[0].tolist() == ranks
    assert evaluate(new, [DEEPSEEK_A]).peak[0, 0] == peak


@pytest.mark.parametrize(("estimate", "imbalance"), [("shipped", 1.054), ("corrected", 1.010)])
def test_swift_on_lognormal_loads(estimate, imbalance):
    # Section 2.5 of the notes: 256 experts, one spare slot on each of 32 ranks, deviation 0.5.
    load = np.random.default_rng(0).lognormal(0, 0.5, (20, 256))
    own = np.arange(256).reshape(32, 8)
    row = np.hstack([own, np.roll(own[:, :1], -1, axis=0)]).ravel()
    old = Placement(np.tile(row, (20, 1)), num_ranks=32, num_experts=256)
    new = Swift(estimate=estimate).place(Problem(load, Topology(32), 288), old)
    assert evaluate(new, load).mean_imbalance == pytest.approx(imbalance, abs=0.005)
    assert 0.22 < (new.slots != old.slots).mean() < 0.31


def test_gains_are_shares_of_planning_from_scratch():
    rows = [
        churn.Row("in force", now=2.0, held=2.0),
        churn.Row("Robust from scratch", now=1.0, held=1.999),
    ]
    rows.append(churn.Row("Repair", now=1.2, held=1.5))
    churn._relate(rows)
    assert [row.gain_now for row in rows] == pytest.approx([0.0, 1.0, 0.8])
    assert rows[2].gain_held is None
    assert "| Repair | 0.0% | 0.0% | 1.200 | 80% | 1.500 |  |" in churn.show("case", rows)


def windows():
    rng = np.random.default_rng(0)
    domains = ["code_raw", "math", "science", "wiki", "chat"]
    mean = rng.lognormal(0, 1, (5, 1, 1, 256))
    counts = (1e4 * mean * rng.lognormal(0, 0.1, (5, 8, 1, 256))).astype(np.int64)
    return Trace(
        counts=counts.reshape(40, 1, 256),
        labels={"domain": np.repeat(domains, 8), "window": np.tile(np.arange(8), 5).astype(str)},
    )


def test_no_window_is_both_planned_on_and_held_out():
    for case in churn.cases(windows()):
        assert set(case.held.labels["window"].tolist()) == {"7"}
        for seen in (case.earlier, case.now):
            assert "7" not in seen.labels["window"].tolist()
    assert set(case.earlier.labels["domain"].tolist()) == set(churn.KNOWN)
    assert set(case.now.labels["domain"].tolist()) == {"wiki", "chat"}
    assert set(case.held.labels["domain"].tolist()) == {"wiki", "chat"}


def test_every_row_is_measured_from_the_placement_in_force():
    *_, shift = churn.cases(windows())
    ways = churn.contenders("even", None, 1 << 14)
    rows = {row.name: row for row in churn.measure(shift, "even", ways, 1 << 14)}
    assert rows["in force"].moved == 0
    assert rows["vLLM default"].note == "not run: --peers not given"
    fresh, matched = rows["Robust from scratch"], rows["Robust from scratch, ranks matched"]
    assert matched.now == pytest.approx(fresh.now)
    assert matched.moved < fresh.moved
    for budget in churn.BUDGETS:
        assert rows[f"Repair, {budget:.0%}"].moved <= budget
    assert rows["Repair, 30%"].now < rows["Repair, 10%"].now < rows["in force"].now


@pytest.mark.shared_data
def test_the_command_prints_a_table(capsys, monkeypatch):
    command = ["churn", "--data", str(SHARED_DATA), "--layers", "1", "--effort", "1024"]
    monkeypatch.setattr("sys.argv", [*command, "--dispatch", "even", "--case", "shift"])
    churn.main()
    assert "**shift, even**" in capsys.readouterr().out
