from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from equipoise.errors import EquipoiseError
from equipoise.migration import diff
from equipoise.placement import Placement
from equipoise.runtime.moving import transfer as transfers
from equipoise.runtime.moving.background import BackgroundTransfer, Throttle
from equipoise.runtime.moving.transfer import LayerMove, transfer
from equipoise.topology import Topology
from tests.runtime import small_model
from tests.runtime.coded import L, answers_right, any_placement, holds, make_layers, spoiled

NODES = Topology(4, ranks_per_node=2)
OLD, NEW = any_placement(0), any_placement(1)
MIGRATION = diff(OLD, NEW, NODES)
NEW_LAYERS = [NEW.rows([row]) for row in range(L)]


def spare_group() -> dist.ProcessGroup:
    """A group of all four processes for the threads."""
    return dist.new_group(timeout=datetime.timedelta(seconds=200))


def serve_and_move(moving, layers):
    """Forward passes until all is moved; whether all answers were right."""
    right = []
    while not moving.done:
        right += [answers_right(layer, row) for row, layer in enumerate(layers)]
        moving.commit()
    return all(right)


def move_both_ways(group, bytes_per_second, chunk_bytes):
    with mock.patch.object(transfers, "CHUNK_BYTES", chunk_bytes):
        blocking, serving = make_layers(OLD, group), make_layers(OLD, group)
        wanted = transfer(MIGRATION, blocking)
        moving = BackgroundTransfer(
            MIGRATION, serving, group=spare_group(), bytes_per_second=bytes_per_second
        )
        right = serve_and_move(moving, serving)
        moving.close()
    same = [
        torch.equal(tensor, b.weights[name])
        for a, b in zip(blocking, serving, strict=True)
        for name, tensor in a.weights.items()
    ]
    return (
        moving.outcome == wanted,
        wanted.moved,
        all(same),
        right,
        [holds(layer, NEW, row) for row, layer in enumerate(serving)],
        [answers_right(layer, row) for row, layer in enumerate(serving)],
    )


@pytest.mark.parametrize(("bytes_per_second", "chunk_bytes"), [(None, 1 << 20), (20_000, 16)])
def test_ends_in_the_weights_of_the_blocking_transfer(pool, bytes_per_second, chunk_bytes):
    for answer in pool.run(move_both_ways, bytes_per_second, chunk_bytes):
        assert answer == (True, tuple(range(L)), True, True, [True] * L, [True] * L)


def move_in_part(group):
    """A migration in which only layer 1 changes."""
    slots = OLD.slots.copy()
    slots[1] = NEW.slots[1]
    new = Placement(slots, num_ranks=4, num_experts=OLD.num_experts)
    layers = make_layers(OLD, group)
    moving = BackgroundTransfer(diff(OLD, new, NODES), layers, group=spare_group())
    moved = []
    while not moving.done:
        moved.append(moving.commit())
    moving.close()
    return [layer for layer in moved if layer is not None], [
        holds(layer, new, row) for row, layer in enumerate(layers)
    ]


def test_layers_in_which_nothing_moves_are_passed_over(pool):
    assert pool.run(move_in_part) == [([1], [True] * L)] * 4


def move_damaged(group, how):
    layers = make_layers(OLD, group)
    with spoiled(layers[1], how):
        before = {name: tensor.clone() for name, tensor in layers[1].weights.items()}
        moving = BackgroundTransfer(MIGRATION, layers, group=spare_group())
        while not moving.done:
            moving.commit()
        moving.close()
    unchanged = all(torch.equal(t, layers[1].weights[name]) for name, t in before.items())
    return (
        moving.outcome,
        moving.commit(),
        [holds(layers[0], NEW, 0), unchanged, holds(layers[2], OLD, 2)],
        how == "weights" or all(answers_right(layer, row) for row, layer in enumerate(layers)),
    )


@pytest.mark.parametrize("how", ["wire", "weights"])
def test_a_layer_that_arrives_damaged_goes_on_serving_as_it_was(pool, how):
    for outcome, after, as_expected, right in pool.run(move_damaged, how):
        assert outcome.moved == (0,)
        assert len(outcome.failures) >= 1
        assert all("layer 1: expert" in text for text in outcome.failures)
        assert after is None
        assert as_expected == [True] * 3
        assert right


def move_with_a_broken_thread(group):
    """The thread of rank 2 raises when it is to gather layer 1."""
    layers = make_layers(OLD, group)
    whole = LayerMove.stage

    def stage(move, *rest):
        gathered = whole(move, *rest)
        if move.row == 1 and move.layer.rank == 2:
            raise RuntimeError("no memory left")
        return gathered

    with mock.patch.object(LayerMove, "stage", stage):
        moving = BackgroundTransfer(MIGRATION, layers, group=spare_group())
        right = serve_and_move(moving, layers)
        moving.close()
    return moving.outcome, right, [holds(layers[0], NEW, 0), holds(layers[1], OLD, 1)]


def test_an_error_of_the_thread_ends_the_transfer_and_not_the_serving(pool):
    for outcome, right, as_expected in pool.run(move_with_a_broken_thread):
        assert outcome.moved == (0,)
        assert outcome.failures == ("Rank 2, layer 1: no memory left",)
        assert right
        assert as_expected == [True, True]


def move_with_a_missing_thread(group, error):
    """The thread of rank 2 ends before it takes part, so that those of others wait for it."""
    layers = make_layers(OLD, group)

    whole = LayerMove.stage

    def stage(move, *rest):
        if move.layer.rank == 2:
            raise error
        return whole(move, *rest)

    with mock.patch.object(LayerMove, "stage", stage):
        moving = BackgroundTransfer(MIGRATION, layers, group=spare_group())
        right = serve_and_move(moving, layers)
    return moving.outcome, right, [holds(layer, OLD, row) for row, layer in enumerate(layers)]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RuntimeError("no memory left"), "Rank 2, layer 0: no memory left"),
        (SystemExit(), "Rank 2: the thread of the transfer has died."),
    ],
)
def test_serving_does_not_wait_for_a_thread_that_waits(pool, error, failure):
    for outcome, right, as_before in pool.run(move_with_a_missing_thread, error):
        assert outcome.moved == ()
        assert outcome.failures == (failure,)
        assert right
        assert as_before == [True] * L


def hold_one_back(group):
    """Keep rank 1 from being ready for a while, though it has taken part."""
    layers, go_on = make_layers(OLD, group), threading.Event()
    whole, had_moved = LayerMove.stage, []

    def stage(move, *rest):
        had_moved.append(sum(layer.placement in NEW_LAYERS for layer in layers))
        gathered = whole(move, *rest)
        if move.layer.rank == 1:
            go_on.wait()
        return gathered

    with mock.patch.object(LayerMove, "stage", stage):
        moving = BackgroundTransfer(MIGRATION, layers, group=spare_group())
        others_ready = layers[0].rank == 1 or moving._gathered.get(timeout=200)
        if layers[0].rank != 1:
            moving._gathered.put(others_ready)
        early = [moving.commit() for _ in range(5)]
        as_before = holds(layers[0], OLD, 0) and answers_right(layers[0], 0)
        go_on.set()
        right = serve_and_move(moving, layers)
        moving.close()
    now = [holds(layer, NEW, row) for row, layer in enumerate(layers)]
    return early, as_before, right, now, had_moved


def test_no_rank_exchanges_a_layer_before_all_can(pool):
    assert pool.run(hold_one_back) == [([None] * 5, True, True, [True] * L, [0, 1, 2])] * 4


def close_early(group):
    """Close after the first layer; a second transfer over the same group takes over from there."""
    layers, spare = make_layers(OLD, group), spare_group()
    first = BackgroundTransfer(MIGRATION, layers, group=spare, bytes_per_second=1e9)
    while first.commit() is None:
        pass
    first.close()
    assert first.done
    assert first.commit() is None
    between = Placement([NEW.slots[0], *OLD.slots[1:]], num_ranks=4, num_experts=OLD.num_experts)
    held = [holds(layer, between, row) for row, layer in enumerate(layers)]
    second = BackgroundTransfer(diff(between, NEW, NODES), layers, group=spare)
    right = serve_and_move(second, layers)
    second.close()
    return held, right, [holds(layer, NEW, row) for row, layer in enumerate(layers)]


def test_closing_early_leaves_whole_layers(pool):
    assert pool.run(close_early) == [([True] * L, True, [True] * L)] * 4


def refused(group, migration, limit):
    layers, spare = make_layers(OLD, group), spare_group()
    with pytest.raises(EquipoiseError) as told:
        BackgroundTransfer(migration, layers, group=spare, bytes_per_second=limit)
    return str(told.value)


def test_what_does_not_fit_is_refused(pool):
    assert all("bytes_per_second is 0" in text for text in pool.run(refused, MIGRATION, 0))
    said = pool.run(refused, diff(NEW, OLD, NODES), None)
    assert all("Layer 0 does not hold" in text for text in said)


def test_a_throttle_keeps_the_rate():
    now = 5.0

    def wait(seconds):
        nonlocal now
        now += seconds

    throttle = Throttle(100.0, wait=wait, clock=lambda: now)
    for size in (50, 100, 1):
        throttle(size)
    assert now == pytest.approx(5.0 + 151 / 100)
    now += 10  # what was not sent meanwhile is not made up for
    throttle(100)
    assert now == pytest.approx(5.0 + 151 / 100 + 10 + 1)


def rebalance(group, background_too):
    """Serve the small model, move its experts, and serve it again."""
    old, new = small_model.random_placement(4, 12), small_model.random_placement(4, 12, seed=1)
    model = small_model.load(group, old, dispatch="minmax")
    far = [small_model.furthest_logit(model)]
    migration = diff(old, new, NODES)
    if background_too:
        moving = BackgroundTransfer(migration, model.layers, group=spare_group())
        while not moving.done:
            far.append(small_model.furthest_logit(model))
            moving.commit()
        moving.close()
        outcome = moving.outcome
    else:
        outcome = transfer(migration, model.layers)
    far.append(small_model.furthest_logit(model))
    return outcome.failures, model.placement == new, max(far)


@pytest.mark.parametrize("background_too", [False, True])
def test_the_model_says_the_same_while_and_after_its_experts_move(pool, background_too):
    for failures, moved, far in pool.run(rebalance, background_too):
        assert failures == ()
        assert moved
        assert far < small_model.TOLERANCE


EXITS_WHILE_MOVING = """
import sys, torch
import torch.distributed as dist
from equipoise.migration import diff
from equipoise.placement import Placement
from equipoise.runtime.moving import transfer
from equipoise.runtime.moving.background import BackgroundTransfer
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.topology import Topology

store, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
old = Placement([[*range(16)]], num_ranks=2, num_experts=16)
new = Placement([[*range(8, 16), *range(8)]], num_ranks=2, num_experts=16)
layer = ExpertParallelLayer(old, {"weight": torch.zeros(8, 4096)})
transfer.CHUNK_BYTES = 64  # many short waits in torch
moving = BackgroundTransfer(diff(old, new, Topology(2)), [layer], group=dist.new_group())
moving.abandon()
print(moving._thread.is_alive())
"""


def test_a_process_can_end_in_the_middle_of_a_transfer(tmp_path):
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", EXITS_WHILE_MOVING, tmp_path / "store", str(rank)],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [(rank.returncode, out) for rank, (out, _) in zip(ranks, told, strict=True)] == [
        (0, "True\n")
    ] * 2, told
