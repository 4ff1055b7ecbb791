from __future__ import annotations

import logging
import re
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from equipoise.errors import EquipoiseError
from equipoise.migration import keep_slots
from equipoise.placement import Placement
from equipoise.runtime.members import filling
from equipoise.runtime.members.recovery import rebuild
from equipoise.runtime.moe.checkpoint import Checkpoint
from equipoise.runtime.moe.model import assemble
from equipoise.runtime.moving.checksum import slot_bytes
from equipoise.topology import Topology
from tests.runtime import small_model
from tests.runtime.coded import (
    SHAPES,
    E,
    L,
    answers_right,
    any_placement,
    code,
    coded,
    compute,
    holds,
    make_layers,
)

EXPERT_BYTES = sum(t.nbytes for t in code(0, 0).values())
ALL = (0, 1, 2, 3)


class CodedCheckpoint:
    """Has what ``coded`` says, unless it is told to lie."""

    layer_ids, num_experts, device = tuple(range(L)), E, torch.device("cpu")

    def __init__(self, fails_at: int | None = None, lies: bool = False) -> None:
        self.fails_at, self.lies = fails_at, lies

    def read_slots(self, layer_id, experts):
        if layer_id == self.fails_at:
            raise OSError("the disk is gone")
        read = [code(layer_id, expert + self.lies) for expert in experts]
        return {name: torch.stack([one[name] for one in read]) for name in SHAPES}

    def read_rest(self):
        body = nn.Module()
        body.model = nn.Module()
        body.model.layers = nn.ModuleList(nn.Module() for _ in range(L))
        for layer in body.model.layers:
            layer.mlp = nn.Module()
            layer.mlp.experts = nn.Identity()
        return body


def groups_of(*members):
    """A process group of each of some sets of processes; all processes have to call it."""
    return [dist.new_group(list(some)) for some in members]


def serve(where, group):
    """A model that serves a placement; ``None`` on a process outside of the group."""
    if dist.get_rank() not in dist.get_process_group_ranks(group):
        return None
    return assemble(CodedCheckpoint().read_rest(), make_layers(where, group))


def again(model, group, checkpoint=None, **options):
    """Rebuild, and see that every byte and answer is right; what was done, and the placement."""
    model, recovered = rebuild(
        model,
        checkpoint or CodedCheckpoint(),
        group=group,
        compute=compute,
        dispatch="minmax",
        **options,
    )
    where = model.placement
    assert all(layer.group is group for layer in model.layers)
    assert [holds(layer, where, row) for row, layer in enumerate(model.layers)] == [True] * L
    assert [answers_right(layer, row) for row, layer in enumerate(model.layers)] == [True] * L
    placed = [block.mlp.experts for block in model.model.model.layers]
    assert all(a is b for a, b in zip(placed, model.layers, strict=True))
    return model, recovered, where


def change(group, before, where, after, options):
    """Serve on some processes, then on others; those of both keep what they have."""
    old, new = groups_of(before, after)
    model = serve(where, old)
    if dist.get_rank() not in after:
        return None
    layers = [] if model is None else list(map(weakref.ref, model.layers))
    addresses = addresses_of(model)
    model, recovered, placement = again(model, new, **options)
    assert not any(layer() for layer in layers)  # nobody holds their memory
    return recovered, placement, addresses_of(model) == addresses


def addresses_of(model):
    if model is None:
        return []
    return [tensor.data_ptr() for layer in model.layers for tensor in layer.weights.values()]


def outcome(answers):
    """What the processes that serve say: the same of all."""
    answers = [answer for answer in answers if answer is not None]
    first, where, _ = answers[0]
    for recovered, placement, _ in answers:
        assert placement == where
        for name in ("num_ranks", "newcomers", "kept", "copied", "reloaded", "wrong", "more_bytes"):
            assert getattr(recovered, name) == getattr(first, name)
    assert first.kept + first.copied + first.reloaded == where.slots.size
    return first, where, [same for _, _, same in answers]


def spread(ranks, size, seed=0):
    return any_placement(seed, redundant=ranks * size - E, ranks=ranks)


def lost(where, ranks):
    """Experts of all layers that other ranks do not have."""
    stays = np.delete(where.by_rank, ranks, axis=1)
    return sum(E - len(np.unique(layer)) for layer in stays)


def test_nothing_moves_where_nothing_is_lost(pool):
    row = [*range(10), 0, 2, 4, 6, 8, 1, 3, 5, 7, 9]  # the last of four ranks has copies only
    where = Placement([row] * L, num_ranks=4, num_experts=E)
    recovered, placement, same = outcome(pool.run(change, ALL, where, (0, 1, 2), {}))
    assert (recovered.kept, recovered.copied, recovered.reloaded) == (15 * L, 0, 0)
    assert placement.slots.tolist() == where.slots[:, :15].tolist()
    assert same == [True] * 3
    assert str(recovered).startswith("3 ranks (0 new) serve: 45 slots kept, 0 copied, 0 reloaded")


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_what_is_lost_is_reloaded_and_nothing_else_moves(pool, gone):
    where = spread(4, 4)
    after = tuple(r for r in ALL if r != gone)
    recovered, _, same = outcome(pool.run(change, ALL, where, after, {}))
    assert recovered.reloaded == lost(where, [gone]) > 0
    assert recovered.copied == 0
    assert same == [True] * 3


@pytest.mark.parametrize(("after", "size"), [((1, 3), 5), ((2,), 10)])
def test_survivors_with_too_few_slots_get_more(pool, after, size):
    where = spread(4, 3)
    recovered, placement, _ = outcome(pool.run(change, ALL, where, after, {}))
    assert placement.slots_per_rank == recovered.slots_per_rank == size
    assert recovered.reloaded == lost(where, [r for r in ALL if r not in after])
    assert recovered.more_bytes == (size - 3) * L * EXPERT_BYTES
    assert f"Each rank now has {size} slots a layer, which take" in str(recovered)


@pytest.mark.parametrize("before", [(0,), (0, 1), (3, 1)])
def test_newcomers_copy_from_those_who_serve(pool, before):
    where = spread(len(before), 12 // len(before))
    after = (*before, *(r for r in ALL if r not in before))
    recovered, placement, _ = outcome(pool.run(change, before, where, after, {}))
    assert recovered.newcomers == 4 - len(before)
    assert recovered.reloaded == 0
    assert recovered.copied == recovered.newcomers * placement.slots_per_rank * L
    assert placement.slots_per_rank == where.slots_per_rank


@pytest.mark.parametrize("before", [(0,), (0, 1)])
def test_slots_are_given_up_when_ranks_are_added(pool, before):
    where = spread(len(before), 10)
    options = {"slots_per_rank": 3}
    recovered, placement, _ = outcome(pool.run(change, before, where, ALL, options))
    assert placement.slots_per_rank == 3
    assert recovered.reloaded == 0
    assert recovered.more_bytes == -7 * L * EXPERT_BYTES


def replace_one(group, where, gone, load_LE):
    """A rank dies and another comes in its place."""
    (new,) = groups_of(ALL)
    model = serve(where, new)
    if dist.get_rank() == gone:
        model = None
    _, recovered, placement = again(model, new, load_LE=load_LE)
    return recovered, placement, None


def test_a_newcomer_brings_back_what_is_lost(pool):
    where = Placement([[*range(10), *range(6)]] * L, num_ranks=4, num_experts=E)
    load = np.ones((L, E))
    load[:, 7] = 50
    recovered, placement, _ = outcome(pool.run(replace_one, where, 2, load))
    assert (recovered.newcomers, recovered.kept) == (1, 12 * L)
    assert recovered.reloaded == lost(where, [2]) == 2 * L
    assert placement.copies[:, 7].tolist() == [2] * L  # the busy expert is worth a copy


def interrupted(group, old, new, written, committed):
    """Some ranks have written the move of layer 1, and some know that they have, when one dies."""
    before, after = groups_of(ALL, (0, 1, 2))
    model, rank = serve(old, before), dist.get_rank()
    if rank in written:
        for name, tensor in coded(new, 1, rank).items():
            model.layers[1].weights[name].copy_(tensor)
    if rank in committed:
        model.layers[1].placement = new.rows([1])
    if rank == 3:
        return None
    _, recovered, placement = again(model, after)
    return recovered, placement, None


@pytest.mark.parametrize(
    ("written", "committed"), [((0, 2), (0, 2)), ((0, 1, 2), (0,)), ((1,), (0,)), ((0, 1), ())]
)
def test_survivors_of_an_interrupted_move_serve_what_they_hold(pool, written, committed):
    old = spread(4, 4)
    new = keep_slots(old, spread(4, 4, seed=1))
    recovered, _, _ = outcome(pool.run(interrupted, old, new, written, committed))
    unlike = (old.by_rank[1] != new.by_rank[1]).sum(axis=1)
    assert unlike.min() > 0
    assert len(recovered.wrong) == sum(unlike[r] for r in {*written} ^ {*committed})
    assert all(re.search(r"layer 1, slot \d: expert \d instead", text) for text in recovered.wrong)


def damage(group, where, slots):
    """Bits of some slots of layer 2 are wrong."""
    old, new = groups_of(ALL, ALL)
    model, rank = serve(where, old), dist.get_rank()
    C = where.slots_per_rank
    for slot in slots:
        if slot // C == rank:
            slot_bytes(model.layers[2].weights["half"], slot % C)[3] ^= 8
    with mock.patch.object(logging.getLogger("equipoise.runtime"), "handle") as handle:
        _, recovered, placement = again(model, new)
    lines = [call.args[0].getMessage() for call in handle.call_args_list]
    assert len(lines) == sum(slot // C == rank for slot in slots)
    assert all(line.startswith("A slot is not used: layer 2, slot ") for line in lines)
    return recovered, placement, None


def test_wrong_bytes_are_replaced_by_those_of_another_holder(pool):
    where = spread(4, 4)
    expert = int(where.copies[2].argmax())
    slots = np.flatnonzero(where.slots[2] == expert)
    one, *_ = slots
    recovered, _, _ = outcome(pool.run(damage, where, [one]))
    assert recovered.reloaded == 0
    assert (recovered.kept, recovered.copied) == (16 * L - 1, 1)
    assert recovered.wrong == (
        f"Rank {one // 4}, layer 2, slot {one % 4}: bytes of no expert instead of expert {expert}.",
    )


def test_wrong_bytes_that_nobody_has_right_are_reloaded(pool):
    where = spread(4, 4)
    expert = int(where.copies[2].argmax())
    slots = np.flatnonzero(where.slots[2] == expert)
    assert len(slots) > 1
    recovered, _, _ = outcome(pool.run(damage, where, slots))
    assert recovered.reloaded == 1
    assert len(recovered.wrong) == len(slots)


def at_random(group, seeds):
    """Members, slots and damage drawn from a seed that all processes share."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        before = rng.permutation(4)[: rng.integers(1, 5)]
        after = [int(before[0]), *(r for r in range(4) if r != before[0] and rng.random() < 0.6)]
        old, new = groups_of(before.tolist(), after)
        size = -(-E // len(before)) + int(rng.integers(0, 3))
        model = serve(spread(len(before), size, seed), old)
        wanted = [None, int(rng.integers(1, 8))][rng.integers(2)]
        if model is not None and rng.random() < 0.5:
            spoil = np.random.default_rng([seed, dist.get_rank()])
            for layer in model.layers:
                slot_bytes(layer.weights["weight"], int(spoil.integers(size)))[1] ^= 1
        if dist.get_rank() in after:
            _, _, where = again(model, new, slots_per_rank=wanted)
            least = -(-E // len(after))
            assert where.slots_per_rank == max(wanted or size, least)


def test_any_change_of_ranks(pool):
    pool.run(at_random, range(15))


def twice(group, where):
    """A rebuild that fails half-way, on one rank only, then one over fewer ranks yet."""
    old, fewer, least = groups_of(ALL, (0, 1, 3), (1, 3))
    model, rank = serve(where, old), dist.get_rank()
    if rank == 2:
        return None
    with pytest.raises(EquipoiseError) as told:
        rebuild(
            model,
            CodedCheckpoint(fails_at=2 if rank == 0 else None),
            group=fewer,
            slots_per_rank=6,
            compute=compute,
        )
    sizes = [layer.placement.slots_per_rank for layer in model.layers]
    if rank == 0:
        return str(told.value), sizes, None
    _, recovered, _ = again(model, least)
    return str(told.value), sizes, recovered


def test_a_rebuild_that_failed_is_taken_up_where_it_ended(pool):
    a, b, _, d = pool.run(twice, spread(4, 3))
    assert a[:2] == b[:2] == d[:2] == ("Rank 0: the disk is gone", [6, 6, 3])
    assert b[2].slots_per_rank == 6
    assert b[2].wrong == ()


def without_checkpoint(group, where, gone):
    old, new = groups_of(ALL, tuple(r for r in ALL if r != gone))
    model = serve(where, old)
    if dist.get_rank() == gone:
        return None
    try:
        return rebuild(model, None, group=new, compute=compute)[1].kept
    except EquipoiseError as error:
        return str(error)


def test_without_a_checkpoint_a_lost_expert_is_an_error_that_names_it(pool):
    rows = [[*range(10), 0, 9], [*range(10), 0, 1], [*range(10), 7, 8]]
    where = Placement(rows, num_ranks=4, num_experts=E)  # the last rank: 9 0 9, 9 0 1, 9 7 8
    answers = pool.run(without_checkpoint, where, 3)
    assert (
        answers[:3]
        == [
            "Rank 0: No rank has these experts any more, and there is no checkpoint: "
            "layer 0: 9; layer 1: 9; layer 2: 9."
        ]
        * 3
    )
    rows = [[*range(10), 0, 1, 2, 3, 4, 5]] * L
    enough = Placement(rows, num_ranks=4, num_experts=E)
    assert pool.run(without_checkpoint, enough, 3)[:3] == [12 * L] * 3


def refused(group, what):
    where, rank = spread(4, 4), dist.get_rank()
    (everyone,) = groups_of(ALL)
    model, checkpoint, options = serve(where, everyone), CodedCheckpoint(), {}
    if what == "nobody" or (what in ("newcomer", "lies") and rank == 3):
        model = None
    if what == "newcomer":
        checkpoint = None
    if what == "lies":
        checkpoint.lies = True
    if what == "other model" and rank == 2:
        model.layers[1].checksums = (1,) * E
    if what == "other checkpoint" and rank == 1:
        checkpoint.num_experts = 11
    if what == "load":
        options["load_LE"] = np.ones((L, E + 1))
    if what == "nan":
        options["load_LE"] = np.full((L, E), np.nan)
    if what == "topology":
        options["topology"] = lambda ranks: Topology(ranks + 1)
    if what == "slots":
        options["slots_per_rank"] = 0
    if what == "room":
        options["topology"] = lambda ranks: Topology(ranks, room=(2,) * ranks)
    with pytest.raises(EquipoiseError) as told:
        rebuild(model, checkpoint, group=everyone, compute=compute, **options)
    return str(told.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nobody", "No rank has a model; load one"),
        ("newcomer", "Rank 3: This rank has neither a model nor a checkpoint"),
        ("lies", r"Layer 0: expert \d is not in the checkpoint as it was served"),
        ("other model", "Rank 2 has served another model"),
        ("other checkpoint", "checkpoint of rank 1 does not fit the model, which has layers 0-2"),
        ("load", r"Loads have shape \(3, 11\); expected 3 layers of 10"),
        ("nan", "expected finite numbers"),
        ("topology", "The topology has 5 ranks, the process group has 4"),
        ("slots", "slots_per_rank is 0"),
        ("room", "room for 8 experts of a layer, the model has 10"),
    ],
)
def test_what_cannot_be_is_refused_by_all(pool, what, message):
    answers = pool.run(refused, what)
    assert answers == [answers[0]] * 4
    assert re.search(message, answers[0])


def spoiled_on_the_wire(group, where, wanted):
    """Rank 0 sends every message with a wrong bit; then it does not."""
    old, new = groups_of((0, 1), ALL)
    model, whole = serve(where, old), filling._messages

    def messages(operation, weights, *others):
        if operation is dist.isend:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
            for slot in range(len(weights["scale"])):
                slot_bytes(weights["scale"], slot)[5] ^= 1
        return whole(operation, weights, *others)

    spoiled = messages if dist.get_rank() == 0 else whole
    with (
        mock.patch.object(filling, "_messages", spoiled),
        pytest.raises(EquipoiseError) as told,
    ):
        rebuild(
            model,
            CodedCheckpoint(),
            group=new,
            slots_per_rank=wanted,
            load_LE=[[1, 1, 1, 9, 8, 1, 1, 1, 1, 1]] * L,  # what newcomers get twice
            compute=compute,
        )
    again(model, new, slots_per_rank=wanted)
    return str(told.value)


@pytest.mark.parametrize(
    ("size", "wanted", "message"),
    [
        (5, 5, "hold different weights; both are to hold expert"),
        (10, 3, "has changed on its way between ranks"),
    ],
)
def test_what_changes_on_the_wire_is_not_served(pool, size, wanted, message):
    experts = [*range(10)] if size == 5 else [*range(10), *range(9, -1, -1)]
    where = Placement([experts] * L, num_ranks=2, num_experts=E)
    answers = pool.run(spoiled_on_the_wire, where, wanted)
    assert answers == [answers[0]] * 4
    assert message in answers[0]


def model_again(group, before, after, size, wanted):
    """The small model on some processes, then on others: how far its logits are."""
    old, new = groups_of(before, after)
    where = small_model.random_placement(len(before), len(before) * size - small_model.E)
    rank, model = dist.get_rank(), None
    if rank in before:
        model = small_model.load(old, where, dispatch="minmax")
        model.record()
    if rank not in after:
        return None
    checkpoint = Checkpoint(small_model.FOLDER)
    model, _ = rebuild(model, checkpoint, group=new, dispatch="minmax", slots_per_rank=wanted)
    assert model.recorder is None  # what it has counted is not of these ranks
    return small_model.furthest_logit(model), model.placement.slots_per_rank


@pytest.mark.parametrize(
    ("before", "after", "size", "wanted", "then"),
    [
        (ALL, (1, 3), 24, None, 24),
        (ALL, (0, 2), 9, None, 16),  # the survivors get more
        ((0, 1), ALL, 16, None, 16),
        ((0, 1), ALL, 16, 11, 11),  # and give up some
        ((0, 1), (2, 1), 20, None, 20),  # one goes and one comes
    ],
)
def test_the_model_serves_what_transformers_serves(pool, before, after, size, wanted, then):
    answers = [one for one in pool.run(model_again, before, after, size, wanted) if one]
    assert [size for _, size in answers] == [then] * len(after)
    assert max(far for far, _ in answers) < small_model.TOLERANCE
