from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.plan import Greedy, Hierarchical, Problem, TrtllmGreedy
from equipoise.topology import Topology
from tests.reference import eplb as reference

# The worked example of DeepSeek's EPLB.
A = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]
B = [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]
EPLB = Greedy(allow_same_rank_copies=True)


def slots_of(planner, loads, num_slots, num_ranks, ranks_per_node=None):
    problem = Problem(loads, Topology(num_ranks, ranks_per_node), num_slots)
    return planner.plan(problem).placement.slots.tolist()


def ranks_of(row, num_ranks):
    return np.array(row).reshape(num_ranks, -1).tolist()


def rank_loads(load, row, num_ranks):
    share = [load[e] / row.count(e) for e in row]
    return np.array(share).reshape(num_ranks, -1).sum(axis=1).tolist()


class TestDeepSeekExample:
    def test_hierarchical(self):
        planner = Hierarchical(num_expert_groups=4, allow_same_rank_copies=True)
        plan = planner.plan(Problem([A, B], Topology(8, 4), 16))
        assert plan.placement.slots.tolist() == [
            [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
            [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
        ]
        assert plan.placement.copies.tolist() == [
            [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1],
            [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1],
        ]
        assert plan.peak.tolist() == [156.0, 179.5]
        loads = rank_loads(A, plan.placement.slots[0].tolist(), 8)
        assert loads == [121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152]

    def test_global_on_8_ranks(self):
        a, b = slots_of(EPLB, [A, B], 16, 8)
        assert a == [10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1]
        assert b == [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7]
        assert rank_loads(A, a, 8) == [130.5, 95.5, 130, 138, 138.5, 134.5, 134, 132]
        assert rank_loads(B, b, 8) == [123, 123, 125.5, 118.5, 172, 157.5, 172, 164.5]

    def test_global_on_4_ranks(self):
        a, b = slots_of(EPLB, [A, B], 16, 4)
        assert ranks_of(a, 4) == [[10, 8, 3, 7], [10, 1, 1, 4], [0, 5, 4, 2], [11, 5, 9, 6]]
        assert rank_loads(A, a, 4) == [229.5, 275.5, 264.5, 263.5]
        assert ranks_of(b, 4) == [[1, 9, 3, 11], [2, 8, 8, 10], [5, 6, 7, 0], [5, 6, 7, 4]]

    def test_default_has_no_second_copy_on_a_rank_and_balances_no_worse(self):
        for num_ranks, eplb_peaks in ((8, [138.5, 172.0]), (4, [275.5, 292.0])):
            plan = Greedy().plan(Problem([A, B], Topology(num_ranks), 16))
            assert not plan.placement.duplicates.any()
            assert (plan.peak <= np.array(eplb_peaks) + 1).all()

    def test_ties_and_empty_layers(self):
        # A layer without load, next to one with: EPLB gives all copies to the first expert.
        loads = [[0] * 12, A]
        hierarchical = Hierarchical(num_expert_groups=4, allow_same_rank_copies=True)
        assert slots_of(hierarchical, loads, 16, 8, 4)[0] == [
            *[0, 1, 2, 3, 4, 5, 0, 0],
            *[6, 7, 8, 9, 10, 11, 6, 6],
        ]
        assert slots_of(EPLB, loads, 16, 4)[0] == [*range(12), 0, 0, 0, 0]
        assert slots_of(EPLB, [[7] * 8], 8, 4)[0] == [0, 4, 1, 5, 2, 6, 3, 7]
        assert slots_of(EPLB, [[5] * 4], 6, 2)[0].count(0) == 2

    def test_one_slot_a_rank_keeps_the_order(self):
        assert slots_of(EPLB, [[1, 9, 5]], 4, 4) == [[0, 1, 2, 1]]

    def test_eight_by_two(self):
        load = [600, 560, 120, 120, 20, 10, 10, 10]
        for planner in (EPLB, TrtllmGreedy()):
            plan = planner.plan(Problem([load], Topology(8), 16))
            assert plan.placement.copies.tolist() == [[5, 5, 1, 1, 1, 1, 1, 1]]
            assert plan.peak.tolist() == [232.0]
            assert plan.bound.tolist() == [181.25]


class TestTrtllm:
    @pytest.mark.parametrize(
        ("load", "num_slots", "num_ranks", "copies"),
        [
            ([1, 2, 3, 4], 4, 2, [1, 1, 1, 1]),
            ([1, 4, 2, 1], 8, 2, [1, 4, 2, 1]),
            ([10, 5, 2, 15, 8], 9, 3, [2, 1, 1, 3, 2]),
            ([0, 10, 0], 6, 2, [1, 4, 1]),
            ([0, 10, 0], 8, 2, [1, 6, 1]),
            ([5, 5, 5, 5], 6, 2, [1, 1, 2, 2]),
            ([1] * 8, 12, 4, [1, 1, 1, 1, 2, 2, 2, 2]),
            ([18, 6, 4, 4], 6, 3, [3, 1, 1, 1]),
            ([4, 12, 9, 7], 6, 3, [1, 2, 2, 1]),
        ],
    )
    def test_copies(self, load, num_slots, num_ranks, copies):
        (row,) = slots_of(TrtllmGreedy(), [load], num_slots, num_ranks)
        assert np.bincount(row).tolist() == copies

    @pytest.mark.parametrize(
        ("load", "ranks"),
        [
            ([1, 1, 1, 1], [[0, 2], [1, 3]]),
            ([1, 3, 2, 1], [[1, 0, 2], [1, 2, 3]]),
            ([10, 5, 2, 15, 8], [[0, 3, 4], [0, 3, 4], [1, 3, 2]]),
            ([1, 100, 10], [[1, 2], [1, 0]]),
            ([2, 3, 4, 5, 6, 7], [[5, 2, 1], [4, 3, 0]]),
            ([5, 5, 5, 5], [[0, 2, 3], [1, 2, 3]]),
            ([1] * 8, [[0, 4, 6], [1, 4, 6], [2, 5, 7], [3, 5, 7]]),
            ([0, 10, 0], [[1, 1, 1, 0], [1, 1, 1, 2]]),
            (A, [[10, 8, 3, 7], [10, 1, 1, 4], [0, 5, 4, 2], [11, 5, 9, 6]]),
            (A, [[10, 6], [10, 7], [0, 2], [11, 4], [5, 9], [5, 4], [8, 3], [1, 1]]),
        ],
    )
    def test_places(self, load, ranks):
        num_ranks, num_slots = len(ranks), sum(map(len, ranks))
        (row,) = slots_of(TrtllmGreedy(), [load], num_slots, num_ranks)
        assert ranks_of(row, num_ranks) == ranks

    def test_layer_without_load(self):
        empty = slots_of(TrtllmGreedy(), [[0] * 4, [1] * 4], 6, 2)[0]
        assert ranks_of(empty, 2) == [[0, 0, 1], [1, 2, 3]]
        problem = Problem([[0] * 256, [1] * 256], Topology(32), 288)
        placement = TrtllmGreedy().plan(problem).placement
        assert placement.by_rank[0, :3].tolist() == [
            [0, 0, 1, 1, 2, 2, 3, 3, 4],
            [4, 5, 5, 6, 6, 7, 7, 8, 8],
            [9, 9, 10, 10, 11, 11, 12, 12, 13],
        ]
        assert placement.duplicates[0] == 28

    def test_ours_has_no_duplicate_in_a_layer_without_load(self):
        problem = Problem([[0] * 256, [1] * 256], Topology(32), 288)
        placement = Greedy().plan(problem).placement
        assert placement.duplicates.tolist() == [0, 0]
        assert placement.copies[0].tolist() == [2] * 32 + [1] * 224


@st.composite
def layers(draw, continuous=False):
    """A load row that may have ties and zeros (or neither), slots and ranks it fits on."""
    num_ranks = draw(st.integers(1, 9))
    num_experts = draw(st.integers(1, 14))
    least, most = -(-num_experts // num_ranks), num_experts
    slots_per_rank = draw(st.integers(least, max(least, min(most, least + 4))))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if continuous:
        load = rng.lognormal(0, draw(st.sampled_from([0.3, 1.0, 2.5])), num_experts)
    else:
        load = rng.integers(0, draw(st.sampled_from([2, 6, 1000])), num_experts).astype(float)
        load[draw(st.integers(0, num_experts - 1))] += 1
    return load, slots_per_rank * num_ranks, num_ranks


@given(layers())
def test_greedy_equals_its_twin(layer):
    assert slots_of(Greedy(), [layer[0]], *layer[1:]) == [reference.distinct(*layer)]


@given(layers())
def test_eplb_equals_its_twin(layer):
    assert slots_of(EPLB, [layer[0]], *layer[1:]) == [reference.deepseek(*layer)]


@given(layers())
def test_trtllm_equals_its_twin(layer):
    assert slots_of(TrtllmGreedy(), [layer[0]], *layer[1:]) == [reference.trtllm(*layer)]


@given(
    groups=st.sampled_from([2, 4, 8]),
    nodes=st.sampled_from([1, 2]),
    per_rank=st.integers(2, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_hierarchical_equals_its_twin(groups, nodes, per_rank, seed):
    load = np.random.default_rng(seed).lognormal(0, 1, 16)
    planner = Hierarchical(num_expert_groups=groups, allow_same_rank_copies=True)
    (row,) = slots_of(planner, [load], 8 * per_rank, 8, 8 // nodes)
    assert row == reference.deepseek(load, 8 * per_rank, 8, groups, nodes)


@given(layers(continuous=True))
def test_permuting_the_experts_permutes_the_plan(layer):
    load, num_slots, num_ranks = layer
    order = np.random.default_rng(len(load)).permutation(len(load))
    permuted = np.empty_like(load)
    permuted[order] = load
    keeps_order = num_slots == num_ranks  # EPLB does not sort where each rank has one slot
    for planner in (Greedy(),) if keeps_order else (Greedy(), EPLB):
        (row,) = slots_of(planner, [load], num_slots, num_ranks)
        (other,) = slots_of(planner, [permuted], num_slots, num_ranks)
        assert order[row].tolist() == other


@pytest.mark.parametrize(
    ("load", "num_slots"),
    [  # Rare: found by searching 400,000 random layers.
        ([1, 1, 1, 1, 2, 2, 2, 2, 2, 2], 21),
        ([1, 2, 2, 1, 1, 1, 2, 1, 1, 2, 1, 1, 2], 24),
        ([1, 2, 2, 2, 2, 1, 2, 2, 1, 1, 2, 1, 2, 2], 33),
    ],
)
def test_greedy_makes_room_by_exchange(monkeypatch, load, num_slots):
    exchanges = []
    exchange = reference.exchange
    monkeypatch.setattr(reference, "exchange", lambda *a: exchanges.append(a) or exchange(*a))
    plan = Greedy().plan(Problem([load], Topology(3), num_slots))
    assert not plan.placement.duplicates.any()
    assert plan.placement.slots[0].tolist() == reference.distinct(load, num_slots, 3)
    assert len(exchanges) == 1


@pytest.mark.parametrize(("num_ranks", "num_slots"), [(32, 288), (64, 320), (144, 288), (8, 264)])
def test_greedy_balances_as_well_as_eplb(num_ranks, num_slots):
    load = np.random.default_rng(1).lognormal(0, 1, (100, 256))
    problem = Problem(load, Topology(num_ranks), num_slots)
    ours, eplb = Greedy().plan(problem), EPLB.plan(problem)
    assert not ours.placement.duplicates.any()
    assert ours.peak.sum() <= eplb.peak.sum() * 1.001


@pytest.mark.parametrize("sign", [1, -1])
def test_loads_near_the_ends_of_float64(sign):
    load = np.array([A, B], dtype=np.float64)
    for planner in (Greedy(), EPLB, TrtllmGreedy()):
        plain = slots_of(planner, load, 16, 8)
        assert slots_of(planner, np.ldexp(load, sign * 1000), 16, 8) == plain


@pytest.mark.parametrize("planner", [Greedy(), Hierarchical(num_expert_groups=2), TrtllmGreedy()])
def test_ranks_that_differ_are_not_passed_over_in_silence(planner):
    for unequal in ({"speed": (1, 2)}, {"room": (1, 2)}):
        status = planner.plan(Problem([A], Topology(2, **unequal), 12)).status
        assert status.startswith("Planned as if all ranks had the same speed and room; Robust")
    assert "same speed" not in planner.plan(Problem([A], Topology(2), 12)).status


def test_loads_that_differ_in_the_tenth_digit_are_told_apart():
    load = 1 + 1e-10 * np.random.default_rng(0).permutation(600)
    assert slots_of(Greedy(), [load], 600, 6) == [reference.distinct(load, 600, 6)]


def test_too_large_a_total_is_refused():
    with pytest.raises(EquipoiseError, match="Loads add up to infinity; scale them down"):
        slots_of(Greedy(), [[1, 1], [1e308, 1.7e308]], 2, 2)


def test_more_copies_than_ranks_is_refused():
    problem = Problem([[0, 10, 0]], Topology(2), 8)
    with pytest.raises(EquipoiseError, match=r"more copies than ranks; use at most 6 slots"):
        Greedy().plan(problem)
    assert EPLB.plan(problem).placement.num_slots == 8
    on_nodes = Problem([[1, 2, 3, 4]], Topology(4, 2), 12)
    assert Greedy().plan(on_nodes).placement.num_slots == 12
    with pytest.raises(EquipoiseError, match=r"a node's 2 experts on 2 ranks .* at most 8 slots"):
        Hierarchical(num_expert_groups=2).plan(on_nodes)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (5, "12 experts do not divide into 5 expert groups"),
        (0, "num_expert_groups is 0; expected 1 to"),
        (2.5, "num_expert_groups is 2.5; expected a whole number"),
        (3, "3 expert groups do not divide over 2 nodes"),
    ],
)
def test_expert_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(EquipoiseError, match=message):
        Hierarchical(num_expert_groups=groups).plan(Problem([A], Topology(8, 4), 16))


def test_hierarchical_default_keeps_expert_groups_on_nodes_without_duplicates():
    load = np.random.default_rng(3).lognormal(0, 1, (20, 64))
    plan = Hierarchical(num_expert_groups=8).plan(Problem(load, Topology(16, 4), 96))
    assert not plan.placement.duplicates.any()
    node = plan.placement.rank_of_slot // 4
    for row in plan.placement.slots:
        homes = {(e // 8, n) for e, n in zip(row.tolist(), node.tolist(), strict=True)}
        assert len(homes) == 8
    assert "Keeping each expert group on one node raises the bound by" in plan.status
