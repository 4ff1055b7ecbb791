"""Weights of others than our layer are moved as those of the layer are."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist

from equipoise.migration import diff
from equipoise.placement import Placement
from equipoise.runtime.moving.background import BackgroundTransfer
from equipoise.runtime.moving.checksum import expert_checksum
from equipoise.runtime.moving.store import SlotStore, device_of, write_slots
from equipoise.runtime.moving.transfer import transfer
from equipoise.topology import Topology
from tests.runtime.coded import E, L, any_placement, code, coded, holds, make_layers

NODES = Topology(4, ranks_per_node=2)
OLD, NEW = any_placement(0), any_placement(1)
MIGRATION = diff(OLD, NEW, NODES)


class TensorsOfAnEngine:
    """What a plug-in has: a dict of the engine's tensors, no module, and a log of its commits."""

    def __init__(self, where: Placement, row: int, group: Any) -> None:
        self.layer_id = row
        self.placement = where.rows([row])
        self.group, self.rank = group, dist.get_rank(group)
        self.weights = coded(where, row, self.rank)
        self.checksums = [
            int(expert_checksum({n: t[None] for n, t in code(row, expert).items()}, 0))
            for expert in range(E)
        ]
        self.committed: list[list[int]] = []

    def commit(
        self, placement: Placement, slots: Iterable[int], contents: Mapping[str, torch.Tensor]
    ) -> None:
        slots = list(slots)
        write_slots(self.weights, slots, contents)
        self.placement = placement
        self.committed.append(slots)


def stores(group: Any) -> list[SlotStore]:
    return [TensorsOfAnEngine(OLD, row, group) for row in range(L)]


def move(group: Any, background: bool) -> tuple[Any, ...]:
    layers, others = make_layers(OLD, group), stores(group)
    assert all(a.checksums == tuple(b.checksums) for a, b in zip(layers, others, strict=True))
    addresses = [t.data_ptr() for store in others for t in store.weights.values()]
    wanted = transfer(MIGRATION, layers)
    if background:
        spare = dist.new_group(timeout=datetime.timedelta(seconds=200))
        moving = BackgroundTransfer(MIGRATION, others, group=spare)
        while not moving.done:
            moving.commit()
        moving.close()
        outcome = moving.outcome
    else:
        outcome = transfer(MIGRATION, others)
    same = [
        torch.equal(tensor, store.weights[name])
        for layer, store in zip(layers, others, strict=True)
        for name, tensor in layer.weights.items()
    ]
    return (
        outcome == wanted,
        all(same) and addresses == [t.data_ptr() for s in others for t in s.weights.values()],
        [holds(store, NEW, row) for row, store in enumerate(others)],
        [store.committed for store in others],
        str(device_of(others[0])),
    )


@pytest.mark.parametrize("background", [False, True])
def test_ends_in_the_weights_of_the_layer(pool, background):
    for rank, answer in enumerate(pool.run(move, background)):
        changed = OLD.by_rank[:, rank] != NEW.by_rank[:, rank]
        slots = [[row.nonzero()[0].tolist()] for row in changed]
        assert answer == (True, True, [True] * L, slots, "cpu")


def move_what_has_changed_since(group: Any) -> tuple[Any, ...]:
    others = stores(group)
    if others[1].rank == 0:
        others[1].weights["block_scale"] += 1
    outcome = transfer(MIGRATION, others)
    return outcome.moved, [store.placement == OLD.rows([row]) for row, store in enumerate(others)]


def test_what_arrives_damaged_is_not_committed(pool):
    assert pool.run(move_what_has_changed_since) == [((0,), [False, True, True])] * 4
