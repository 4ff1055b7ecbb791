from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality.stair import Stair
from equipoise.errors import EquipoiseError
from equipoise.migration import diff
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Problem, evaluate
from equipoise.topology import Topology

DEEPSEEK_A = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]


def _start(problem: Problem):
    return Contiguous().plan(problem).placement


def test_a_published_example():
    problem = Problem([DEEPSEEK_A], Topology(4), 16)
    placement = Stair().place(problem, _start(problem))
    assert evaluate(placement, [DEEPSEEK_A]).peak == pytest.approx(260.0)


def test_experts_hot_at_different_times_share_a_rank():
    rng = np.random.default_rng(0)
    phases = 1000 * rng.lognormal(0, 1, (2, 1, 64))
    steps = np.tile(phases, (16, 1, 1))
    problem = Problem(steps, Topology(8), 72)
    placement = Stair().place(problem, _start(problem))
    assert evaluate(placement, steps).mean_imbalance < 1.1
    assert evaluate(Greedy().plan(problem).placement, steps).mean_imbalance > 1.2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 70]))
def test_what_it_answers_is_no_worse_and_experts_that_stay_keep_their_slots(seed, steps):
    load = np.random.default_rng(seed).lognormal(0, 1.5, (steps, 2, 10))
    problem = Problem(load, Topology(4), 12)
    old = Placement(np.tile(np.arange(12) % 10, (2, 1)), num_ranks=4, num_experts=10)
    new = Stair().place(problem, old)
    assert not new.duplicates.any()
    before, after = (evaluate(p, load).imbalance.mean(axis=0) for p in (old, new))
    assert (after <= before + 1e-9).all()
    for was, now in zip(old.by_rank.reshape(-1, 3), new.by_rank.reshape(-1, 3), strict=True):
        assert all(was[slot] == e for slot, e in enumerate(now) if e in was)


def test_without_load_nothing_moves():
    problem = Problem(np.vstack([np.zeros((1, 8)), np.ones((1, 8))])[None], Topology(4), 12)
    old = _start(problem)
    moved = diff(old, Stair().place(problem, old), problem.topology)
    assert moved.received[0].sum() == 0


def test_an_expert_twice_on_a_rank_is_refused_as_by_the_original():
    old = Placement([[0, 0, 1, 2]], num_ranks=2, num_experts=3)
    with pytest.raises(EquipoiseError, match="twice on a rank"):
        Stair().place(Problem([[1, 1, 1]], Topology(2), 4), old)
