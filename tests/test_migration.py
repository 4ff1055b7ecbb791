from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.migration import Receive, diff, keep_slots
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.reference import migration as reference


def place(ranks, num_experts):
    row = [e for rank in ranks for e in rank]
    return Placement([row], num_ranks=len(ranks), num_experts=num_experts)


def ranks(placement):
    return placement.by_rank[0].tolist()


def test_five_classes():
    old = place([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 3]], 10)
    new = place([[0, 2, 1], [3, 4, 1], [6, 5, 5], [9, 7, 8]], 10)
    migration = diff(old, new, Topology(4, 2))
    assert migration.counts.tolist() == [[5, 2, 1, 3, 1]]
    assert migration.received.tolist() == [[0, 1, 1, 2]]
    assert migration.bytes(44_040_192) == 4 * 44_040_192
    assert [Receive(int(r)).name for r in migration.receive[0]] == reference.receives(
        old.slots[0].tolist(), new.slots[0].tolist(), 4, 2
    )
    assert repr(migration) == (
        "Migration(5 unchanged, 2 same-rank, 1 free-rider, 3 same-node, 1 cross-node)"
    )


def test_node_follows_the_topology():
    old, new = place([[0], [1], [2], [3]], 4), place([[1], [2], [3], [0]], 4)
    assert diff(old, new, Topology(4)).counts.tolist() == [[0, 0, 0, 4, 0]]
    assert diff(old, new, Topology(4, 2)).counts.tolist() == [[0, 0, 0, 2, 2]]
    assert diff(old, old, Topology(4, 2)).bytes(7) == 0


def test_keep_slots_known_answers():
    # Ranks beyond those of the known answers hold the experts that would be missing.
    old, new = (
        place([[3, 1, 2], [7, 0, 4], [5, 6, 0]], 8),
        place([[1, 3, 7], [2, 0, 4], [5, 6, 0]], 8),
    )
    assert ranks(keep_slots(old, new))[0] == [3, 1, 7]
    old, new = place([[0, 1, 2], [3, 4, 5]], 6), place([[2, 0, 5], [4, 1, 3]], 6)
    assert ranks(keep_slots(old, new)) == [[0, 5, 2], [3, 4, 1]]
    old = place([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 9]], 10)
    new = place([[3, 0, 0, 9], [7, 4, 8, 5], [1, 2, 6, 6]], 10)
    assert ranks(keep_slots(old, new))[:2] == [[0, 0, 9, 3], [4, 5, 8, 7]]


@st.composite
def pairs(draw):
    num_ranks = draw(st.sampled_from([1, 2, 4, 6]))
    num_nodes = draw(st.sampled_from([n for n in (1, 2) if num_ranks % n == 0]))
    per_rank = draw(st.integers(1, 5))
    num_slots = num_ranks * per_rank
    num_experts = draw(st.integers(1, num_slots))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def rows():
        extra = rng.integers(0, num_experts, (2, num_slots - num_experts))
        slots = np.hstack([np.tile(np.arange(num_experts), (2, 1)), extra])
        return rng.permuted(slots, axis=1)

    old, new = (Placement(rows(), num_ranks=num_ranks, num_experts=num_experts) for _ in range(2))
    return old, new, Topology(num_ranks, num_ranks // num_nodes)


@given(pairs())
def test_diff_equals_its_twin(pair):
    old, new, topology = pair
    migration = diff(old, new, topology)
    for layer in range(2):
        a, b = old.slots[layer].tolist(), new.slots[layer].tolist()
        expected = reference.receives(a, b, topology.num_ranks, topology.num_nodes)
        assert [Receive(int(r)).name for r in migration.receive[layer]] == expected
    # What crosses the wire to a rank is what it did not hold.
    fresh = (new.copies_on_rank > 0) & (old.copies_on_rank == 0)
    assert np.array_equal(migration.received, fresh.sum(axis=2))
    assert (migration.counts.sum(axis=1) == new.num_slots).all()


@given(pairs())
def test_keeping_slots_reorders_within_ranks_only(pair):
    old, new, topology = pair
    kept = keep_slots(old, new)
    for layer in range(2):
        a, b = old.slots[layer].tolist(), new.slots[layer].tolist()
        assert kept.slots[layer].tolist() == reference.keep_slots(a, b, topology.num_ranks)
    assert np.array_equal(kept.copies_on_rank, new.copies_on_rank)
    before, after = diff(old, new, topology), diff(old, kept, topology)
    assert np.array_equal(before.received, after.received)
    assert (after.counts[:, Receive.UNCHANGED] >= before.counts[:, Receive.UNCHANGED]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ranks": 1}, "differ in ranks: 2 and 1"),
        ({"num_experts": 3, "slots": [[0, 1, 2, 2]]}, "differ in experts: 4 and 3"),
        ({"slots": [[0, 1, 2, 3, 0, 1]]}, "differ in slots: 4 and 6"),
        ({"layer_ids": (5,)}, "differ in layer ids: 0 and 5"),
    ],
)
def test_placements_of_other_shapes_are_refused(change, message):
    same = {"slots": [[0, 1, 2, 3]], "num_ranks": 2, "num_experts": 4}
    old, new = Placement(**same), Placement(**same | change)
    with pytest.raises(EquipoiseError, match=message):
        diff(old, new, Topology(2))
    with pytest.raises(EquipoiseError, match=message):
        keep_slots(old, new)


def test_other_topologies_and_sizes_are_refused():
    old = place([[0], [1]], 2)
    with pytest.raises(EquipoiseError, match="topology has 4 ranks, the placements 2"):
        diff(old, old, Topology(4))
    with pytest.raises(EquipoiseError, match="expert_bytes is -1"):
        diff(old, old, Topology(2)).bytes(-1)
