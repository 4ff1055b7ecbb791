"""What is true of all routing: planted violations are left out with a note, said, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.invariants import NO_CHOICE, checked, clean_choices, same_tokens
from equipoise.trace import Trace


def routing(tokens: int, layers: int, top_k: int, experts: int, seed: int = 0) -> np.ndarray:
    """Different choices of every token, ``(D, L, K)``."""
    random = np.random.default_rng(seed)
    return random.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k]


def counted(ids: np.ndarray, experts: int, steps: int = 4) -> np.ndarray:
    """Counts ``(T, L, E)`` of ids, the tokens in ``steps`` equal parts."""
    parts = np.array_split(ids, steps)
    return np.stack([(p[..., None] == np.arange(experts)).sum(axis=(0, 2)) for p in parts])


def notes(trace: Trace) -> str:
    return " ".join(trace.provenance.notes)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4), st.booleans())
def test_dense_layers_and_padding_go_and_every_choice_stays(seed, top_k, layers, wrapped):
    experts = top_k + 3
    random = np.random.default_rng(seed)
    dense = random.random(layers + 2) < 0.4
    dense[random.integers(layers + 2)] = False  # one layer at least is left
    full = np.full((30, layers + 2, top_k), 255 if wrapped else 0, np.uint8)
    kept = np.flatnonzero(~dense)
    full[:, kept] = routing(30, len(kept), top_k, experts, seed)
    padding = random.random(30) < 0.3
    padding[0] = False
    full[padding] = 0
    clean = clean_choices(full)
    np.testing.assert_array_equal(clean.tokens, ~padding)
    np.testing.assert_array_equal(clean.layers, kept)
    np.testing.assert_array_equal(clean.ids, full[~padding][:, kept])
    expected = [len(kept) < layers + 2, padding.any(), (full == 255).any()]
    assert len(clean.notes) == sum(map(bool, expected))


def test_sound_choices_pass_without_a_word():
    ids = routing(50, 3, 4, 16)
    clean = clean_choices(ids)
    np.testing.assert_array_equal(clean.ids, ids)
    assert clean.notes == ()


def test_a_layer_that_is_missing_for_some_tokens_counts_for_nothing_there():
    ids = routing(50, 3, 4, 16)
    ids[7:9, 1] = 5
    clean = clean_choices(ids)
    assert (clean.ids[7:9, 1] == NO_CHOICE).all()
    assert "2 of 150 choices" in clean.notes[0]


def test_layers_that_the_user_numbered_stay():
    ids = routing(50, 3, 4, 16)
    ids[:, 0] = 0
    clean = clean_choices(ids, keep_layers=True)
    assert clean.layers.tolist() == [0, 1, 2]
    assert (clean.ids[:, 0] == NO_CHOICE).all()
    assert clean.notes == ()


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.zeros((20, 4, 8), np.uint8), "Nothing was captured: every choice is 0"),
        (np.full((20, 4, 8), -1), "Nothing was captured: every choice is -1"),
        (np.arange(20)[:, None, None] + np.zeros((20, 4, 8), int), "no token has two choices"),
        (np.array([[[1, 2, 1]], [[0, 1, 2]]]), "Token 0 names expert 1 twice in layer row 0"),
        (np.array([[[1, -100]], [[0, 1]]], np.int8), "ids above 127 wrapped"),
    ],
)
def test_what_cannot_be_routing_is_refused(ids, said):
    with pytest.raises(EquipoiseError, match=said):
        clean_choices(ids)


def test_a_wrapped_minus_one_is_no_expert():
    ids = routing(50, 2, 4, 16).astype(np.uint8)
    ids[3, 0, 2:] = 255
    clean = clean_choices(ids)
    assert clean.ids[3, 0].tolist() == [*ids[3, 0, :2], NO_CHOICE, NO_CHOICE]
    assert "2 ids are 255, a wrapped -1" in clean.notes[0]
    once = routing(50, 2, 4, 16).astype(np.uint8)
    once[3, 0, 3] = 255
    assert clean_choices(once).ids.max() == 255, "a model may have 256 experts"
    assert clean_choices(once, num_experts=64).ids.max() < 16


def test_a_model_of_256_experts_in_8_bits_keeps_its_last():
    ids = routing(500, 2, 8, 256).astype(np.uint8)
    assert (ids == 255).any()
    np.testing.assert_array_equal(clean_choices(ids).ids, ids)


def test_chunks_say_the_same(monkeypatch):
    ids = routing(50, 3, 4, 16)
    ids[11] = 0
    whole = clean_choices(ids)
    monkeypatch.setattr("equipoise.invariants._CHUNK_CELLS", 40)
    np.testing.assert_array_equal(clean_choices(ids).tokens, whole.tokens)
    ids[31, 2, :2] = 3
    with pytest.raises(EquipoiseError, match="Token 31 names expert 3 twice in layer row 2"):
        clean_choices(ids)


def by_rank(groups: list[int], ties: int = 0, tokens: int = 300) -> np.ndarray:
    """Counts ``(T, R, L, E)``: rank ``r`` saw ``groups[r]``, a few near ties apart."""
    cubes = []
    for rank, group in enumerate(groups):
        ids = routing(tokens, 3, 4, 16, seed=group)
        random = np.random.default_rng(1000 + rank)
        for _ in range(ties):
            token, layer = random.integers(tokens), random.integers(3)
            ids[token, layer, 0] = np.setdiff1d(np.arange(16), ids[token, layer])[0]
        cubes.append(counted(ids, 16))
    return np.stack(cubes, axis=1)


@pytest.mark.parametrize("ties", [0, 1, 3])
@pytest.mark.parametrize("groups", [[0] * 8, [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3]])
def test_ranks_that_saw_the_same_tokens_are_found_near_ties_included(groups, ties):
    cube = by_rank(groups, ties)
    expected = [tuple(r for r, g in enumerate(groups) if g == group) for group in sorted({*groups})]
    assert same_tokens(cube) == expected
    found = checked(Trace(counts=cube.sum(axis=1), source_counts=cube))
    np.testing.assert_array_equal(
        found.counts, cube[:, [group[0] for group in expected]].sum(axis=1)
    )
    assert (found.source_counts is None) == (len(expected) < len(groups))
    assert ("counted once" in notes(found)) == (len(expected) < len(groups))


@pytest.mark.parametrize("seed", range(200))
def test_independent_ranks_are_never_taken_for_one(seed):
    cube = np.random.default_rng(seed).poisson(2.0, size=(6, 2, 3, 16))
    assert same_tokens(cube) == [(0,), (1,)]


def test_ranks_without_load_are_alone():
    cube = by_rank([0, 0, 1, 1])
    cube[:, 2:] = 0
    assert same_tokens(cube) == [(0, 1), (2,), (3,)]


def trace(ids: np.ndarray, experts: int, **more) -> Trace:
    return Trace(counts=counted(ids, experts), top_k=ids.shape[2], **more)


def test_a_sound_recording_passes_without_a_word():
    sound = trace(routing(2000, 4, 4, 16), 16)
    assert notes(checked(sound)) == ""


def test_empty_layers_go_with_the_option_that_keeps_them():
    counts = counted(routing(400, 5, 4, 16), 16)
    counts[:, :2] = 0
    found = checked(Trace(counts=counts, layer_ids=(0, 1, 2, 3, 5)))
    assert found.layer_ids == (2, 3, 5)
    assert "Layers 0-1 had no load" in notes(found)
    assert "layer_ids 0-3,5" in notes(found)
    assert checked(Trace(counts=counts), layers_given=True).num_layers == 5


def test_a_layer_that_sends_all_to_one_expert_is_dense():
    counts = counted(routing(400, 4, 4, 16), 16)
    counts[:, 1, 0], counts[:, 1, 1:] = counts[:, 1].sum(axis=1), 0
    found = checked(Trace(counts=counts, top_k=4))
    assert found.layer_ids == (0, 2, 3)
    assert "4 different choices cannot do" in notes(found)
    kept = checked(Trace(counts=counts))
    assert kept.num_layers == 4
    assert "Layers 1 sent every assignment to one expert" in notes(kept)


def test_draft_passes_under_a_layers_number_are_said():
    counts = counted(routing(400, 6, 4, 16), 16)
    counts[:, 0] += counted(routing(400, 1, 4, 16, seed=1), 16)[:, 0]
    found = notes(checked(Trace(counts=counts)))
    assert "Layer 0 carries 2.00 times" in found
    assert "draft (MTP)" in found
    assert "layer_ids 1-5" in found


def test_steps_with_missing_layers_are_said():
    counts = counted(routing(400, 6, 4, 16), 16, steps=200)
    counts[7, 3] = 0
    assert "In 1 of 200 steps (first: 7)" in notes(checked(Trace(counts=counts)))


def test_padded_experts_go_with_the_option_that_keeps_them():
    sound = trace(routing(2000, 4, 4, 12), 16)
    found = checked(sound)
    assert found.num_experts == 12
    assert "Experts 12-15 were never chosen" in notes(found)
    assert "num_experts 16" in notes(found)
    assert checked(sound, experts_given=True).num_experts == 16


def test_experts_missing_in_a_short_recording_may_be_chance():
    short = trace(routing(6, 4, 4, 12), 16)
    assert checked(short).num_experts == 16


def test_an_expert_that_no_layer_chose_is_suspect():
    ids = routing(2000, 4, 4, 16)
    ids[ids == 5] = 16
    found = checked(trace(ids, 17))
    assert "Experts 5 were never chosen in any layer" in notes(found)


def test_a_layer_with_fewer_experts_is_refused_until_told():
    ids = routing(2000, 3, 4, 16)
    ids[:, 1] = routing(2000, 1, 4, 12)[:, 0]
    short = trace(ids, 16, layer_ids=(3, 4, 5))
    with pytest.raises(EquipoiseError, match=r"Layer 4 never chose the experts 12-15.*3,5"):
        checked(short)
    assert checked(short, experts_given=True).num_experts == 16
    assert checked(short.with_layers((3, 5))).num_layers == 2


def test_more_assignments_than_tokens_are_said():
    counts = counted(routing(400, 2, 4, 16), 16)
    counts[1, 0] = [counts[1, 0].sum() - 15, *[1] * 15]
    assert "Step 1, layer 0: expert 0 has" in notes(checked(Trace(counts=counts, top_k=4)))


def test_more_choices_than_experts_are_refused():
    with pytest.raises(EquipoiseError, match="top_k is 8 with 4 experts"):
        checked(Trace(counts=np.ones((1, 2, 4), int), top_k=8))


def test_checking_twice_adds_nothing():
    counts = counted(routing(400, 6, 4, 16), 16)
    counts[:, 0] *= 2
    once = checked(Trace(counts=counts))
    assert checked(once).provenance.notes == once.provenance.notes
