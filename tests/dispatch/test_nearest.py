from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.cost import RankCost
from equipoise.dispatch import Even
from equipoise.dispatch.nearest import Nearest
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.dispatch.test_dispatchers import batches, counts, per_expert
from tests.reference import dispatch as reference

# Two nodes of two ranks. Expert 0 is on ranks 0, 1 (twice) and 3, expert 2 on 2 (twice) and 3.
NODES = Topology(4, 2)
PLACED = Placement([[0, 1, 0, 0, 2, 2, 0, 2]], num_ranks=4, num_experts=3)


def test_own_rank_then_own_node_then_all():
    source = np.zeros((1, 4, 3))
    source[0, :, 0] = [10, 20, 40, 80]
    split = Nearest(topology=NODES).split(source, PLACED)
    assert split.shares.tolist() == [[10, 0, 10, 10, 0, 0, 120, 0]]
    source = np.zeros((1, 4, 3))
    source[0, :, 2] = [3, 0, 10, 40]
    split = Nearest(topology=NODES).split(source, PLACED)
    assert split.shares.tolist() == [[0, 0, 0, 0, 6, 6, 0, 41]]
    assert split.quotas.tolist() == [[0, 0, 0, 0, 6, 6, 0, 41]]


def test_without_nodes_only_the_own_rank_is_near():
    source = np.zeros((1, 4, 3))
    source[0, 2, 0] = 6
    split = Nearest().split(source, PLACED)
    assert split.shares.tolist() == [[1.5, 0, 1.5, 1.5, 0, 0, 1.5, 0]]
    assert split.quotas.tolist() == [[1, 0, 2, 2, 0, 0, 1, 0]]


def test_single_assignments_of_many_sources_do_not_pile_up():
    """Every source has one assignment for an expert on two ranks: half go to either."""
    slots = [*range(8), 0, *range(8, 15)]
    placement = Placement([slots], num_ranks=16, num_experts=15)
    source = np.zeros((1, 16, 15))
    source[0, :, 0] = 1
    assert Nearest().split(source, placement).quotas[0, [0, 8]].tolist() == [8, 8]


@st.composite
def batches_by_source(draw, values):
    _, placement = draw(batches(values))
    divisors = [n for n in range(1, placement.num_ranks + 1) if placement.num_ranks % n == 0]
    ranks_per_node = draw(st.sampled_from(divisors))
    shape = (placement.num_layers, placement.num_ranks, placement.num_experts)
    flat = draw(st.lists(values, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return np.reshape(flat, shape), placement, Topology(placement.num_ranks, ranks_per_node)


@given(batch=batches_by_source(st.integers(0, 20)))
def test_sources_deal_as_the_twin_does(batch):
    source, placement, topology = batch
    split = Nearest(topology=topology).split(source, placement)
    node = topology.node_of_rank
    for layer, slots in enumerate(placement.slots):
        shares, quotas = reference.serve_nearest(source[layer], slots, node)
        assert split.quotas[layer].tolist() == quotas
        assert split.shares[layer] == pytest.approx(shares, rel=1e-12)
    assert split.rank_loads.sum(axis=1) == pytest.approx(source.sum(axis=(1, 2)))
    assert np.array_equal(
        per_expert(split.source_quotas.sum(axis=1), placement), source.sum(axis=1)
    )


@given(batch=batches_by_source(st.integers(0, 20)))
def test_as_much_as_can_stays_near(batch):
    """What sources keep on their rank and node is all that has a copy there."""
    source, placement, topology = batch
    quotas = Nearest(topology=topology).split(source, placement).source_quotas
    node, rank = topology.node_of_rank, placement.rank_of_slot
    on_rank = placement.copies_on_rank > 0
    on_node = np.stack([on_rank[:, node == node[r]].any(axis=1) for r in range(len(node))], axis=1)
    kept = quotas[:, rank == np.arange(len(node))[:, None]].sum()
    assert kept == source[on_rank].sum()
    assert quotas[:, node[rank] == node[:, None]].sum() == source[on_node].sum()


@given(batch=batches(counts))
def test_equal_sources_without_loads_by_source(batch):
    load, placement = batch
    ranks = placement.num_ranks
    split = Nearest().split(load, placement)
    equal = np.repeat(load[:, None] * 2.0**-10, ranks, axis=1)
    assert split.shares == pytest.approx(
        Nearest().split(equal, placement).shares * 2.0**10 / ranks, rel=1e-12
    )
    assert np.abs(split.quotas - split.shares).max() <= 1 + 1e-12 * load.max()
    assert np.array_equal(per_expert(split.quotas, placement), load)


def test_shares_are_rounded_as_they_add_up():
    two = Placement(np.tile([0, 1, 0, 1], (4, 1)), num_ranks=2, num_experts=2)
    split = Nearest().split([[1, 0], [3, 0], [5, 4], [0, 0]], two)
    assert split.quotas.tolist() == [[0, 0, 1, 0], [2, 0, 1, 0], [2, 2, 3, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize("load", [2**53 - 2, 2**53 - 3, 2**52 + 1])
def test_the_most_load_still_exact(load):
    """Where float64 cannot hold a third, quotas still sum to the load."""
    thirds = Placement([[0, 1, 0, 2, 0, 3]], num_ranks=3, num_experts=4)
    quotas = Nearest().split([[load, 1, 0, 0]], thirds).quotas
    assert int(quotas[0, ::2].sum()) == load
    assert np.abs(quotas[0, ::2] - load / 3).max() <= 1


def test_on_one_node_equal_sources_are_served_evenly():
    """Every copy serves its own rank and the same part of what the other ranks have."""
    ring = Placement([[0, 3, 1, 0, 2, 1, 3, 2]], num_ranks=4, num_experts=4)
    load = [[30, 8, 14, 1]]
    wanted = Even().split(load, ring).shares
    assert Nearest().split(load, ring).shares == pytest.approx(wanted, rel=1e-15)


def test_peaks_are_those_of_the_splits():
    loads = np.random.default_rng(0).integers(0, 50, (3, 1, 3)).astype(float)
    for each in (
        Nearest(topology=NODES),
        Nearest(topology=Topology(4, 2, speed=(1, 2, 1, 1))),
        Nearest(cost=RankCost(expert_seconds=3.0, token_seconds=0.5)),
    ):
        wanted = [each.split(load, PLACED).peak for load in loads]
        assert each.peaks(loads, PLACED) == pytest.approx(np.array(wanted), rel=1e-12)


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match="The topology has 8 ranks, the placement 4"):
        Nearest(topology=Topology(8)).split([[1, 2, 3]], PLACED)
    halves = np.zeros((1, 4, 3))
    halves[0, 1:3, 2] = 0.5
    with pytest.raises(EquipoiseError, match="quotas need whole numbers"):
        _ = Nearest().split(halves, PLACED).quotas
    with pytest.raises(EquipoiseError, match="quotas of each source"):
        _ = Nearest().split([[1, 2, 3]], PLACED).source_quotas
