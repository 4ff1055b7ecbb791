from __future__ import annotations

import itertools
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.dispatch import Even, MinMax
from equipoise.errors import EquipoiseError
from equipoise.plan import (
    Contiguous,
    Greedy,
    Problem,
    even_split_lower_bound,
    hierarchy_lower_bound,
    packing_lower_bound,
    peak_lower_bound,
)
from equipoise.plan.bounds import (
    active_lower_bound,
    joint_lower_bound,
    limits,
    time_lower_bound,
)
from equipoise.plan.result import certify
from equipoise.topology import Topology
from tests.reference.eplb import peak


def test_known_bounds():
    load = [[10, 6, 4, 2]]
    assert peak_lower_bound(load, 2, 6).tolist() == [11.0]
    assert even_split_lower_bound(load, 2, 6).tolist() == [5.0]
    assert packing_lower_bound(load, [[2, 2, 1, 1]], 2).tolist() == [11.0]
    # Without copies the hottest expert; with them it spreads over one rank for each copy.
    assert peak_lower_bound([[30, 1, 1, 1]], 4, 4).tolist() == [30.0]
    assert peak_lower_bound([[30, 1, 1, 1]], 2, 6).tolist() == [16.5]
    assert peak_lower_bound([[30, 1, 1, 1]], 4, 8).tolist() == [8.25]


def test_the_heaviest_are_not_alone_on_their_ranks():
    # Without redundant slots the rank of expert 0 also holds one of the others.
    assert peak_lower_bound([[30, 3, 2, 1]], 2, 4).tolist() == [31.0]
    # Two redundant slots: of the six slots on the three ranks of expert 0, four are some expert's
    # last, so three others are there for good.
    assert peak_lower_bound([[30, 3, 2, 1, 1, 1]], 4, 8).tolist() == [(30 + 1 + 1 + 1) / 3]


def test_unequal_speeds():
    # The fastest rank is worth twice the mean; the hottest expert alone there takes 30 / 2.
    assert peak_lower_bound([[30, 1, 1, 1]], 4, 4, speed=[1, 4, 1, 2]).tolist() == [15.0]
    assert peak_lower_bound([[30, 1, 1, 1]], 4, 8, speed=[1, 4, 1, 2]).tolist() == [8.25]
    for topology, bound in ((Topology(4, speed=(1, 4, 1, 2)), 15.0), (Topology(4), 30.0)):
        found = limits(np.array([[30.0, 1, 1, 1]]), 4, topology, cost=None, even=True)
        assert found.bound.tolist() == [bound]


def heaviest_on_few_ranks(load, num_ranks, num_slots, speed):
    """``peak_lower_bound`` as it is told."""
    load, speed = sorted(load), sorted(speed, reverse=True)
    size, extra, best = num_slots // num_ranks, num_slots - len(load), 0.0
    for j in range(1, len(load) + 1):
        shares = []
        for x in range(1, num_ranks + 1):
            if j <= x * size and x <= j + extra and (j < len(load) or x == num_ranks):
                others = max(0, x * size - extra - j)
                brought = sum(load[-j:]) + sum(load[: min(others, len(load) - j)])
                shares.append(brought / sum(speed[:x]) * sum(speed) / num_ranks)
        best = max(best, min(shares))
    return best


@given(
    st.integers(1, 10),
    st.integers(1, 6),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_spread_equals_its_twin(experts, ranks, extra, equal, seed):
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 2, experts)
    speed = np.ones(ranks) if equal else rng.choice([0.5, 1, 3], ranks)
    slots = ranks * (-(-experts // ranks) + extra)
    expected = heaviest_on_few_ranks(load.tolist(), ranks, slots, speed.tolist())
    found = peak_lower_bound([load], ranks, slots, speed=speed)
    assert found[0] == pytest.approx(expected, rel=1e-12)


def test_active_experts_and_time():
    load = [[0, 5, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert active_lower_bound(load, 3).tolist() == [2, 0]
    cost = RankCost(fixed_seconds=1, expert_seconds=10, token_seconds=1)
    # Few tokens: some rank reads two experts. Many: four ranks' worth of tokens on two ranks.
    assert time_lower_bound(load, Topology(3), 6, cost).tolist() == [21, 1]
    assert time_lower_bound([[100, 100]], Topology(2), 2, cost).tolist() == [101]
    # Two reads end after 11 / 2 and 21 / 2 on the fast rank, the third on the slow one.
    unequal = time_lower_bound([[1, 1, 1]], Topology(2, speed=(1, 2)), 4, cost)
    assert unequal.tolist() == [11]


@pytest.mark.parametrize("dispatch", [Even, MinMax])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_plan_is_faster_than_its_time_bound(dispatch, seed):
    rng = np.random.default_rng(seed)
    load = rng.integers(0, rng.choice([3, 400]), (2, 12)) + (rng.random((2, 12)) < 0.1)
    load[:, 0] += 1
    topology = Topology(4, speed=tuple(rng.choice([0.5, 1, 2], 4).tolist()))
    cost = RankCost(
        fixed_seconds=rng.choice([0, 20]),
        expert_seconds=rng.choice([0, 16]),
        token_seconds=0.1,
        token_block=int(rng.choice([1, 8])),
    )
    problem = Problem(load, topology, 16)
    slots = Greedy().plan(problem).placement.slots
    plan = certify(problem, slots, planner="", dispatch=dispatch(topology=topology, cost=cost))
    assert (plan.peak >= plan.bound * (1 - 1e-12)).all()
    assert (plan.peak >= plan.dispatch_bound * (1 - 1e-12)).all()
    assert (plan.bound >= time_lower_bound(load, topology, 16, cost) * (1 - 1e-12)).all()


def test_what_binds_below_the_knee():
    cost = RankCost(expert_seconds=10, token_seconds=1)
    problem = Problem([[1, 1, 1, 0]], Topology(2), 4)
    plan = certify(problem, np.array([[0, 1, 2, 3]]), planner="", dispatch=Even(cost=cost))
    assert plan.peak.tolist() == plan.bound.tolist() == [20]
    assert plan.binding[0].kind == "weights"
    assert (
        "reading the weights of all active experts takes at least 1.33x the mean"
        in plan.binding[0].text
    )


def test_eight_by_two():
    load = [[600, 560, 120, 120, 20, 10, 10, 10]]
    assert peak_lower_bound(load, 8, 16).tolist() == [181.25]
    # Some rank holds two of the nine heaviest slots, 120 x 7 and 112 x 5.
    assert packing_lower_bound(load, [[5, 5, 1, 1, 1, 1, 1, 1]], 8).tolist() == [224.0]


def test_hierarchy_bound():
    # Groups of 2 on 2 nodes of 2 ranks: the node of (9, 8) also holds the lightest group.
    load = [[9, 8, 1, 0, 2, 2, 3, 1]]
    assert hierarchy_lower_bound(load, 4, 4, 2).tolist() == [(17 + 1) / 2]
    assert hierarchy_lower_bound([[1] * 8], 4, 4, 2).tolist() == [2.0]
    with pytest.raises(EquipoiseError, match="8 experts do not divide into 3 expert groups"):
        hierarchy_lower_bound(load, 4, 3, 1)


def optimum(load, num_slots, num_ranks, copies=None):
    rows = itertools.product(range(len(load)), repeat=num_slots)
    valid = (row for row in rows if set(row) == set(range(len(load))))
    if copies is not None:
        valid = (row for row in valid if [row.count(e) for e in range(len(load))] == copies)
    return min(peak(load, row, num_ranks) for row in valid)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("num_ranks", "num_slots"), [(2, 4), (2, 6), (3, 6), (4, 4)])
def test_no_bound_is_above_the_optimum(seed, num_ranks, num_slots):
    load = np.random.default_rng(seed).lognormal(0, 1.5, 3)
    best = optimum(load.tolist(), num_slots, num_ranks) * (1 + 1e-12)
    assert peak_lower_bound([load], num_ranks, num_slots)[0] <= best
    assert even_split_lower_bound([load], num_ranks, num_slots)[0] <= best
    plan = Greedy().plan(Problem([load], Topology(num_ranks), num_slots))
    assert plan.bound[0] <= best <= plan.peak[0] * (1 + 2e-12)
    copies = plan.placement.copies
    packed = optimum(load.tolist(), num_slots, num_ranks, copies[0].tolist())
    assert packing_lower_bound([load], copies, num_ranks)[0] <= packed * (1 + 1e-12)


@given(
    st.integers(1, 10),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_one_more_slot_a_rank_never_raises_a_bound(experts, ranks, per_rank, seed, zeros):
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 2, (2, experts)) * (rng.integers(0, 2, experts) if zeros else 1)
    slots = ranks * (-(-experts // ranks) + per_rank)
    for bound in (peak_lower_bound, even_split_lower_bound):
        fewer, more = bound(load, ranks, slots), bound(load, ranks, slots + ranks)
        assert (more <= fewer * (1 + 1e-12)).all()


def level_is_ruled_out(load, level, num_ranks, num_slots):
    """Whether even copies and what is next to them exceed the level, as claimed."""
    copies = [max(1, int(np.ceil(w / level * (1 - 1e-12)))) for w in load]
    size, spare = num_slots // num_ranks, num_slots - sum(copies)
    if spare < 0:
        return True
    order = sorted(range(len(load)), key=lambda e: -load[e] / copies[e])
    for j in range(1, len(load) + 1):
        n = sum(copies[e] for e in order[:j])
        rest = sorted(load[e] / copies[e] for e in order[j:] for _ in range(copies[e]))
        shares = [
            (sum(load[e] for e in order[:j]) + sum(rest[: max(0, x * size - n - spare)])) / x
            for x in range(1, num_ranks + 1)
            if n <= x * size and x <= n + spare
        ]
        if min(shares) > level * (1 + 1e-12):
            return True
    return False


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_joint_bound_is_a_level_that_is_ruled_out(experts, ranks, extra, seed):
    load = np.random.default_rng(seed).lognormal(0, 1, experts)
    slots = ranks * (-(-experts // ranks) + extra)
    plain = max(
        peak_lower_bound([load], ranks, slots)[0], even_split_lower_bound([load], ranks, slots)[0]
    )
    joint = joint_lower_bound([load], ranks, slots)[0]
    assert (joint > plain) == level_is_ruled_out(load, plain * (1 + 1e-6), ranks, slots)
    if joint > plain:
        assert level_is_ruled_out(load, joint * (1 - 1e-9), ranks, slots)
        assert not level_is_ruled_out(load, joint * (1 + 1e-7), ranks, slots)


def test_copies_and_places_together_prove_more_than_either():
    load = np.random.default_rng(0).lognormal(0, 1, (8, 256))
    plan = Greedy().plan(Problem(load, Topology(144), 288))
    assert (plan.bound == joint_lower_bound(load, 144, 288)).all()
    assert plan.gap < 0.016
    assert {b.kind for b in plan.binding} == {"slots"}
    assert "an even split cannot get below 1." in plan.binding[0].text
    # Nobody has to split evenly.
    assert (plan.bound > peak_lower_bound(load, 144, 288)).all()


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_plans_are_between_their_bounds(experts, ranks, extra, seed):
    load = np.random.default_rng(seed).lognormal(0, 2, (2, experts))
    per_rank = min(-(-experts // ranks) + extra, max(experts, 1))
    plan = Greedy().plan(Problem(load, Topology(ranks), ranks * per_rank))
    assert (plan.peak >= plan.bound * (1 - 1e-12)).all()
    assert (plan.bound >= peak_lower_bound(load, ranks, ranks * per_rank)).all()
    packed = packing_lower_bound(load, plan.placement.copies, ranks)
    assert (plan.peak >= packed * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("load", "num_slots", "num_ranks", "kind", "text"),
    [
        ([1, 1, 1, 1], 4, 4, "mean", "only the mean; the bounds do not exclude perfect balance"),
        ([0, 0, 0, 0], 4, 4, "mean", "no load"),
        (
            [82, 6, 6, 6],
            4,
            4,
            "experts",
            "expert 0 alone is 3.28x the mean; only more copies can lower it",
        ),
        (
            [6, 82, 6, 6],
            6,
            6,
            "experts",
            "expert 1 on at most 3 ranks is at least 1.64x the mean; only more copies can lower it",
        ),
        (
            [60, 20, 10, 10],
            4,
            2,
            "experts",
            "expert 0, with the experts that must share its rank, is at least 1.40x the mean; "
            "only more copies can lower it",
        ),
        (
            [1, 8, 8, 1],
            6,
            6,
            "experts",
            "the 2 heaviest experts (1, 2) on at most 4 ranks are at least 1.33x the mean; only "
            "more copies can lower it",
        ),
        (
            [10, 10, 10, 1, 1, 1],
            8,
            8,
            "copies",
            "an even split cannot get below 2.42x the mean, the load of one copy of expert 2 with "
            "the best number of copies; more slots may lower it, or a dispatcher that follows the "
            "load",
        ),
    ],
)
def test_what_binds(load, num_slots, num_ranks, kind, text):
    problem = Problem([load, [1] * len(load)], Topology(num_ranks), num_slots, layer_ids=(7, 9))
    binding = Greedy().plan(problem).binding[0]
    assert (binding.layer, binding.kind, binding.text) == (7, kind, f"layer 7: {text}")


def test_status_says_what_would_help():
    def status(planner, load, num_slots, num_ranks):
        return planner.plan(Problem([load], Topology(num_ranks), num_slots)).status

    assert status(Greedy(), [1] * 8, 8, 4) == (
        "Over all steps together the busiest ranks carry 0.0% more than the mean, "
        "0.0% more than the bound (even). "
        "No placement on these slots is better on that sum; single steps differ."
    )
    assert status(Greedy(), [6, 82, 6, 6], 6, 6) == (
        "Over all steps together the busiest ranks carry 64.0% more than the mean, "
        "0.0% more than the bound (even). "
        "In 1 of 1 layers the heaviest experts have too few copies for any placement to reach the "
        "mean: more redundant slots may help. "
        "No placement on these slots is better on that sum; single steps differ."
    )
    assert status(Contiguous(), [2, 2, 1, 1], 4, 2) == (
        "Over all steps together the busiest ranks carry 33.3% more than the mean, "
        "33.3% more than the bound (even). "
        "Another placement on these slots is at most 25.0% better on that sum; single steps differ."
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: peak_lower_bound([1, 2], 1, 2), r"shape \(2,\); expected \(layers, experts\)"),
        (lambda: peak_lower_bound([[1, np.nan]], 1, 2), "is nan; expected finite numbers"),
        (lambda: even_split_lower_bound([[1, -1]], 1, 2), "is -1.0; expected finite numbers"),
        (lambda: peak_lower_bound([[1, 2]], 2, 3), "3 slots do not divide over 2 ranks"),
        (lambda: even_split_lower_bound([[1, 2]], 1, 1), "1 slots cannot hold 2 experts"),
        (lambda: packing_lower_bound([[1, 2]], [[1, 0]], 1), "expected one or more of every"),
        (lambda: packing_lower_bound([[1, 2]], [[1]], 1), r"shape \(1, 1\) do not fit"),
        (
            lambda: packing_lower_bound([[1, 2], [1, 2]], [[1, 1], [1, 2]], 1),
            "the same number in every",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call()


class TestPlan:
    problem = Problem(np.arange(48).reshape(2, 2, 12), Topology(4), 16)

    def test_numbers_are_read_only_and_the_plan_frozen(self):
        plan = Greedy().plan(self.problem)
        for array in (plan.load, plan.peak, plan.bound, plan.dispatch_bound):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
        with pytest.raises(FrozenInstanceError):
            plan.note = ""

    def test_later_changes_of_the_loads_change_no_plan(self):
        load = np.array([[4.0, 2, 1, 1]])
        plan = Greedy().plan(Problem(load, Topology(2), 4))
        load[:] = 9
        assert plan.load.tolist() == [[4, 2, 1, 1]]
        assert plan.peak.tolist() == [5]

    def test_a_note_comes_before_the_advice(self):
        plan = Greedy().plan(self.problem)
        assert replace(plan, note="Made by hand.").status == f"Made by hand. {plan.status}"
        assert replace(plan, note="Made by hand.").bound.tolist() == plan.bound.tolist()

    @pytest.mark.parametrize("dispatch", ["even", "minmax"])
    def test_pickles(self, dispatch):
        slots = Greedy().plan(self.problem).placement.slots
        plan = certify(self.problem, slots, planner="ByHand()", dispatch=dispatch)
        for copy in (pickle.loads(pickle.dumps(plan)), pickle.loads(pickle.dumps(plan))):
            assert copy.status == plan.status  # the second time with everything worked out
            assert copy.placement == plan.placement
            assert copy.dispatch == dispatch

    def test_gap_of_windows(self):
        windows = np.array([[[3.0, 1]], [[1, 3]]])
        plan = Greedy().plan(Problem(windows, Topology(2), 2))
        assert plan.gap == 0  # the sum is balanced
        assert plan.peak.tolist() == [4]
        assert plan.window_gap == 0  # and no placement does better on either window
        spread = Greedy().plan(Problem(windows, Topology(2), 4))
        assert spread.window_gap == 0
        one = certify(Problem([[8, 4, 2, 2]], Topology(2), 4), np.array([[0, 1, 2, 3]]), planner="")
        assert one.window_gap == one.gap == pytest.approx(12 / 10 - 1)

    @pytest.mark.parametrize("exponent", [-1000, 60, 900])
    def test_loads_beyond_the_range_of_a_dispatcher(self, exponent):
        slots = Greedy().plan(self.problem).placement.slots
        huge = Problem(np.ldexp(self.problem.load, exponent), Topology(4), 16)
        plan, scaled = (
            certify(p, slots, planner="", dispatch="minmax") for p in (self.problem, huge)
        )
        assert (scaled.peak == np.ldexp(plan.peak, exponent)).all()
        assert (scaled.dispatch_bound == np.ldexp(plan.dispatch_bound, exponent)).all()
        assert scaled.window_gap == plan.window_gap
