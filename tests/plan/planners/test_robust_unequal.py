"""``Robust`` on unequal ranks, in time instead of assignments, and for other dispatchers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Even, FewestExperts, dispatcher
from equipoise.errors import EquipoiseError
from equipoise.plan import Greedy, Problem, Robust, evaluate, evaluate_without_balancing
from equipoise.plan.search.layout import unbalanced_layout
from equipoise.plan.search.scenarios import MAX_WINDOWS, read_history
from equipoise.topology import Topology
from tests.dispatch.registered import RULES
from tests.plan.planners.test_robust import QUICK, two_domains


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
    told = replace(QUICK, dispatch=dispatch).plan(Problem(load, topology, 20, traffic_groups=names))
    untold = replace(QUICK, dispatch=dispatch).plan(
        Problem(load, Topology(4), 20, traffic_groups=names)
    )
    gain = slowest(untold.placement, load, topology, dispatch)
    gain /= slowest(told.placement, load, topology, dispatch)
    assert gain > 1.1
    assert (told.peak >= told.bound * (1 - 1e-12)).all()


def test_ranks_hold_what_they_have_room_for():
    load, names = two_domains(noise=0.02)
    problem = Problem(load, Topology(4, room=(2, 5, 5, 5)), 20, traffic_groups=names)
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
    problem = Problem(load, topology, 24, traffic_groups=names)
    by_time, by_load = replace(QUICK, cost=cost).plan(problem), QUICK.plan(problem)
    assert slowest(by_time.placement, load, topology, cost=cost) <= slowest(
        by_load.placement, load, topology, cost=cost
    )


def test_an_instance_judges_as_configured():
    load, names = two_domains(layers=2)
    problem = Problem(load, Topology(4), 20, traffic_groups=names)
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
    problem = Problem(load, topology, 24, traffic_groups=names)
    near, even = replace(QUICK, dispatch="nearest").plan(problem), QUICK.plan(problem)
    assert near.dispatch == "nearest"
    better = slowest(near.placement, load, topology, "nearest")
    assert better < 0.99 * slowest(even.placement, load, topology, "nearest")


@pytest.mark.parametrize("name", [x for x in RULES if x != "lplb"])  # which allows two copies only
def test_planned_for_what_an_engine_does(name):
    rule = dispatcher(name)
    load, names = two_domains(layers=2)
    problem = Problem(load, Topology(4), 20, traffic_groups=names)
    plan = replace(QUICK, dispatch=rule).plan(problem)
    assert plan.dispatch == rule.name
    greedy = Greedy().plan(problem)
    assert rule.peaks(load, plan.placement).mean() < rule.peaks(load, greedy.placement).mean()


# Decoding, where each copy is one more active expert ----------------------------------------------

DECODE = rank_cost("h100-deepep-ep8")


def decode_steps(seed, steps=40, layers=3, experts=16):
    """Small steps of varying size, in which an expert is idle now and then."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(experts), layers)
    sizes = rng.integers(20, 200, steps)
    return np.stack([[rng.multinomial(n, p) for p in share] for n in sizes])


@pytest.mark.parametrize("dispatch", ["even", "fewest"])
def test_with_a_cost_no_plan_is_worse_than_leaving_experts_where_they_are(dispatch):
    topology = Topology(4)
    known = {"even": Even, "fewest": FewestExperts}[dispatch](topology=topology, cost=DECODE)
    for seed in range(3):
        steps = decode_steps(seed)
        robust = Robust(dispatch=dispatch, cost=DECODE, proposals=1 << 12)
        plan = robust.plan(Problem(steps, topology, 16))
        before = evaluate_without_balancing(steps, topology, dispatch=known)
        after = evaluate(plan.placement, steps, dispatch=known)
        assert (after.peak.mean(axis=0) <= before.peak.mean(axis=0) * (1 + 1e-12)).all()


def test_slots_left_over_hold_what_is_idle_anyway():
    # Expert 5 is never active: with it in all redundant slots nothing is read but what was.
    steps = decode_steps(0, experts=8)
    steps[:, :, 5] = 0
    topology = Topology(4)
    plan = Robust(cost=DECODE, proposals=1 << 12).plan(Problem(steps, topology, 12))
    judge = Even(topology=topology, cost=DECODE)
    before = evaluate_without_balancing(steps, topology, dispatch=judge)
    after = evaluate(plan.placement, steps, dispatch=judge)
    assert after.mean_peak <= before.mean_peak * (1 + 1e-12)


def test_layout_without_balancing_and_with_idle_copies():
    active = np.array([[5, 1, 5, 0, 5]])
    # Three ranks hold 0 1, 2 3 and 4; what is left holds the idlest that the rank lacks.
    assert unbalanced_layout(active, 9, 3).tolist() == [[0, 1, 3, 2, 3, 1, 4, 3, 1]]


def test_steps_of_a_long_recording_are_not_summed_where_time_counts():
    steps = decode_steps(1, steps=500)
    problem = Problem(steps, Topology(4), 16)
    sized = read_history(problem, None, sized=True)
    assert len(sized.load) == MAX_WINDOWS
    idle = (steps == 0).mean()
    assert (sized.load == 0).mean() == pytest.approx(idle, abs=0.06)
    assert sized.load.sum(axis=2).mean(axis=0) == pytest.approx(np.full(3, 4))
    assert (read_history(problem, None).load == 0).mean() < idle / 4
