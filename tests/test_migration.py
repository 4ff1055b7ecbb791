from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.migration import Receive, diff, keep_slots, match_ranks
from equipoise.placement import Placement
from equipoise.topology import Link, Topology
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


def encoded(placement):
    """Weights of every slot whose elements say layer, expert, tensor and position."""
    element = np.arange(6).reshape(2, 3)
    return [[1000 * layer + 10 * int(e) + element for e in row]
            for layer, row in enumerate(placement.slots)]  # fmt: skip


@given(pairs())
def test_transfers_replayed_give_the_new_map_bit_for_bit(pair):
    old, new, topology = pair
    migration = diff(old, new, topology)
    after = reference.replay(migration, encoded(old))
    assert np.array_equal(after, encoded(new))


@given(pairs())
def test_rounds_are_as_few_as_the_busiest_rank_needs(pair):
    old, new, topology = pair
    migration = diff(old, new, topology)
    busiest = np.maximum(migration.received, migration.sent).max(axis=1)
    assert np.array_equal(migration.num_rounds, busiest)
    assert np.array_equal(migration.round >= 0, migration.transfers)
    assert migration.sent.sum() == migration.received.sum() == migration.transfers.sum()


@given(pairs())
def test_the_cheapest_senders_share_the_work(pair):
    old, new, topology = pair
    migration = diff(old, new, topology)
    for layer in range(2):
        options = []
        for slot in np.flatnonzero(migration.transfers[layer]):
            holders = np.flatnonzero(old.copies_on_rank[layer, :, new.slots[layer, slot]])
            node = topology.node_of_rank
            near = holders[node[holders] == node[new.rank_of_slot[slot]]]
            options.append(near.tolist() if len(near) else holders.tolist())
            assert migration.source[layer, slot] in options[-1]
        if 0 < np.prod([float(len(o)) for o in options]) <= 500:
            least = reference.least_busiest_sender(options, new.num_ranks)
            assert migration.sent[layer].max() == least


def test_holders_take_turns():
    # K30: holders 0 and 1; ranks 2 to 4 need expert 0.
    old = place([[0, 1], [0, 2], [3, 4], [3, 5], [4, 5]], 6)
    new = place([[0, 1], [0, 2], [3, 0], [0, 5], [4, 0]], 6)
    migration = diff(old, new, Topology(5))
    assert sorted(migration.sent[0].tolist()) == [0, 0, 0, 1, 2]


def test_four_flows_among_three_ranks_take_two_rounds():
    # K31: 0 to 1, 0 to 2, 1 to 2, 2 to 0; rank 3 keeps what would be lost.
    old = place([[0, 1, 4], [4, 3, 5], [4, 5, 2], [4, 5, 5]], 6)
    new = place([[0, 1, 2], [0, 3, 5], [1, 3, 2], [4, 5, 5]], 6)
    migration = diff(old, new, Topology(4))
    flows = zip(migration.source[0], new.rank_of_slot, strict=True)
    assert sorted((int(a), int(b)) for a, b in flows if a >= 0) == [(0, 1), (0, 2), (1, 2), (2, 0)]
    assert migration.num_rounds.tolist() == [2]


def test_seconds_follow_the_slowest_link_of_each_round():
    topology = Topology(4, 2, node_link=Link(1, 10), network_link=Link(5, 2))
    old = place([[0, 1], [2, 3], [4, 5], [6, 7]], 8)
    swapped = place([[2, 1], [0, 3], [4, 5], [6, 7]], 8)
    migration = diff(old, swapped, topology)
    assert migration.num_rounds.tolist() == [1]
    assert migration.seconds(20) == 1 + 20 / 10
    assert migration.bytes_by_link(20) == {"node": 40, "network": 0}
    both = place([[2, 1], [0, 4], [3, 5], [6, 7]], 8)  # one more exchange, between the nodes
    migration = diff(old, both, topology)
    assert migration.num_rounds.tolist() == [2]
    assert migration.seconds(20) == (5 + 20 / 2) + (1 + 20 / 10)
    assert migration.bytes_by_link(20) == {"node": 40, "network": 40}
    assert migration.moves == 4
    assert diff(old, old, topology).seconds(20) == 0


def test_only_survivors_send():
    old = place([[0, 1], [1, 2], [2, 3]], 4)
    new = place([[0, 1], [1, 3], [2, 0]], 4)
    topology = Topology(3)
    alive = diff(old, new, topology)
    assert alive.source[0].tolist() == [-1, -1, -1, 2, -1, 0]
    assert not alive.lost.any()
    mourning = diff(old, new, topology, dead_ranks={0})
    assert mourning.source[0].tolist() == [-1, -1, -1, 2, -1, -1]
    assert mourning.lost[0].tolist() == [False] * 5 + [True]  # only rank 0 held expert 0
    both = diff(old, new, topology, dead_ranks=[0, 2])
    assert both.lost[0].tolist() == [False] * 3 + [True] + [False] * 2
    assert both.transfers.sum() == 0
    with pytest.raises(EquipoiseError, match="no rank 3 to be dead"):
        diff(old, new, topology, dead_ranks=[3])


def test_ranks_that_changed_names_need_nothing():
    # K28
    old, new = place([[0, 1], [2, 3]], 4), place([[2, 3], [0, 1]], 4)
    assert diff(old, new, Topology(2)).moves == 4
    assert match_ranks(old, new, Topology(2)) == old
    assert match_ranks(old, new, Topology(2, 1)) == old  # whole nodes change places


def test_unlike_ranks_keep_their_names():
    old, new = place([[0, 1], [2, 3], [4, 5]], 6), place([[2, 3], [0, 1], [5, 4]], 6)
    for unlike in ({"speed": (1, 2, 1)}, {"room": (2, 1, 2)}):
        kept = match_ranks(old, new, Topology(3, **unlike))
        assert ranks(kept) == [[2, 3], [0, 1], [4, 5]]
    assert match_ranks(old, new, Topology(3, speed=(2, 2, 1))) == old


@given(pairs())
def test_matching_ranks_moves_least_and_changes_no_load(pair):
    old, new, topology = pair
    matched = match_ranks(old, new, topology)
    assert diff(old, matched, topology).moves <= diff(old, keep_slots(old, new), topology).moves
    for layer in range(2):
        contents = [sorted(map(sorted, p.by_rank[layer].tolist())) for p in (new, matched)]
        assert contents[0] == contents[1]
        nodes = [
            sorted(map(sorted, p.slots[layer].reshape(topology.num_nodes, -1).tolist()))
            for p in (new, matched)
        ]
        assert nodes[0] == nodes[1]
        if topology.num_nodes == 1 and new.num_ranks <= 4:
            stays = np.minimum(
                new.copies_on_rank[layer][:, None], old.copies_on_rank[layer][None]
            ).sum(axis=2)
            kept = (matched.slots[layer] == old.slots[layer]).sum()
            assert kept == reference.match(stays.tolist())


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
    with pytest.raises(EquipoiseError, match=message):
        match_ranks(old, new, Topology(2))


def test_other_topologies_and_sizes_are_refused():
    old = place([[0], [1]], 2)
    with pytest.raises(EquipoiseError, match="topology has 4 ranks, the placement 2"):
        diff(old, old, Topology(4))
    with pytest.raises(EquipoiseError, match="topology has 4 ranks, the placement 2"):
        match_ranks(old, old, Topology(4))
    with pytest.raises(EquipoiseError, match="expert_bytes is -1; expected 0 or more"):
        diff(old, old, Topology(2)).bytes(-1)
