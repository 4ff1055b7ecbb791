"""Known answers, brute force and an independent solver."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.dispatch import Even, MinMax, _kernels, _time_kernels
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances
from tests.dispatch.test_dispatchers import amounts, batches, counts, per_expert
from tests.reference import dispatch as reference

A = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]
HOT = [600, 560, 120, 120, 20, 10, 10, 10]


def ring(num_ranks=4):
    """Expert g at home on rank g, with a copy on rank g + 1."""
    own = np.arange(num_ranks)
    slots = np.stack([own, np.roll(own, 1)], axis=1).reshape(1, -1)
    return Placement(slots, num_ranks=num_ranks, num_experts=num_ranks)


def placed(*ranks):
    experts = np.concatenate(ranks)
    return Placement([experts], num_ranks=len(ranks), num_experts=int(experts.max()) + 1)


def groups(flat, num_ranks):
    return np.split(np.array(flat), num_ranks)


K6 = groups([5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], 8)
K7 = [[10, 6], [10, 7], [0, 2], [11, 4], [5, 9], [5, 4], [8, 3], [1, 1]]
K8 = [[10, 8, 3, 7], [10, 1, 1, 4], [0, 5, 4, 2], [11, 5, 9, 6]]
K12_GREEDY = [[0, 1], [0, 1], [0, 1], [0, 4], [0, 5], [2, 6], [3, 7], [1, 1]]
K12_OPTIMAL = [[1, 7], [1, 7], [1, 6], [0, 5], [0, 4], [0, 3], [0, 3], [2, 3]]


@pytest.mark.parametrize(
    ("load", "placement", "even", "peak"),
    [
        (A, placed(*K6), 156.0, 154.0),
        (A, placed(*K7), 138.5, 137.0),
        (A, placed(*K8), 275.5, 258.25),
        (HOT, placed(*K12_GREEDY), 232.0, 595 / 3),
        (HOT, placed(*K12_OPTIMAL), 590 / 3, 580 / 3),
        ([6, 2, 0, 0], ring(), 4.0, 3.0),
        ([4, 4, 0, 0], ring(), 4.0, 8 / 3),
        ([4, 0, 4, 0], ring(), 2.0, 2.0),
        ([8, 0, 0, 0], ring(), 4.0, 4.0),
    ],
)
def test_known_answers(load, placement, even, peak):
    split = MinMax().split([load], placement)
    assert split.peak[0] == pytest.approx(peak, rel=1e-12)
    assert split.bound[0] == pytest.approx(peak, rel=1e-15)
    assert split.gap <= 1e-12
    assert split.quotas.reshape(placement.num_ranks, -1).sum(axis=1).max() == math.ceil(peak)
    assert Even().split([load], placement).peak[0] == pytest.approx(even)


def test_certificate_is_the_set_that_binds():
    split = MinMax().split([[6, 2, 0, 0]], ring())
    assert np.flatnonzero(split.bottleneck_experts[0]).tolist() == [0]
    assert np.flatnonzero(split.bottleneck_ranks[0]).tolist() == [0, 1]
    assert split.status == (
        "Optimal: no split over these copies has lower peaks. In layer 0 it is 1.50x the mean, "
        "set by experts whose copies are all on ranks 0-1 (1 of them, the hottest 0); "
        "only copies elsewhere help."
    )
    balanced = MinMax().split([[4, 4, 4, 4]], ring())
    assert balanced.bottleneck_ranks.all()
    assert balanced.status == "Optimal: in every layer all ranks carry the same load."


def test_water_level():
    """One expert that may go anywhere, on ranks that carry 5, 1 and 3 already."""
    split = MinMax().split([[5, 1, 3, 4]], placed([0, 3], [1, 3], [2, 3]))
    assert split.shares[0, 1::2].tolist() == [0.0, 3.0, 1.0]


@given(
    base=st.lists(st.floats(0, 1e6), min_size=1, max_size=6),
    amount=st.floats(0, 1e6),
)
def test_one_shared_expert_is_poured_like_water(base, amount):
    n = len(base)
    split = MinMax().split([[*base, amount]], placed(*([r, n] for r in range(n))))
    wanted = reference.water_fill(amount, base)
    assert split.shares[0, 1::2] == pytest.approx(wanted, rel=1e-9, abs=1e-9 * (1 + max(base)))


@given(batch=batches(amounts, num_layers=1))
def test_peak_and_bound_are_the_largest_cut(batch):
    load, placement = batch
    split = MinMax().split(load, placement)
    experts = np.flatnonzero(load[0])
    if len(experts) > 10:
        load[0, experts[10:]] = 0
        split = MinMax().split(load, placement)
    optimum = float(reference.cut_peak(load[0], placement.slots[0], placement.num_ranks))
    assert split.peak[0] == pytest.approx(optimum, rel=1e-11, abs=0)
    assert split.bound[0] == pytest.approx(optimum, rel=1e-11, abs=0)
    assert split.peak[0] <= Even().split(load, placement).peak[0] * (1 + 1e-12)


@given(batch=batches(counts, num_layers=1))
def test_quotas_reach_the_least_whole_peak(batch):
    load, placement = batch
    load[0, np.flatnonzero(load[0])[10:]] = 0
    optimum = reference.cut_peak(load[0], placement.slots[0], placement.num_ranks)
    quotas = MinMax().split(load, placement).quotas
    assert quotas.reshape(placement.num_ranks, -1).sum(axis=1).max() == math.ceil(optimum)


def test_quotas_of_loads_at_the_end_of_float_precision():
    """The least peak is (2**53 - 1) / 3 rounded up; shares near it are whole only by rounding."""
    split = MinMax().split([[2**53 - 4, 3]], placed([0, 1], [0, 1], [0, 1]))
    peak = -(-(2**53 - 1) // 3)
    assert split.quotas.reshape(3, -1).sum(axis=1).max() == peak
    assert split.quotas.sum() == 2**53 - 1


def test_quotas_of_shares_that_sum_to_too_much():
    """Three equal shares of so large a load add up to more than it, by rounding."""
    load = next(n for n in range(2**53 - 99, 2**53) if sum([n / 3] * 3) > n)
    assert MinMax().split([[load]], placed([0, 0, 0])).quotas.sum() == load


@given(batch=batches(st.integers(0, 99), num_layers=1))
def test_quotas_do_not_depend_on_where_the_level_starts(batch):
    """The kernel on its own, with a level far too low and a split that is far from the best."""
    load, placement = batch
    copies = placement.copies[0][placement.slots]
    quotas = _kernels.minmax_quotas(
        load,
        load[0][placement.slots] / copies,
        np.ones((1, placement.num_ranks), np.bool_),
        placement.slots,
        np.ones(placement.num_ranks),
    )
    least = math.ceil(MinMax().split(load, placement).bound[0])
    assert quotas.reshape(placement.num_ranks, -1).sum(axis=1).max() == least


def test_no_load_is_lost_beside_one_that_dwarfs_it():
    split = MinMax().split([[1e12, 1e-6, 1e12]], placed([0, 1], [2, 1]))
    assert split.shares[0, 1::2].sum() == 1e-6


def test_copies_on_one_rank_count_once():
    split = MinMax().split([[9, 3]], placed([0, 0, 0], [0, 1, 1]))
    assert split.rank_loads.tolist() == [[6.0, 6.0]]
    assert split.shares.tolist() == [[2.0, 2.0, 2.0, 3.0, 1.5, 1.5]]
    assert split.quotas.tolist() == [[2, 2, 2, 3, 2, 1]]


def test_load_travels_along_a_chain_of_all_ranks():
    """Expert e lives on ranks e and e + 1 of a line; the last, on one rank, is pushed all along."""
    n = 40
    load = np.full(n, 10.0)
    load[0] = 20.0
    line = placed([0, 0], *([r, r - 1] for r in range(1, n)))
    assert MinMax().split([load], line).rank_loads == pytest.approx(np.full((1, n), 10.25))
    assert Even().split([load], line).peak.tolist() == [15.0]


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_highs(seed):
    worst = 0.0
    for name, load, placement in random_instances(252, seed):
        split = MinMax().split(load, placement)
        unit = load.sum() / placement.num_ranks
        highs = unit * reference.highs_peak(load[0], placement.slots[0], placement.num_ranks)
        assert split.peak[0] == pytest.approx(highs, rel=1e-9), name
        assert split.gap <= 1e-10, name
        worst = max(worst, split.gap)
        if name.endswith("lognormal"):
            continue
        whole = split.quotas.reshape(placement.num_ranks, -1).sum(axis=1).max()
        assert whole == math.ceil(split.bound[0]), name
    assert worst < 1e-10


@pytest.mark.shared_data
def test_published_optima_on_real_windows(shared_data):
    """Min-max on EPLB's own placements, 7 domains x 75 layers, as solved by others with HiGHS."""
    with np.load(shared_data / "glm52" / "windows.npz") as archive:
        window = archive["counts"]
    published = json.loads((shared_data / "glm52" / "baselines.json").read_text())["results"]
    fit, held = window[:, :7].sum(axis=(0, 1)), window[:, 7]
    for result in published:
        problem = Problem(fit, Topology(result["ranks"]), 256 + result["redundant"])
        placement = Greedy(allow_same_rank_copies=True).plan(problem).placement
        peaks = MinMax().peaks(held, placement)
        found = (peaks / (held.sum(axis=2) / result["ranks"])).mean()
        if result["redundant"]:
            wanted = result["rows"]["deepseek_global_minmax"]["mean"]
            assert found == pytest.approx(wanted, abs=0.005)


speeds = st.sampled_from([0.5, 0.7, 1.0, 1.5, 3.0])


@st.composite
def uneven(draw, values, ranks=speeds):
    """A batch of one layer, its placement and the speeds of the ranks."""
    load, placement = draw(batches(values, num_layers=1))
    load[0, np.flatnonzero(load[0])[8:]] = 0
    n = placement.num_ranks
    return load, placement, Topology(n, speed=draw(st.lists(ranks, min_size=n, max_size=n)))


def on(topology):
    return MinMax(topology=topology)


def test_speeds_weigh_the_ranks():
    """Relative speeds 0.5, 1.5, 0.5, 1.5; experts 0 and 1 together are on the first three ranks."""
    topology = Topology(4, speed=(1, 3, 1, 3))
    split = on(topology).split([[6, 2, 0, 0]], ring())
    assert split.peak[0] == pytest.approx(8 / 2.5, rel=1e-15)
    assert split.bound.tolist() == [8 / 2.5]
    assert split.rank_loads[0, :3] == pytest.approx([1.6, 4.8, 1.6])
    assert np.flatnonzero(split.bottleneck_ranks[0]).tolist() == [0, 1, 2]
    # Levels at which a rank takes one more: 2, 4, ... and 2/3, 4/3, ...; at 10/3 two ranks of 0.5
    # hold 1 each and the one of 1.5 holds 5, one too few; at 4 they hold 2, 6 and 2.
    assert (split.quotas.reshape(4, 2).sum(axis=1) / topology.relative_speed).max() == 4.0
    assert Even(topology=topology).split([[6, 2, 0, 0]], ring()).peak[0] == pytest.approx(6.0)
    level = on(topology).split([[2, 2, 2, 2]], ring())
    assert (
        level.status
        == "Optimal: in every layer all ranks are as fast as if all could take any load."
    )


@given(case=uneven(amounts))
def test_with_speeds_peak_and_bound_are_the_largest_cut(case):
    load, placement, topology = case
    split = on(topology).split(load, placement)
    optimum = reference.cut_peak(
        load[0], placement.slots[0], placement.num_ranks, topology.relative_speed
    )
    assert split.peak[0] == pytest.approx(float(optimum), rel=1e-11, abs=0)
    assert split.bound[0] == pytest.approx(float(optimum), rel=1e-11, abs=0)
    assert split.peak[0] <= Even(topology=topology).split(load, placement).peak[0] * (1 + 1e-12)
    assert on(topology).peaks(load[None], placement)[0] == pytest.approx(split.peak, rel=1e-12)


@given(case=uneven(st.integers(0, 6)))
def test_with_speeds_quotas_reach_the_least_whole_peak(case):
    load, placement, topology = case
    speed = topology.relative_speed
    quotas = on(topology).split(load, placement).quotas.reshape(placement.num_ranks, -1)
    wanted = reference.whole_cut_peak(load[0], placement.slots[0], placement.num_ranks, speed)
    assert (quotas.sum(axis=1) / speed).max() == pytest.approx(wanted, rel=1e-12)


@given(case=uneven(counts))
def test_whole_peaks_are_at_most_one_token_of_the_slowest_rank_above(case):
    load, placement, topology = case
    speed = topology.relative_speed
    split = on(topology).split(load, placement)
    whole = (split.quotas.reshape(placement.num_ranks, -1).sum(axis=1) / speed).max()
    assert whole <= split.bound[0] + (1 + 1e-9) / speed.min()


@given(batch=batches(counts), factor=st.sampled_from([0.25, 1.0, 8.0]))
def test_equal_speeds_are_no_speeds(batch, factor):
    load, placement = batch
    plain = MinMax().split(load, placement)
    split = on(Topology(placement.num_ranks, speed=[factor] * placement.num_ranks)).split(
        load, placement
    )
    assert np.array_equal(split.shares, plain.shares)
    assert np.array_equal(split.quotas, plain.quotas)
    assert np.array_equal(split.peak, plain.peak)


@given(case=uneven(amounts))
def test_only_the_ratio_of_speeds_matters(case):
    load, placement, topology = case
    twice = Topology(placement.num_ranks, speed=[2 * v for v in topology.speed])
    once = on(topology).split(load, placement)
    assert np.array_equal(on(twice).split(load, placement).shares, once.shares)


def test_speeds_agree_with_highs():
    rng = np.random.default_rng(0)
    for name, load, placement in random_instances(126, 2):
        speed = rng.lognormal(0, rng.choice([0.1, 1.0, 3.0]), placement.num_ranks)
        topology = Topology(placement.num_ranks, speed=speed)
        split = on(topology).split(load, placement)
        unit = load.sum() / placement.num_ranks
        highs = unit * reference.highs_peak(
            load[0], placement.slots[0], placement.num_ranks, topology.relative_speed
        )
        assert split.peak[0] == pytest.approx(highs, rel=1e-9), name
        assert split.gap <= 1e-10, name


far_apart = st.floats(-9.0, 0.0).map(lambda exponent: 10.0**exponent)


@given(case=uneven(amounts, far_apart))
def test_peak_and_bound_are_exact_at_speeds_far_apart(case):
    load, placement, topology = case
    split = on(topology).split(load, placement)
    optimum = reference.cut_peak(
        load[0], placement.slots[0], placement.num_ranks, topology.relative_speed
    )
    assert split.peak[0] == pytest.approx(float(optimum), rel=1e-11, abs=0)
    assert split.bound[0] == pytest.approx(float(optimum), rel=1e-11, abs=0)
    assert split.gap < 1e-11


@pytest.mark.parametrize("slowest", [1e-9, 1e-12])
def test_large_layers_are_proven_at_speeds_far_apart(slowest):
    """Chains through slow ranks carry a billion times what these may keep."""
    rng = np.random.default_rng(0)
    for name, load, placement in random_instances(126, 3):
        n = placement.num_ranks
        mixed = slowest ** rng.uniform(0, 1, n)
        speed = mixed if rng.random() < 0.5 else rng.choice([slowest, 1.0], n)
        split = on(Topology(n, speed=speed)).split(load, placement)
        confined = split.bottleneck_experts[0]
        proven = sum(map(Fraction, load[0, confined])) / sum(
            Fraction(v) for v in split.topology.relative_speed[split.bottleneck_ranks[0]]
        )
        assert split.peak[0] == pytest.approx(float(proven), rel=1e-11), name
        assert not split.status.startswith("Peaks"), name


def test_min_max_is_not_advised_to_use_itself():
    split = MinMax().split([[6, 2, 0, 0]], ring())
    even = Even().split([[6, 2, 0, 0]], ring())
    assert "a min-max split reaches them" in even.status
    worse = dataclasses.replace(split, shares=even.shares.copy())
    assert worse.gap == even.gap
    assert "min-max" not in worse.status


def test_steps_start_from_each_other_without_changing_the_optimum():
    rng = np.random.default_rng(0)
    _, _, placement = next(random_instances(1, 4))
    load = rng.integers(0, 1000, (20, 1, placement.num_experts)) * (rng.random((20, 1, 1)) < 0.8)
    alone = [MinMax().peaks(step[None], placement)[0] for step in load]
    assert MinMax().peaks(load, placement) == pytest.approx(np.array(alone), rel=1e-12)


COST = RankCost(fixed_seconds=2.0, expert_seconds=6.0, token_seconds=1.0)
PADDED = RankCost(fixed_seconds=1.0, expert_seconds=3.0, token_seconds=1.0, token_block=4)
costs = st.sampled_from([COST, PADDED, RankCost(token_seconds=1.0)])


def in_time(cost, topology=None):
    return MinMax(topology=topology, cost=cost)


@given(batch=batches(st.integers(0, 99), num_layers=1), whole=st.booleans(), data=st.data())
def test_loads_are_spread_by_weight_as_the_twin_does(batch, whole, data):
    load, placement = batch
    size = placement.num_slots
    weights = data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    spread = _time_kernels.spread(load, np.array([weights], dtype=float), placement.slots, whole)
    wanted = reference.spread(load[0], weights, placement.slots[0], whole)
    assert spread[0] == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_below_the_knee_experts_are_not_spread():
    """Tokens alone spread both experts over both ranks, which then read both experts' weights."""
    both = placed([0, 1], [0, 1])
    tokens = MinMax().split([[4, 4]], both)
    assert COST.rank_seconds(tokens.quotas, 2).tolist() == [[2.0 + 2 * 6.0] * 2]
    split = in_time(COST).split([[4, 4]], both)
    assert split.rank_times.tolist() == [[2.0 + 6.0] * 2]
    assert split.bound.tolist() == [2.0 + 6.0]
    assert sorted(split.quotas[0].tolist()) == [0, 0, 4, 4]
    assert split.gap == 0.0


def test_padding_counts():
    """Blocks of 4, of which 5 tokens fill two wherever they are."""
    split = in_time(PADDED).split([[5, 3]], placed([0, 1], [0, 1]))
    assert split.peak.tolist() == [1.0 + 2 * 4.0]
    assert split.bound.tolist() == [1.0 + 1.5 * 4.0]


@given(case=uneven(st.integers(0, 5)), cost=costs)
def test_time_lies_between_its_bound_and_the_token_optimum(case, cost):
    load, placement, topology = case
    split = in_time(cost, topology).split(load, placement)
    tokens = on(topology).split(load, placement).quotas
    rows = cost.rank_seconds(tokens, placement.num_ranks) / topology.speed
    assert (split.peak <= rows.max(axis=1) * (1 + 1e-12)).all()
    assert (split.bound <= split.peak * (1 + 1e-12)).all()
    assert np.array_equal(split.quotas, split.shares)


@given(case=uneven(st.integers(0, 4), st.sampled_from([1.0, 2.0])), cost=costs)
@settings(max_examples=40)
def test_time_bound_is_below_the_best_of_all_splits(case, cost):
    load, placement, topology = case
    load[0, np.flatnonzero(load[0])[3:]] = 0
    split = in_time(cost, topology).split(load, placement)
    best = reference.fastest(load[0], placement.slots[0], placement.num_ranks, topology.speed, cost)
    assert split.bound[0] <= best * (1 + 1e-12)
    assert split.peak[0] >= best * (1 - 1e-12)
    assert split.peak[0] <= 1.5 * best


@given(batch=batches(st.integers(0, 6), num_layers=1))
def test_below_the_knee_time_is_exact(batch):
    """An active expert costs the same however many tokens: a maximum flow of one each."""
    load, placement = batch
    split = in_time(COST).split(load, placement)
    active = MinMax().split(load > 0, placement)
    assert split.peak[0] == pytest.approx(2.0 + 6.0 * math.ceil(active.bound[0]))
    assert split.gap <= 1e-12


@given(case=uneven(st.integers(100, 10**6)))
def test_beyond_the_knee_time_is_the_token_problem(case):
    load, placement, _ = case
    load = load / np.pi  # whole loads would have whole shares
    split = in_time(RankCost(fixed_seconds=5.0, token_seconds=0.5)).split(load, placement)
    tokens = MinMax().split(load, placement)
    assert split.peak == pytest.approx(5.0 + 0.5 * tokens.peak, rel=1e-9)
    assert split.gap <= 1e-9


@given(batch=batches(st.integers(0, 20), num_layers=1), cost=costs)
def test_no_move_of_any_amount_relieves_the_slowest_rank(batch, cost):
    load, placement = batch
    x = in_time(cost).split(load, placement).quotas[0]
    rank, slots = placement.rank_of_slot, placement.slots[0]
    before = cost.rank_seconds(x, placement.num_ranks)
    slowest = before.argmax()
    for i in np.flatnonzero((rank == slowest) & (x > 0)):
        for j in np.flatnonzero(slots == slots[i]):
            for amount in range(1, x[i] + 1 if j != i else 1):
                moved = x.copy()
                moved[[i, j]] += [-amount, amount]
                after = cost.rank_seconds(moved, placement.num_ranks)[[slowest, rank[j]]]
                assert after.max() >= before.max() * (1 - 1e-8)


@given(case=uneven(amounts), cost=costs)
def test_in_time_peaks_are_those_of_splits_and_even_is_no_faster(case, cost):
    load, placement, topology = case
    split = in_time(cost, topology).split(load, placement)
    assert in_time(cost, topology).peaks(load[None], placement)[0] == pytest.approx(split.peak)
    even = Even(topology=topology, cost=cost)
    assert even.peaks(load[None], placement)[0] == pytest.approx(even.split(load, placement).peak)
    assert (split.bound <= even.split(load, placement).peak * (1 + 1e-12)).all()
    assert per_expert(split.shares, placement) == pytest.approx(load, rel=1e-9, abs=1e-9)


def test_status_in_time():
    split = Even(cost=COST).split([[4, 1, 1]], placed([0, 1], [0, 2]))
    assert split.gap == 0.0
    spread = Even(cost=COST).split([[4, 0, 1]], placed([0, 1], [0, 2]))
    assert spread.status == "Peaks are at most 75.0% above those of the best split."
    assert in_time(COST).split([[0, 0, 0]], placed([0, 1], [0, 2])).peak.tolist() == [2.0]


@pytest.mark.parametrize(
    "cost", [RankCost(expert_seconds=1e100, token_seconds=1e-5), RankCost(token_seconds=2.0**300)]
)
def test_costs_out_of_proportion(cost):
    """Refused where nothing can be told apart, fine where only the unit is odd."""
    two = placed([0, 1], [0, 1])
    if cost.expert_seconds:
        with pytest.raises(EquipoiseError, match=r"Layer 0 takes as long as .* assignments beyond"):
            in_time(cost).split([[4, 4]], two)
    else:
        assert in_time(cost).split([[4, 2]], two).peak.tolist() == [3 * 2.0**300]


def test_in_time_one_rank_and_no_load():
    one = in_time(COST).split([[5, 0, 2]], placed([0, 1, 2]))
    assert one.peak.tolist() == one.bound.tolist() == [2.0 + 2 * 6.0]
    idle = in_time(COST).split([[0, 0]], placed([0, 1], [0, 1]))
    assert idle.peak.tolist() == idle.bound.tolist() == [2.0]
    assert idle.gap == 0.0
    assert not idle.quotas.any()
    assert idle.status == "No layer has load; there is nothing to share."
