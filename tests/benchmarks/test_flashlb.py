from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.flashlb import FlashLB
from equipoise.migration import diff
from equipoise.plan import Contiguous, Greedy, Problem, evaluate
from equipoise.topology import Topology

DEEPSEEK_A = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]


def _place(problem: Problem):
    return FlashLB().place(problem, Contiguous().plan(problem).placement)


@pytest.mark.parametrize(
    ("load", "ranks", "slots", "peak"),
    [([600, 560, 120, 120, 20, 10, 10, 10], 8, 16, 200.0), (DEEPSEEK_A, 4, 16, 262.0)],
)
def test_published_examples(load, ranks, slots, peak):
    placement = _place(Problem([load], Topology(ranks), slots))
    assert evaluate(placement, [load]).peak == pytest.approx(peak)


def test_experts_hot_at_different_times_share_a_rank():
    rng = np.random.default_rng(0)
    phases = 1000 * rng.lognormal(0, 1, (2, 1, 64))
    steps = np.tile(phases, (16, 1, 1))
    problem = Problem(steps, Topology(8), 72)
    assert evaluate(_place(problem), steps).mean_imbalance < 1.1
    assert evaluate(Greedy().plan(problem).placement, steps).mean_imbalance > 1.2


def test_copies_reach_the_limit_of_one_a_rank():
    load = [[1000, 1, 1, 1]]
    placement = _place(Problem(load, Topology(4), 16))
    assert placement.duplicates.sum() == 0
    assert (placement.copies == 4).all()


def test_ranks_are_named_after_those_in_force():
    rng = np.random.default_rng(1)
    load = rng.lognormal(0, 1, (4, 1, 32))
    problem = Problem(load, Topology(8), 40)
    again = FlashLB().place(problem, _place(problem))
    assert diff(_place(problem), again, problem.topology).received.sum() == 0
