from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise as eq
from equipoise.errors import EquipoiseError
from equipoise.simulate.batches import virtual_steps

E = 40


def requests(lengths, phase="") -> eq.Trace:
    """Every token of a request chooses the request's number as its expert, in both layers."""
    ids = np.repeat(np.arange(len(lengths)), lengths)
    labels = {"phase": np.full(len(lengths), phase)} if phase else {}
    return eq.Trace.from_tokens(
        np.tile(ids[:, None, None], (1, 2, 1)),
        np.concatenate([[0], np.cumsum(lengths)]),
        num_experts=E,
        labels=labels,
    )


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=E).filter(any)


@given(LENGTHS, st.integers(1, 12), st.integers(1, 12), st.sampled_from(["", "decode"]))
def test_steps_have_their_size_and_come_again_as_they_were(lengths, tokens, steps, phase):
    trace = requests(lengths, phase)
    drawn = virtual_steps(trace, step_tokens=tokens, num_steps=steps, seed=1)
    assert drawn.counts.shape == (steps, 2, E)
    assert (drawn.counts.sum(axis=-1) == tokens).all()
    np.testing.assert_array_equal(drawn.counts[:, 0], drawn.counts[:, 1])  # a token is a whole
    again = virtual_steps(trace, step_tokens=tokens, num_steps=steps, seed=1)
    np.testing.assert_array_equal(again.counts, drawn.counts)


@given(LENGTHS, st.integers(1, 12))
def test_prompts_stay_whole_and_all_come_before_one_comes_again(lengths, tokens):
    steps = -(-sum(lengths) // tokens)
    drawn = virtual_steps(requests(lengths), step_tokens=tokens, num_steps=steps)
    counts = drawn.counts[:, 0]
    whole = steps * tokens == sum(lengths)
    if whole:
        np.testing.assert_array_equal(counts.sum(axis=0)[: len(lengths)], lengths)
    for request, length in enumerate(lengths):
        parts = np.count_nonzero(counts[:, request])
        more = 1 if whole else 2  # the last step may begin one again
        assert parts <= -(-length // tokens) + more


def test_a_sequence_gives_a_token_a_step_until_it_ends():
    trace = requests([30] * 20, "decode")
    counts = virtual_steps(trace, step_tokens=4, num_steps=200, seed=3).counts[:, 0]
    assert (counts.sum(axis=-1) == 4).all()
    runs = np.diff(np.concatenate([[0], np.flatnonzero((np.diff(counts, axis=0) != 0).any(-1))]))
    assert counts.max() <= 2  # no request twice unless all have come
    assert runs.mean() > 5  # of tokens at random a step differs from the last nearly always


def test_counts_go_on_in_order_with_their_shares():
    counts = np.zeros((2, 1, 4), np.int64)
    counts[0, 0, :2] = 5, 15
    counts[1, 0, 2] = 7
    trace = eq.Trace(counts=counts, top_k=2)
    drawn = virtual_steps(trace, step_tokens=500, num_steps=10)
    assert (drawn.counts.sum(axis=-1) == 1000).all()
    assert drawn.counts[:5, 0, :2].sum(axis=0) / 5000 == pytest.approx([0.25, 0.75], abs=0.03)
    assert (drawn.counts[5:, 0, 2] == 1000).all()
    assert "500 tokens were drawn" in drawn.provenance.notes[-1]


def test_what_cannot_be_drawn_from_is_refused():
    empty = eq.Trace(counts=np.zeros((2, 1, 4), np.int64), top_k=1)
    for trace, said in (
        (empty, "no load"),
        (replace(empty, top_k=None), "how many experts"),
        (requests([0, 0]), "no tokens"),
        (replace(requests([1, 1]), labels={"phase": np.array(["decode", "prefill"])}), "one phase"),
    ):
        with pytest.raises(EquipoiseError, match=said):
            virtual_steps(trace, step_tokens=4, num_steps=2)
    with pytest.raises(EquipoiseError, match="fewer or smaller"):
        virtual_steps(requests([1]), step_tokens=1 << 15, num_steps=1 << 15)
