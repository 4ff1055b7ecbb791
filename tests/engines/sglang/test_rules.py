"""SGLang's dispatch tables against its fixtures."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.sglang.rules import SglangDynamic, SglangRows, SglangStatic
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.dispatch.test_dispatchers import placements

NODES = Topology(4, ranks_per_node=2)
EIGHT = Placement([[0, 1, 0, 2, 3, 1, 0, 3]], num_ranks=4, num_experts=4)
MAPS = Placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 2]], num_ranks=2, num_experts=4)
ROWS = Placement([[0, 1, 2, 3, 0, 1, 3, 3]], num_ranks=2, num_experts=4)


def static_table(placement, node_of_rank, rank, from_map):
    """The table of one rank in plain loops, from what the rank believes the copies are."""
    S = placement.slots_per_rank

    def near(slots, of_rank):
        if len(slots) == 1:
            return slots[0]
        own = [s for s in slots if s // S == of_rank]
        node = [s for s in slots if node_of_rank[s // S] == node_of_rank[of_rank]]
        if not own and len(node) == len(slots):
            return None
        return (own or node or [None])[0]

    generator = random.Random(42)
    table = []
    for row in placement.slots.tolist():
        table.append([])
        for expert in range(placement.num_experts):
            slots = [s for s, held in enumerate(row) if held == expert]
            if from_map and near(slots, rank) is not None:
                slots = [near(slots, rank)]
            nearest = {r: near(slots, r) for r in range(placement.num_ranks)}
            far = [r for r, slot in nearest.items() if slot is None]
            deal = slots * (len(far) // len(slots)) + generator.sample(slots, len(far) % len(slots))
            generator.shuffle(deal)
            nearest.update(zip(far, deal, strict=True))
            table[-1].append(nearest[rank])
    return table


@pytest.mark.parametrize("from_map", [True, False])
def test_static_table_on_two_nodes(from_map):
    table = SglangStatic(topology=NODES, from_map=from_map).table(EIGHT)
    assert table[:, 0].tolist() == [[0, 1, 3, 7], [2, 1, 3, 4], [6, 5, 3, 4], [6, 5, 3, 7]]


def test_static_tables_of_a_map():
    table = SglangStatic().table(MAPS)
    assert table[:, 0].tolist() == [[0, 1, 2, 3], [4, 5, 2, 3]]
    slots = SglangStatic().slots([[[0, 2], [2, 3]]], MAPS, rank=1)
    assert slots.tolist() == [[[4, 2], [4, 0]]]


@given(
    placement=placements(num_layers=2),
    ranks_per_node=st.sampled_from([1, 2, 5]),
    from_map=st.booleans(),
)
def test_static_tables_in_plain_loops(placement, ranks_per_node, from_map):
    R = placement.num_ranks
    topology = Topology(R, ranks_per_node) if R % ranks_per_node == 0 else Topology(R)
    table = SglangStatic(topology=topology, from_map=from_map).table(placement)
    for rank in range(R):
        wanted = static_table(placement, topology.node_of_rank.tolist(), rank, from_map)
        assert table[rank].tolist() == wanted


def test_ranks_without_a_copy_are_dealt_evenly_unless_each_deals_for_itself():
    slots = np.concatenate([np.arange(30), [0, 0]])[None]
    placement = Placement(slots, num_ranks=32, num_experts=30)
    load = np.zeros((1, 32, 30))
    load[..., 0] = 1
    even = SglangStatic(from_map=False).split(load, placement)
    assert sorted(even.quotas[0, [0, 30, 31]].tolist()) == [10, 11, 11]
    by_itself = SglangStatic().split(load, placement)
    assert by_itself.quotas[0, [0, 30, 31]].sum() == 32


def test_dynamic_by_row():
    slots = SglangRows().slots([[0, 3], [0, 3], [1, 2], [3, 0]], ROWS)
    assert slots.tolist() == [[0, 3], [4, 6], [1, 2], [3, 4]]
    load = np.random.default_rng(0).integers(0, 9, (1, 2, 4))
    rule = SglangRows(top_k=2)
    by_source, together = rule.split(load, ROWS), rule.split(load.sum(axis=1), ROWS)
    assert by_source.shares == pytest.approx(together.shares)


def test_dynamic_draws_among_the_copies_a_rank_may_use():
    ids = np.zeros((3000, 1), int)
    free = SglangDynamic(from_map=False)
    found = np.bincount(free.slots(ids, EIGHT).ravel(), minlength=8)
    assert found[[0, 2, 6]] == pytest.approx(1000, abs=100)
    assert found.sum() == found[[0, 2, 6]].sum()
    assert np.array_equal(free.slots(ids, EIGHT), free.slots(ids, EIGHT))
    other = SglangDynamic(from_map=False, seed=1)
    assert not np.array_equal(free.slots(ids, EIGHT), other.slots(ids, EIGHT))
    near = SglangDynamic(topology=NODES)
    assert set(near.slots(ids, EIGHT, rank=1).ravel().tolist()) == {2}
    assert set(near.slots(ids, EIGHT, rank=2).ravel().tolist()) == {6}
    assert set(near.slots(ids + 3, EIGHT, rank=1).ravel().tolist()) == {4, 7}
    shares = near.split(np.ones((1, 4, 4)), EIGHT).source_shares
    assert shares[0, 1].tolist() == [0, 1, 1, 1, 0.5, 0, 0, 0.5]
    assert free.split(np.full((1, 4, 4), 3), EIGHT).quotas[0, [0, 2, 6]].tolist() == [4, 4, 4]


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_seeds_that_are_none(seed):
    with pytest.raises(EquipoiseError, match="seed is"):
        SglangDynamic(seed=seed)


def test_topology_of_other_ranks():
    with pytest.raises(EquipoiseError, match="topology has 4 ranks, the placement 2"):
        SglangStatic(topology=NODES).split([[1, 1, 1, 1]] * 2, MAPS)
