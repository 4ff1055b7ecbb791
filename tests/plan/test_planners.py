"""What every planner keeps to."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.plan import (
    Contiguous,
    Greedy,
    Hierarchical,
    Problem,
    Robust,
    RoundRobin,
    Survivable,
    TrtllmGreedy,
)
from equipoise.topology import Topology
from equipoise.trace import Trace

PLANNERS = (
    Contiguous(),
    RoundRobin(),
    Greedy(),
    Greedy(allow_same_rank_copies=True),
    Hierarchical(num_groups=4),
    Hierarchical(num_groups=4, allow_same_rank_copies=True),
    TrtllmGreedy(),
    Robust(moves=5000),
    Survivable(moves=5000),
)
LOADS = {
    "equal": np.ones((2, 12)),
    "one hot": np.eye(12)[[3, 7]] * 1000,
    "a layer without load": np.vstack([np.zeros(12), np.arange(12)]),
    "skewed": np.geomspace(1, 1e6, 24).reshape(2, 12),
    "steps": np.arange(72).reshape(3, 2, 12),
}


@pytest.fixture(params=PLANNERS, ids=repr)
def planner(request):
    return request.param


@pytest.mark.parametrize("num_slots", [12, 16, 24])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_plans_are_valid_and_certified(planner, load, num_slots):
    problem = Problem(load, Topology(4, 2), num_slots, layer_ids=(3, 5))
    before = problem.load.copy()
    plan = planner.plan(problem)
    assert plan.placement.layer_ids == (3, 5)
    assert plan.placement.num_slots == num_slots
    assert plan.planner == repr(planner)
    assert plan.dispatch == "even"
    assert np.array_equal(plan.load, problem.total)
    assert (plan.peak >= plan.bound * (1 - 1e-12)).all()
    assert [b.layer for b in plan.binding] == [3, 5]
    assert plan.status.endswith(".")
    if not getattr(planner, "allow_same_rank_copies", isinstance(planner, TrtllmGreedy)):
        assert not plan.placement.duplicates.any()
    assert np.array_equal(problem.load, before)
    assert planner.plan(problem).placement == plan.placement


def test_scaling_by_powers_of_two_changes_nothing(planner):
    load = np.random.default_rng(0).lognormal(0, 1, (3, 12))
    plain = planner.plan(Problem(load, Topology(4, 2), 16))
    for exponent in (-40, 3, 60):
        scaled = planner.plan(Problem(np.ldexp(load, exponent), Topology(4, 2), 16))
        assert scaled.placement == plain.placement
        assert (scaled.bound == np.ldexp(plain.bound, exponent)).all()


def test_experts_that_do_not_divide_over_the_ranks(planner):
    if isinstance(planner, Hierarchical):
        pytest.skip("groups divide the experts")
    plan = planner.plan(Problem([[5, 4, 3, 2, 1, 1, 1]], Topology(3), 9))
    assert sorted(set(plan.placement.slots[0].tolist())) == list(range(7))


def test_trace_carries_its_layers(planner):
    trace = Trace(counts=np.ones((2, 2, 12), np.int64), layer_ids=(3, 4))
    plan = planner.plan(Problem(trace, Topology(4, 2), 16))
    assert plan.placement.layer_ids == (3, 4)


@pytest.mark.parametrize(
    ("load", "num_slots", "message"),
    [
        ([[1, np.nan]], 2, "is nan; expected finite numbers >= 0"),
        ([[1, -2]], 2, "is -2.0; expected finite numbers >= 0"),
        ([[0, 0]], 2, "zero everywhere; record some traffic"),
        ([[1, 2]], 3, "3 slots do not divide over 2 ranks"),
        ([[1, 2, 3]], 2, "2 slots cannot hold 3 experts"),
        ([[1, 2]], 10**12, "num_slots is 1000000000000; expected 1 to 65536"),
        ([[1, 2]], 2.5, "num_slots is 2.5; expected a whole number"),
    ],
)
def test_what_a_problem_refuses(load, num_slots, message):
    with pytest.raises(EquipoiseError, match=message):
        Problem(load, Topology(2), num_slots)


def test_planners_are_frozen_and_keyword_only(planner):
    assert dataclasses.is_dataclass(planner)
    assert planner.__dataclass_params__.frozen
    with pytest.raises(TypeError):
        type(planner)(4)


def test_numba_is_loaded_only_by_planning():
    code = "import sys, equipoise.plan; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
