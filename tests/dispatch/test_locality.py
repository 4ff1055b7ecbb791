"""Which source fills which quota, and the whole splits that keep most of them near."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import Even, MinMax, dispatcher
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances
from tests.dispatch.test_dispatchers import per_expert, placements
from tests.reference import dispatch as reference


@st.composite
def sources(draw, most=20):
    """A batch by source rank, its placement, nodes and speeds."""
    placement = draw(placements())
    n = placement.num_ranks
    counts = st.lists(
        st.integers(0, most), min_size=placement.num_experts, max_size=placement.num_experts
    )
    source = np.array([[draw(counts) for _ in range(n)]])
    speed = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=n, max_size=n))
    nodes = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    return source, placement, Topology(n, nodes, speed=speed)


def near(split, topology):
    """Assignments that stay on their own rank and on their own node."""
    rank = split.placement.rank_of_slot
    node = topology.node_of_rank
    own = rank[None] == np.arange(topology.num_ranks)[:, None]
    same = node[rank][None] == node[:, None]
    return tuple(int(split.source_quotas[:, mask].sum()) for mask in (own, same))


def room(split, topology):
    """Whole capacities at the peak of the quotas."""
    speed = topology.relative_speed
    load = split.quotas.reshape(topology.num_ranks, -1).sum(axis=1)
    most = (load / speed).max()
    return most, [max(j for j in range(int(most * v) + 2) if j / v <= most) for v in speed]


def assert_nearest(split, topology, source):
    wanted = reference.nearest(
        source[0],
        split.placement.slots[0],
        topology.num_ranks,
        room(split, topology)[1],
        topology.node_of_rank,
    )
    assert near(split, topology) == wanted


@given(case=sources())
def test_quotas_stay_as_near_as_the_least_peak_allows(case):
    source, placement, topology = case
    split = MinMax(topology=topology).split(source, placement)
    blind = MinMax(topology=topology).split(source.sum(axis=1), placement)
    assert room(split, topology) == room(blind, topology)
    assert np.array_equal(per_expert(split.quotas, placement), source.sum(axis=1))
    assert_nearest(split, topology, source)


def test_nearest_on_larger_layers():
    rng = np.random.default_rng(0)
    checked = 0
    for name, load, placement in random_instances(252, 5):
        n = placement.num_ranks
        if n > 16 or name.split(", ")[1] in ("huge counts", "lognormal"):
            continue
        spread = rng.dirichlet(np.full(n, rng.choice([0.3, 1.0, 30.0])), placement.num_experts)
        source = np.array([rng.multinomial(int(load[0, e]), p) for e, p in enumerate(spread)]).T
        speed = rng.choice([0.5, 1.0, 1.7], n) if checked % 2 else None
        topology = Topology(n, int(rng.choice([1, 2, 4])), speed=speed)
        split = MinMax(topology=topology).split(source[None], placement)
        assert_nearest(split, topology, source[None])
        checked += 1
    assert checked > 50


@given(case=sources())
def test_sources_fill_given_quotas_as_near_as_they_can(case):
    """Expert by expert: own rank and own node hold the smaller of what is there and what goes."""
    source, placement, topology = case
    split = Even(topology=topology).split(source, placement)
    served = per_expert(split.source_quotas.sum(axis=1), placement)
    assert np.array_equal(served, source.sum(axis=1))
    assert np.array_equal(split.source_quotas.sum(axis=1), split.quotas)
    on_rank = np.zeros_like(source[0])
    np.add.at(on_rank, (placement.rank_of_slot, placement.slots[0]), split.quotas[0])
    on_node, at_node = (np.zeros((topology.num_nodes, source.shape[2])) for _ in range(2))
    np.add.at(on_node, topology.node_of_rank, on_rank)
    np.add.at(at_node, topology.node_of_rank, source[0])
    assert near(split, topology) == (
        np.minimum(on_rank, source[0]).sum(),
        np.minimum(on_node, at_node).sum(),
    )


@given(case=sources(), named=st.sampled_from(["even", "minmax"]))
def test_sources_fill_as_the_twin_does(case, named):
    source, placement, topology = case
    split = dispatcher(named, topology).split(source, placement)
    wanted = reference.fill(split.quotas[0], source[0], placement.slots[0], topology.node_of_rank)
    assert split.source_quotas[0].tolist() == wanted


@given(case=sources(most=2**50))
def test_the_largest_counts_stay_as_near_as_small_ones(case):
    """Capacities and chains in whole numbers: nothing is lost to rounding."""
    source, placement, topology = case
    split = MinMax(topology=topology).split(source // max(1, source.sum() >> 52), placement)
    assert np.array_equal(per_expert(split.source_quotas.sum(axis=1), placement), split.load)
    blind = MinMax(topology=topology).split(split.load, placement)
    speed = topology.relative_speed
    peaks = [
        (q.reshape(len(speed), -1).sum(axis=1) / speed).max() for q in (split.quotas, blind.quotas)
    ]
    assert peaks[0] == peaks[1]


def test_own_rank_comes_before_own_node():
    """Expert 0 on all ranks of two nodes, all tokens on ranks 0 and 2: the peak sends one out."""
    placement = Placement([[0, 0, 0, 0]], num_ranks=4, num_experts=1)
    topology = Topology(4, 2)
    split = MinMax(topology=topology).split([[[6], [0], [2], [0]]], placement)
    assert split.quotas.tolist() == [[2, 2, 2, 2]]
    assert split.source_quotas[0].tolist() == [[2, 2, 0, 2], [0] * 4, [0, 0, 2, 0], [0] * 4]
    assert near(split, topology) == (4, 6)


def test_without_nodes_all_ranks_are_one():
    placement = Placement([[0, 0]], num_ranks=2, num_experts=1)
    split = MinMax().split([[[4], [0]]], placement)
    assert split.source_quotas[0].tolist() == [[2, 2], [0, 0]]


def test_one_rank_no_load_and_the_largest_counts():
    one = Placement([[0, 1]], num_ranks=1, num_experts=2)
    assert MinMax().split([[[3, 0]]], one).source_quotas.tolist() == [[[3, 0]]]
    two = Placement([[0, 1, 0, 1]], num_ranks=2, num_experts=2)
    assert not MinMax().split(np.zeros((1, 2, 2)), two).source_quotas.any()
    huge = MinMax(topology=Topology(2, speed=(1, 3))).split([[[2**52, 0], [2**52 - 2, 1]]], two)
    assert huge.source_quotas.sum(axis=(0, 2)).tolist() == [2**52, 2**52 - 1]
    assert huge.quotas.sum() == 2**53 - 1


@given(case=sources())
def test_same_answer_again_and_among_other_layers(case):
    source, placement, topology = case
    twice = Placement(
        np.concatenate([placement.slots] * 2),
        num_ranks=placement.num_ranks,
        num_experts=placement.num_experts,
    )
    minmax = MinMax(topology=topology)
    alone = minmax.split(source, placement).source_quotas
    both = minmax.split(np.concatenate([source] * 2), twice).source_quotas
    assert np.array_equal(both, np.concatenate([alone] * 2))
