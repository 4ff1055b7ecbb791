"""The kernels on unequal ranks and with terms, against plain loops; the search around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cost import rank_cost
from equipoise.dispatch import Even, MinMax, dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Problem
from equipoise.plan.search import _anneal_kernels as kernels
from equipoise.plan.search.anneal import (
    FORBIDDEN,
    Search,
    Stage,
    Terms,
    doubling,
    fill_up,
    quadrupling_then_leaping,
)
from equipoise.plan.search.layout import first_layout
from equipoise.plan.search.scenarios import read_history, window_scenarios
from equipoise.topology import Topology
from tests.reference import robust as reference


@st.composite
def unequal_layers(draw):
    """A small layer on unequal ranks, with terms: what a kernel takes, and its parts."""
    num_ranks = 2 * draw(st.integers(1, 3))
    size = draw(st.integers(2, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    room = rng.integers(1, size + 1, num_ranks)
    num_experts = draw(st.integers(1, int(room.sum())))
    topology = Topology(num_ranks, 2, speed=rng.uniform(0.5, 2, num_ranks), room=room)
    load = rng.lognormal(0, 1, (num_experts, draw(st.integers(1, 3))))
    load *= num_ranks / load.sum(axis=0)
    slots = first_layout(load.sum(axis=1)[None], num_ranks * size, topology)[0]
    ranks = kernels.Ranks(
        1 / topology.relative_speed,
        topology.node_of_rank,
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.3])),
        draw(st.sampled_from([0.0, 0.05])),
    )
    terms = kernels.Terms(
        0.1 * rng.random((num_ranks, num_experts)),
        draw(st.integers(0, 2)),
        draw(st.booleans()),
        0.2,
    )
    return load, 0.1 * rng.random(load.shape), slots, ranks, terms


def objective(load, risk, slots, ranks, terms, bits):
    R = len(ranks.slowness)
    node = ranks.node.tolist()
    sums = reference.timed_sums(
        load, risk, slots, R, ranks.slowness, node, ranks.near, ranks.floor, ranks.pad
    )
    norms = (sums ** (2**bits)).sum(axis=0) ** (1 / 2**bits)
    return norms.mean() + reference.extra(
        slots, R, node, terms.price, terms.homes, terms.by_node, terms.missing
    )


@given(unequal_layers(), st.integers(1, 4))
def test_fixed_kernel_keeps_the_objective_it_says(layer, bits):
    load, risk, slots, ranks, terms = layer
    weight = np.full(load.shape[1], 1 / load.shape[1])
    found, value = kernels.anneal_fixed(
        load,
        risk,
        slots,
        ranks,
        terms,
        kernels.Objective(weight, 1.0, bits, False),
        kernels.Schedule(300, 1e-1, 1e-3),
        5,
    )
    assert value == pytest.approx(objective(load, risk, found, ranks, terms, bits), rel=1e-9)
    assert value <= objective(load, risk, slots, ranks, terms, bits) * (1 + 1e-9)
    assert np.array_equal(found < 0, slots < 0)  # no rank has more room than it had
    for rank in found.reshape(len(ranks.slowness), -1):
        held = rank[rank >= 0].tolist()
        assert len(held) == len(set(held))


@given(unequal_layers())
def test_minmax_kernel_reaches_the_exact_split_at_unequal_speeds(layer):
    load, _, slots, ranks, terms = layer
    load = load[:, :1].copy()
    terms = terms._replace(homes=0)
    found, value = kernels.anneal_minmax(
        load,
        slots,
        ranks,
        terms,
        kernels.Objective(np.ones(1), 1.0, 4, True),
        kernels.Schedule(200, 1e-2, 1e-4),
        5,
    )
    R = len(ranks.slowness)
    topology = Topology(R, 2, speed=tuple(1 / ranks.slowness))
    placement = Placement(fill_up(found[None], R), num_ranks=R, num_experts=len(load))
    exact = MinMax(topology=topology).peaks(load.T[None], placement)[0, 0]
    extra = reference.extra(found, R, ranks.node.tolist(), terms.price, 0, False, 0)
    assert exact + extra <= value * (1 + 1e-9)
    assert value <= (exact + extra) * 1.02 + 1e-2


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32))
def test_no_new_objective_is_below_its_bound(num_scenarios, bits, seed):
    rng = np.random.default_rng(seed)
    norms = kernels._no_norms(1, num_scenarios)
    norms.total[:] = rng.lognormal(0, 5, num_scenarios)
    norms.norm[:] = norms.total ** (1 / 2**bits)
    norms.new_total[:] = norms.total * rng.lognormal(0, rng.choice([0.01, 3]), num_scenarios)
    weight = rng.dirichlet(np.ones(num_scenarios))
    least = kernels._least_value(norms, weight, bits, 0.0)
    assert least == pytest.approx(
        reference.least_objective(norms.total, norms.new_total, weight, bits), rel=1e-9
    )
    exact = weight @ norms.new_total ** (1 / 2**bits)
    assert kernels._new_value(norms, weight, bits, 0.0) == pytest.approx(exact, rel=1e-9)
    assert least <= exact * (1 + 1e-12)


def test_a_scenario_without_load_refuses_nothing():
    norms = kernels._no_norms(1, 2)
    norms.total[:] = norms.new_total[:] = norms.norm[:] = [1, 0]
    assert kernels._least_value(norms, np.array([1.0, 0.0]), 4, 0.0) == 1


@pytest.mark.parametrize(
    ("sweeps", "lengths"),
    [
        (doubling, [512, 1024, 2048, 4096, 8192, 16384, 32768]),
        (quadrupling_then_leaping, [512, 2048, 8192, 32768]),
    ],
)
def test_fewer_proposals_are_a_prefix_of_more(sweeps, lengths):
    assert sweeps(100_000) == lengths
    for fewer in range(0, 100_000, 999):
        few = sweeps(fewer)
        assert few == lengths[: len(few)]
        assert sum(few) <= fewer < sum(lengths[: len(few) + 1]) or few == lengths


def test_the_longest_sweep_leaps():
    assert quadrupling_then_leaping(1 << 20)[3:] == [1 << 15, 1 << 19]


def history_of(load, topology, num_slots):
    return read_history(Problem(load, topology, num_slots), None)


def test_forbidden_places_stay_empty_and_homes_are_found():
    topology = Topology(4, 2)
    rng = np.random.default_rng(1)
    history = history_of(rng.lognormal(0, 1, (4, 2, 8)), topology, 16)
    price = np.zeros((2, 4, 8))
    price[:, 0, :4] = FORBIDDEN
    search = Search(
        history=history,
        topology=topology,
        dispatch=Even(),
        terms=Terms(price=price, homes=2, by_node=True, missing=10.0),
    )
    start = first_layout(history.mix, 16, topology)
    found = search.run((Stage("windows", window_scenarios),), start, 1 << 14)
    placement = Placement(found, num_ranks=4, num_experts=8)
    assert not (placement.copies_on_rank[:, 0, :4] > 0).any()
    on_node = placement.copies_on_rank.reshape(2, 2, 2, 8).any(axis=2)
    assert on_node.all()  # 16 slots: every expert on both nodes
    assert (search.measure(found) < 10).all()
    assert (search.measure(start) >= 10).any()


def test_measure_counts_the_terms_once():
    topology = Topology(2)
    history = history_of(np.ones((1, 1, 2)), topology, 4)
    search = Search(history=history, topology=topology, dispatch=Even())
    slots = np.array([[0, 1, 1, 0]])
    plain = search.measure(slots)
    price = np.arange(4.0).reshape(1, 2, 2)
    priced = replace(search, terms=Terms(price=price, homes=3, missing=10.0))
    assert priced.measure(slots) - plain == pytest.approx([0 + 1 + 2 + 3 + 20])


@given(unequal_layers())
def test_first_layout_keeps_to_the_room(layer):
    _, _, slots, ranks, _ = layer
    R = len(ranks.slowness)
    filled = fill_up(slots[None], R)[0]
    by_rank, by_rank_filled = slots.reshape(R, -1), filled.reshape(R, -1)
    for rank, full in zip(by_rank, by_rank_filled, strict=True):
        assert set(full) == set(rank[rank >= 0])  # repetitions need no memory


def test_room_for_too_few_experts():
    with pytest.raises(EquipoiseError, match="room for 3 experts of a layer, the model has 4"):
        first_layout(np.ones((1, 4)), 8, Topology(2, room=(1, 2)))


def test_fill_up_repeats_what_lives_nowhere_else():
    slots = np.array([[0, 1, -1, 0, 2, 3]])
    assert fill_up(slots, 2).tolist() == [[0, 1, 1, 0, 2, 3]]


@pytest.mark.parametrize("judge", [dispatcher("vllm"), Even(cost=rank_cost("h100-deepep-ep8"))])
def test_what_depends_on_the_batch_is_judged_at_its_recorded_size(judge):
    topology = Topology(4)
    steps = np.random.default_rng(2).integers(0, 50, (3, 2, 8)).astype(float)
    steps *= 1200 / steps.sum(axis=2, keepdims=True)  # batches of one size
    history = history_of(steps, topology, 12)
    cost = getattr(judge, "cost", None)
    search = Search(history=history, topology=topology, dispatch=judge, cost=cost)
    slots = first_layout(history.mix, 12, topology)
    unit = 300 if cost is None else 300 * cost.token_seconds
    recorded = judge.peaks(steps, Placement(slots, num_ranks=4, num_experts=8))
    assert search.peaks(slots, history.load) * unit == pytest.approx(recorded)
