from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality import failure
from benchmarks.quality.protocols import Split
from equipoise.placement import Placement
from equipoise.plan import Problem
from equipoise.plan.weigh.failover import resize
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.conftest import SHARED_DATA

PROPOSALS = 1000


@pytest.fixture(scope="module")
def case() -> failure.Case:
    """Eight experts on eight ranks in two nodes: without copies, then with two homes each."""
    counts = np.random.default_rng(0).integers(1, 1000, (2, 2, 8))
    fit, held = Trace(counts=counts[:1]), Trace(counts=counts[1:])
    split = Split(fit, {"known domains": held}, frozenset(), frozenset())
    return failure.Case("tiny", split, Topology(8, 4), (0, 8))


def table(capsys):
    """The rows printed, as lists of cells; the first two are the head."""
    lines = capsys.readouterr().out.strip().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]


def test_coverage_is_what_the_plans_promise(case, capsys):
    failure.show_coverage(case, "even", PROPOSALS)
    head, _, *rows = table(capsys)
    assert all(len(row) == len(head) for row in rows)
    found = {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows}
    assert len(found) == 4 + 5
    for (redundant, name), cells in found.items():
        if redundant == "0":  # one expert a rank
            lost = [cells[what] for what in ("1 rank", "2 ranks", "1 node")]
            assert lost == ["1.00", "2.00", "4.00"], name
        elif name != "DeepSeek" and name != "`Robust`":
            assert cells["1 rank"] == "0.00", name
            assert name == "`Survivable`, rank" or cells["1 node"] == "0.00"
    assert found["8", "mirrored, node"]["whole, 2 ranks"] == "85.7%"  # 24 of 28 pairs


def test_refits_are_compared_with_plans_from_scratch(case, capsys):
    failure.show_failover(case, "even", PROPOSALS)
    head, _, *rows = table(capsys)
    assert all(len(row) == len(head) for row in rows)
    bare = dict(zip(head, rows[0], strict=True))
    assert (bare["reloaded"], bare["copied"], bare["slots a rank"]) == ("1.0", "6.0", "2")
    failure.show_resize(case, "even", PROPOSALS)
    head, _, *rows = table(capsys)
    assert [row[1] for row in rows] == ["8 to 7", "8 to 9"] * 2
    grown = dict(zip(head, rows[-1], strict=True))
    assert (grown["copied"], grown["slots a rank"]) == ("2.0", "2")


def test_changed_slots_do_not_count_renamed_ranks():
    problem = Problem(np.ones((2, 2, 6)), Topology(3), 6)
    old = problem.placement([[0, 1, 2, 3, 4, 5]] * 2)
    refit = resize(old, problem, 3)
    renamed = problem.placement([[4, 5, 1, 0, 3, 2], [0, 1, 2, 3, 4, 5]])
    assert failure.changed(refit, renamed) == 0
    other = Placement([[4, 5, 1, 3, 0, 2]] * 2, num_ranks=3, num_experts=6)
    assert failure.changed(refit, other) == 2


@pytest.mark.shared_data
def test_cases_are_those_of_the_held_out_study():
    glm, esft = failure.cases(SHARED_DATA, ["glm52", "esft"], 25)
    assert (glm.topology, glm.num_experts, glm.split.fit.num_layers) == (Topology(32, 8), 256, 3)
    assert (esft.topology, esft.num_experts) == (Topology(8, 4), 64)
    for case in (glm, esft):
        assert not case.split.fit_units & case.split.test_units
