"""Known answers, brute force and an independent solver."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import Even, MinMax, _kernels
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances
from tests.dispatch.test_dispatchers import amounts, batches, counts
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
        load, load[0][placement.slots] / copies, np.zeros(1), placement.slots, placement.num_ranks
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
