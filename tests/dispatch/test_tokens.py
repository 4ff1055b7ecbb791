"""Tokens to slots: exact quotas, few ranks, near the quotas at any time."""

from __future__ import annotations

import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import expert_loads
from equipoise.dispatch import Even, MinMax, _token_kernels, tokens
from equipoise.dispatch.tokens import (
    AHEAD,
    assign_tokens,
    expected_ranks_per_token,
    ranks_per_token,
)
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from tests.dispatch.test_dispatchers import per_expert, placements
from tests.reference import tokens as reference

TWO = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3, layer_ids=(7,))


@st.composite
def batches(draw, num_layers=2):
    """Ids with padding and repeats, quotas that sum to their counts but are otherwise any."""
    placement = draw(placements(num_layers))
    shape = (draw(st.integers(0, 12)), num_layers, draw(st.integers(1, 4)))
    values = st.integers(-1, placement.num_experts)
    size = int(np.prod(shape))
    ids = np.array(draw(st.lists(values, min_size=size, max_size=size)), np.int64).reshape(shape)
    quotas = np.zeros_like(placement.slots)
    for layer, expert in np.ndindex(num_layers, placement.num_experts):
        slots = np.flatnonzero(placement.slots[layer] == expert)
        for _ in range(int((ids[:, layer] == expert).sum())):
            quotas[layer, draw(st.sampled_from(slots.tolist()))] += 1
    return ids, quotas, placement


def counts_of(slots, placement):
    return np.stack(
        [expert_loads(slots[:, row], placement.num_slots) for row in range(placement.num_layers)]
    )


@given(batch=batches())
def test_every_choice_gets_a_slot_of_its_expert_and_every_slot_its_quota(batch):
    ids, quotas, placement = batch
    before = ids.copy(), quotas.copy()
    slots = assign_tokens(ids, quotas, placement)
    known = (ids >= 0) & (ids < placement.num_experts)
    assert np.array_equal(slots >= 0, known)
    held = placement.slots[np.arange(placement.num_layers)[:, None], slots]
    assert np.array_equal(held[known], ids[known])
    assert np.array_equal(counts_of(slots, placement), quotas)
    assert np.array_equal(before[0], ids)
    assert np.array_equal(before[1], quotas)


@given(batch=batches(), ahead=st.integers(1, 4))
def test_same_as_plain_loops(batch, ahead):
    ids, quotas, p = batch
    slots = _token_kernels.assign(ids, quotas, p.slots, p.num_experts, p.num_ranks, ahead)
    for row in range(p.num_layers):
        wanted = reference.assign(
            ids[:, row].tolist(), quotas[row].tolist(), p.slots[row].tolist(), p.num_ranks, ahead
        )
        assert slots[:, row].tolist() == wanted


@given(batch=batches())
def test_any_first_part_is_near_its_share(batch):
    ids, quotas, placement = batch
    slots = assign_tokens(ids, quotas, placement)
    total = per_expert(quotas, placement)
    for end in range(len(ids) + 1):
        taken = counts_of(slots[:end], placement)
        seen = per_expert(taken, placement)
        share = quotas * np.take_along_axis(seen / np.maximum(total, 1), placement.slots, axis=1)
        assert (taken <= share + AHEAD).all()


@given(batch=batches())
def test_layers_do_not_matter_to_each_other(batch):
    ids, quotas, placement = batch
    slots = assign_tokens(ids, quotas, placement)
    for row in range(placement.num_layers):
        alone = Placement(
            placement.slots[[row]],
            num_ranks=placement.num_ranks,
            num_experts=placement.num_experts,
        )
        assert np.array_equal(assign_tokens(ids[:, row], quotas[row], alone), slots[:, row])


def test_source_ranks_need_only_their_own_tokens_and_quotas():
    rng = np.random.default_rng(0)
    placement = Placement(
        np.concatenate([np.arange(12), rng.integers(0, 12, 4)])[None], num_ranks=4, num_experts=12
    )
    ids = np.argsort(rng.random((4, 50, 1, 12)), axis=-1)[..., :3]
    load = np.stack([tokens.expert_counts(of_rank, 12) for of_rank in ids], axis=1)
    split = MinMax().split(load, placement)
    slots = [
        assign_tokens(of_rank, split.source_quotas[:, rank], placement)
        for rank, of_rank in enumerate(ids)
    ]
    assert np.array_equal(counts_of(np.concatenate(slots), placement), split.quotas)


def test_a_token_shares_ranks_where_quotas_permit():
    """Expert 0 is on both ranks; 1 is only on rank 0, 2 only on rank 1."""
    slots = assign_tokens([[0, 1], [2, 0], [1, 0], [0, 2]], [2, 2, 2, 2], TWO)
    assert slots.tolist() == [[0, 1], [3, 2], [1, 0], [2, 3]]
    assert ranks_per_token(slots, TWO).tolist() == [1, 1, 1, 1]
    lopsided = assign_tokens([[0, 1], [0, 1], [0, 1], [0, 1]], [1, 4, 3, 0], TWO)
    assert ranks_per_token(lopsided, TWO).sum() == 1 + 3 * 2


def test_two_copied_experts_meet_on_a_rank_of_both():
    placement = Placement([[0, 2, 0, 1, 1, 3]], num_ranks=3, num_experts=4)
    assert assign_tokens([[0, 1]], [0, 0, 1, 0, 1, 0], placement).tolist() == [[2, 4]]
    slots = assign_tokens([[0, 1], [0, 1]], [1, 0, 1, 1, 1, 0], placement)
    assert slots.tolist() == [[2, 3], [0, 4]]


def test_copies_of_an_expert_take_turns():
    slots = assign_tokens(np.zeros((8, 1), int), [4, 0, 4, 0], TWO)
    assert slots.ravel().tolist() == [0, 2] * 4


def test_fewer_ranks_than_dealing_in_turn():
    rng = np.random.default_rng(3)
    ids = np.argsort(rng.random((400, 1, 32)) ** np.linspace(0.2, 3, 32), axis=-1)[..., -4:]
    counts = tokens.expert_counts(ids, 32)
    hottest = np.argsort(-counts[0], kind="stable")[:8]
    mixed = rng.permutation(np.concatenate([np.arange(32), hottest]))[None]
    placement = Placement(mixed, num_ranks=8, num_experts=32)
    ours = assign_tokens(ids, Even().split(counts, placement).quotas, placement)
    saved = expected_ranks_per_token(ids, placement).sum() - ranks_per_token(ours, placement).sum()
    assert saved > 0.03 * ids.size / 4 * 3


def test_the_same_with_any_number_of_threads():
    rng = np.random.default_rng(1)
    ids = rng.integers(-1, 9, (64, 3, 4))
    placement = Placement(
        np.concatenate([np.tile(np.arange(8), (3, 1)), rng.integers(0, 8, (3, 8))], axis=1),
        num_ranks=4,
        num_experts=8,
    )
    quotas = Even().split(tokens.expert_counts(ids, 8), placement).quotas
    wanted = assign_tokens(ids, quotas, placement)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert np.array_equal(assign_tokens(np.asfortranarray(ids), quotas, placement), wanted)
        assert np.array_equal(assign_tokens(ids.astype(np.int8), quotas, placement), wanted)
    finally:
        numba.set_num_threads(before)


def test_no_tokens_and_only_padding():
    nothing = np.zeros(4, np.int64)
    assert assign_tokens(np.zeros((0, 2), int), nothing, TWO).shape == (0, 2)
    assert assign_tokens([[-1, 3], [9, -5]], nothing, TWO).tolist() == [[-1, -1], [-1, -1]]
    assert ranks_per_token([[-1, -1]], TWO).tolist() == [0]


@given(batch=batches())
def test_ranks_per_token_counts_each_rank_once(batch):
    ids, quotas, placement = batch
    slots = assign_tokens(ids, quotas, placement)
    found = ranks_per_token(slots, placement)
    for token, row in np.ndindex(found.shape):
        wanted = reference.distinct_ranks(slots[token, row].tolist(), placement.slots_per_rank)
        assert found[token, row] == wanted


@pytest.mark.parametrize(
    ("slots", "num_ranks", "wanted"),
    [([0, 1, 2, 3], 2, [1, 2, 1]), ([0, 1, 2, 3, 0, 2], 3, [1.5, 2.0, 1.5])],
)
def test_send_ranks_of_random_copies(slots, num_ranks, wanted):
    placement = Placement([slots], num_ranks=num_ranks, num_experts=4)
    found = expected_ranks_per_token([[0, 1], [0, 3], [2, 3]], placement)
    assert found == pytest.approx(wanted)
    padded = expected_ranks_per_token([[0, 1, -1], [0, 3, 4], [2, 3, -1]], placement)
    assert padded == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("ids", "quotas", "message"),
    [
        ([[0, 1]], [1, 1, 1, 0], "Layer 7, expert 0: quotas of 2 for 1 assignments"),
        ([[0, 1]], [1, 0, 0, 0], "expert 1: quotas of 0 for 1 assignments"),
        ([[0, 1]], [2, 1, -1, 0], "A quota is -1"),
        ([[0, 1]], np.array([2**63, 1, 0, 0], np.uint64), "A quota is 9223372036854775808"),
        ([[0, 1]], [1, 1, 0], r"shape \(3,\); .* \(layers, slots\) = \(1, 4\)"),
        ([[0, 1]], [1.0, 1, 0, 0], "Quotas have type float64"),
        ([[0, 1]], [[1], [1, 0, 0]], "Quotas do not form an array"),
        ([[0.0, 1]], [1, 1, 0, 0], "Expert ids have type float64"),
        ([0, 1], [1, 1, 0, 0], r"shape \(2,\); .* or \(tokens, top_k\)"),
        ([[[0, 1], [0, 1]]], [1, 1, 0, 0], r"shape \(1, 2, 2\)"),
        ([[0, 1], [2]], [1, 1, 0, 0], "do not form an array"),
    ],
)
def test_what_is_refused(ids, quotas, message):
    with pytest.raises(EquipoiseError, match=message):
        assign_tokens(ids, quotas, TWO)


def test_one_layer_of_many_must_be_selected():
    placement = Placement([[0, 1], [1, 0]], num_ranks=2, num_experts=2)
    with pytest.raises(EquipoiseError, match=r"2 layers needs .*select one layer"):
        assign_tokens([[0, 1]], [[1, 1], [1, 1]], placement)


@pytest.mark.parametrize("slots", [[[0, 4]], [[-2, 0]], [[0.0, 1.0]], [0, 1], [[0], [1, 2]]])
def test_slots_that_no_placement_has(slots):
    with pytest.raises(EquipoiseError, match="Slots"):
        ranks_per_token(slots, TWO)


def test_importing_loads_no_compiler():
    code = "import sys, equipoise.dispatch.tokens; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
