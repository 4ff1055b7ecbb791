from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.distributed as dist

from equipoise.errors import EquipoiseError
from equipoise.migration import Receive, diff, keep_slots
from equipoise.runtime.moving import transfer as transfers
from equipoise.runtime.moving.checksum import expert_checksum, slot_bytes
from equipoise.runtime.moving.transfer import transfer
from equipoise.topology import Topology
from tests.runtime.coded import (
    L,
    answers_right,
    any_placement,
    coded,
    holds,
    make_layers,
    spoiled,
)

NODES = Topology(4, ranks_per_node=2)
OLD, NEW = any_placement(0), any_placement(1)
MIGRATION = diff(OLD, NEW, NODES)


def test_the_migration_has_every_kind_of_receive():
    assert (MIGRATION.counts.sum(axis=0) > 0).all()
    assert len(MIGRATION.counts[0]) == len(Receive)


def move(group, seeds, chunk_bytes):
    """Whether every layer holds, and answers, what it should after each of several moves."""
    where = any_placement(seeds[0])
    layers = make_layers(where, group)
    addresses = [t.data_ptr() for layer in layers for t in layer.weights.values()]
    right = []
    with mock.patch.object(transfers, "CHUNK_BYTES", chunk_bytes):
        for seed in seeds[1:]:
            new = keep_slots(where, any_placement(seed))
            outcome = transfer(diff(where, new, NODES), layers)
            assert outcome.failures == ()
            right += [holds(layer, new, row) for row, layer in enumerate(layers)]
            right += [answers_right(layer, row) for row, layer in enumerate(layers)]
            where = new
    assert addresses == [t.data_ptr() for layer in layers for t in layer.weights.values()]
    return right


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 8])
def test_slots_hold_what_the_new_placement_says(pool, chunk_bytes):
    for right in pool.run(move, (0, 1, 2, 3), chunk_bytes):
        assert right == [True] * (3 * 2 * L)


def move_nothing(group):
    layers = make_layers(OLD, group)
    return transfer(diff(OLD, OLD, NODES), layers)


def test_nothing_moves_where_nothing_changes(pool):
    assert {outcome.moved for outcome in pool.run(move_nothing)} == {()}


def move_damaged(group, how):
    """Move with something spoiled in layer 1: the outcome, and for each layer what it is now."""
    layers = make_layers(OLD, group)
    with spoiled(layers[1], how):
        before = {name: tensor.clone() for name, tensor in layers[1].weights.items()}
        outcome = transfer(MIGRATION, layers)
    unchanged = all(torch.equal(t, layers[1].weights[name]) for name, t in before.items())
    return (
        outcome,
        [holds(layers[0], NEW, 0), unchanged, holds(layers[2], OLD, 2)],
        [layer.placement.checksum for layer in layers],
        how == "weights" or answers_right(layers[1], 1),
    )


@pytest.mark.parametrize("how", ["wire", "weights"])
def test_a_layer_that_arrives_damaged_stays_as_it_was(pool, how):
    for outcome, as_expected, serving, right in pool.run(move_damaged, how):
        assert outcome.moved == (0,)
        assert len(outcome.failures) >= 1
        assert all("layer 1: expert" in text for text in outcome.failures)
        assert as_expected == [True] * 3
        rows = [NEW, OLD, OLD]
        assert serving == [p.rows([row]).checksum for row, p in enumerate(rows)]
        assert right


def refused(group, migration, change):
    """What every rank says to a migration that rank 2 may see otherwise."""
    layers = make_layers(OLD, group)
    if change == "order":
        layers.reverse()
    if change == "other" and dist.get_rank(group) == 2:
        migration = diff(OLD, any_placement(2), NODES)
    if change == "stale" and dist.get_rank(group) == 2:
        layers[1].placement = NEW.rows([1])
    with pytest.raises(EquipoiseError) as told:
        transfer(migration, layers)
    return str(told.value), [holds(layer, OLD, layer.layer_id) for layer in layers]


@pytest.mark.parametrize(
    ("migration", "change", "message"),
    [
        (diff(NEW, OLD, NODES), None, "Layer 0 does not hold what the migration starts from"),
        (diff(OLD, NEW, NODES, dead_ranks=[0, 1]), None, "no live rank has expert"),
        (MIGRATION, "order", "but layers 2, 1, 0 are given"),
        (MIGRATION, "other", "Ranks disagree on the migration"),
        (MIGRATION, "stale", "Ranks disagree on the migration"),
    ],
)
def test_migrations_that_do_not_fit_are_refused_by_all(pool, migration, change, message):
    for text, as_before in pool.run(refused, migration, change):
        assert message in text
        assert change == "stale" or as_before == [True] * L


def test_every_change_of_an_expert_shows_in_its_checksum():
    held = coded(OLD, 0, 0)
    first = int(expert_checksum(held, 1))
    for tensor in held.values():
        data = slot_bytes(tensor, 1)
        for at in range(len(data)):
            data[at] ^= 4
            assert int(expert_checksum(held, 1)) != first
            data[at] ^= 4
    assert int(expert_checksum(held, 1)) == first
    assert int(expert_checksum(dict(reversed(held.items())), 1)) == first


def test_what_cancels_in_a_plain_sum_shows_in_a_checksum():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    zero = torch.zeros(2)
    same_sums = [
        {"x": torch.cat([a, b])[None], "y": zero[None]},
        {"x": torch.cat([b, a])[None], "y": zero[None]},  # words exchanged
        {"x": torch.cat([zero, zero])[None], "y": torch.cat([a, b])[None]},  # tensors exchanged
        {"x": torch.cat([-a, -b])[None], "y": zero[None]},  # highest bits of two words
    ]
    assert len({int(expert_checksum(weights, 0)) for weights in same_sums}) == len(same_sums)


def test_a_checksum_stays_what_it_is():
    weights = {"w": torch.arange(6, dtype=torch.uint8)[None]}
    assert int(expert_checksum(weights, 0)) == splitmix_sum(bytes(range(6)))


def splitmix_sum(data: bytes) -> int:
    """The same with Python's integers."""
    total, mask = 0, (1 << 64) - 1

    def scramble(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    for number, start in enumerate(range(0, len(data), 8), 1):
        word = int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little")
        total += scramble(word + number * 0x9E3779B97F4A7C15 & mask)
    total = scramble(total & mask)
    return total - (1 << 64) if total >> 63 else total
