from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from equipoise.topology import Topology
from tests.reference.eplb import peak


def test_known_bounds():
    load = [[10, 6, 4, 2]]
    assert peak_lower_bound(load, 2, 6).tolist() == [11.0]
    assert even_split_lower_bound(load, 2, 6).tolist() == [5.0]
    assert packing_lower_bound(load, [[2, 2, 1, 1]], 2).tolist() == [11.0]
    # Without copies the hottest expert; with them it spreads over as many ranks as it has copies.
    assert peak_lower_bound([[30, 1, 1, 1]], 4, 4).tolist() == [30.0]
    assert peak_lower_bound([[30, 1, 1, 1]], 2, 6).tolist() == [16.5]
    assert peak_lower_bound([[30, 1, 1, 1]], 4, 8).tolist() == [8.25]


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
    with pytest.raises(EquipoiseError, match="8 experts do not divide into 3 groups"):
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
        ([1, 1, 1, 1], 4, 4, "mean", "only the mean; perfect balance is not excluded"),
        ([0, 0, 0, 0], 4, 4, "mean", "no load"),
        ([82, 6, 6, 6], 4, 4, "experts", "expert 0 alone is 3.3x the mean; only copies help"),
        (
            [6, 82, 6, 6],
            6,
            6,
            "experts",
            "expert 1 on at most 3 ranks is 1.6x the mean; only more copies help",
        ),
        (
            [1, 8, 8, 1],
            6,
            6,
            "experts",
            "the 2 heaviest experts (1, 2) are 5.3 ranks' worth of load on at most 4 ranks; "
            "only more copies help",
        ),
        (
            [10, 10, 10, 1, 1, 1],
            8,
            8,
            "copies",
            "an even split leaves each copy of expert 2 2.42x the mean; more copies help, or a "
            "dispatcher that follows the load",
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
        "0.0% more than the bound. "
        "No placement on these slots is better on that sum; single steps differ."
    )
    assert status(Greedy(), [6, 82, 6, 6], 6, 6) == (
        "Over all steps together the busiest ranks carry 64.0% more than the mean, "
        "0.0% more than the bound. "
        "In 1 of 1 layers the heaviest experts have too few copies: more redundant slots help. "
        "No placement on these slots is better on that sum; single steps differ."
    )
    assert status(Contiguous(), [2, 2, 1, 1], 4, 2) == (
        "Over all steps together the busiest ranks carry 33.3% more than the mean, "
        "33.3% more than the bound. "
        "Another placement, or more slots, may come closer to the bound."
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
        (lambda: packing_lower_bound([[1, 2], [1, 2]], [[1, 1], [1, 2]], 1), "as many in every"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call()
