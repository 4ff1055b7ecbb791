"""``Robust`` on unequal ranks, in time instead of assignments, and for other dispatchers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Even, dispatcher
from equipoise.engines.dispatching import ENGINE_RULES, engine_rule
from equipoise.errors import EquipoiseError
from equipoise.plan import Greedy, Problem, Robust
from equipoise.topology import Topology
from tests.plan.test_robust import QUICK, two_domains


def slowest(placement, load, topology, dispatch="even", cost=None):
    """Mean over windows and layers of what the slowest rank takes."""
    judge = dispatcher(dispatch, topology)
    if cost is not None:
        judge = replace(judge, cost=cost)
    return judge.peaks(load, placement).mean()


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_fast_ranks_get_more(dispatch):
    load, names = two_domains(noise=0.02)
    topology = Topology(4, speed=(1, 1, 2, 2))
    told = replace(QUICK, dispatch=dispatch).plan(Problem(load, topology, 20, groups=names))
    untold = replace(QUICK, dispatch=dispatch).plan(Problem(load, Topology(4), 20, groups=names))
    gain = slowest(untold.placement, load, topology, dispatch)
    gain /= slowest(told.placement, load, topology, dispatch)
    assert gain > 1.1
    assert (told.peak >= told.bound * (1 - 1e-12)).all()


def test_ranks_hold_what_they_have_room_for():
    load, names = two_domains(noise=0.02)
    problem = Problem(load, Topology(4, room=(2, 5, 5, 5)), 20, groups=names)
    held = QUICK.plan(problem).placement.copies_on_rank > 0
    assert (held.sum(axis=2) <= [2, 5, 5, 5]).all()


def test_room_for_too_little():
    with pytest.raises(EquipoiseError, match="room for 12 experts"):
        QUICK.plan(Problem(np.ones((1, 16)), Topology(4, room=(3,) * 4), 20))


def test_below_the_knee_active_experts_are_balanced_not_tokens():
    load = np.array([[900.0, 800, *np.full(14, 1.0)]])
    cost = RankCost(expert_seconds=1.0, token_seconds=1e-4)  # an expert costs 10,000 tokens
    topology = Topology(4)
    timed = replace(QUICK, cost=cost).plan(Problem(load, topology, 16))
    assert slowest(timed.placement, load[None], topology, cost=cost) == pytest.approx(4.0)
    # Above the knee the two hot experts decide, and are kept apart.
    many = replace(QUICK, cost=cost, step_assignments=1e9).plan(Problem(load, topology, 16))
    hot = many.placement.slots[0] < 2
    assert len(set(many.placement.rank_of_slot[hot].tolist())) == 2


def test_time_and_assignments_disagree_and_each_plan_wins_its_own():
    load, names = two_domains(layers=4)
    load = np.rint(load / 1000)
    cost, topology = rank_cost("h100-deepep-ep8"), Topology(4)
    problem = Problem(load, topology, 24, groups=names)
    by_time, by_load = replace(QUICK, cost=cost).plan(problem), QUICK.plan(problem)
    assert slowest(by_time.placement, load, topology, cost=cost) <= slowest(
        by_load.placement, load, topology, cost=cost
    )


def test_an_instance_judges_as_configured():
    load, names = two_domains(layers=2)
    problem = Problem(load, Topology(4), 20, groups=names)
    named, given = QUICK.plan(problem), replace(QUICK, dispatch=Even()).plan(problem)
    assert np.array_equal(named.placement.slots, given.placement.slots)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step_assignments": 100.0}, "with a cost only"),
        ({"step_assignments": 0.0, "cost": rank_cost("h100-deepep-ep8")}, "step_assignments is 0"),
        ({"dispatch": "divine"}, "no dispatcher 'divine'"),
    ],
)
def test_refuses(options, says):
    with pytest.raises(EquipoiseError, match=says):
        Robust(**options)


def test_planned_for_the_nearest_copy():
    load, names = two_domains(noise=0.02, layers=6)
    topology = Topology(4, 2)
    problem = Problem(load, topology, 24, groups=names)
    near, even = replace(QUICK, dispatch="nearest").plan(problem), QUICK.plan(problem)
    assert near.dispatch == "nearest"
    better = slowest(near.placement, load, topology, "nearest")
    assert better < 0.99 * slowest(even.placement, load, topology, "nearest")


@pytest.mark.parametrize("name", sorted({*ENGINE_RULES} - {"lplb"}))  # which allows two copies only
def test_planned_for_what_an_engine_does(name):
    rule = engine_rule(name)
    load, names = two_domains(layers=2)
    problem = Problem(load, Topology(4), 20, groups=names)
    plan = replace(QUICK, dispatch=rule).plan(problem)
    assert plan.dispatch == rule.name
    greedy = Greedy().plan(problem)
    assert rule.peaks(load, plan.placement).mean() < rule.peaks(load, greedy.placement).mean()
