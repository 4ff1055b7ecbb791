"""Chunks as TensorRT-LLM makes them, and how large they may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import Even, MinMax
from equipoise.dispatch.chunking import advised_max_tokens, chunk_tokens, num_chunks
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from tests.reference import tokens as reference

TWO = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)


def test_known_answers():
    tokens = [300, 100, 50, 0]
    assert num_chunks(tokens, 128) == 4
    assert chunk_tokens(tokens, 128).tolist() == [
        [75] * 4,
        [25] * 4,
        [13, 13, 12, 12],
        [0] * 4,
    ]
    assert num_chunks([256] * 36, 9216) == 1
    assert num_chunks([256] * 35 + [257], 9216) == 2


@given(
    tokens=st.lists(st.integers(0, 300), min_size=1, max_size=6),
    most=st.integers(1, 400),
)
def test_chunks_add_up(tokens, most):
    chunks = chunk_tokens(tokens, most)
    assert chunks.shape == (len(tokens), -(-sum(tokens) // most))
    for rank, n in enumerate(tokens):
        assert chunks[rank].tolist() == reference.chunk_sizes(n, chunks.shape[1])
    assert (chunks.sum(axis=0) < most + len(tokens)).all()


def test_advice_fills_the_busiest_ranks_buffer():
    load = np.array([[[60, 20, 20]], [[0, 0, 0]], [[10, 80, 10]]])  # rank 0: 50 of 100, 85 of 100
    assert advised_max_tokens(load, TWO, top_k=2, rank_assignments=1700) == 1000
    shared = advised_max_tokens(load, TWO, top_k=2, rank_assignments=1700, dispatch=MinMax())
    assert shared == 1062  # the first expert moves away: 80 of 100
    assert Even().peaks(load, TWO)[2, 0] / 100 * 2 * 1000 == 1700


@pytest.mark.parametrize(
    ("load", "room", "message"),
    [
        (np.zeros((1, 1, 3)), 10, "zero everywhere"),
        ([[[1, 0, 0]]], 0, "rank_assignments is 0"),
        ([[[0, 1, 0]]], 1.5, "hold one token's part on the busiest rank, 3"),
        ([[1, 2, 3]], 10, "Loads have shape"),
    ],
)
def test_advice_refuses(load, room, message):
    with pytest.raises(EquipoiseError, match=message):
        advised_max_tokens(load, TWO, top_k=3, rank_assignments=room)


@pytest.mark.parametrize(
    ("tokens", "most", "message"),
    [
        ([1, -1], 4, "Ranks have -1 to 1 tokens"),
        ([2**41], 4, "Ranks have .* expected 0 to 2"),
        ([2**30], 4, "268435456 chunks are taken for a mistake"),
        ([[1], [1, 2]], 4, "do not form an array"),
        ([1.5], 4, "type float64"),
        (np.zeros(0, int), 4, r"shape \(0,\)"),
        ([[1]], 4, r"shape \(1, 1\)"),
        ([1], 0, "max_num_tokens is 0"),
        ([1], 1.5, "max_num_tokens is 1.5"),
        ([1], True, "max_num_tokens is True"),
        ([1], np.nan, "max_num_tokens is nan"),
    ],
)
def test_chunking_refuses(tokens, most, message):
    with pytest.raises(EquipoiseError, match=message):
        chunk_tokens(tokens, most)


def test_a_step_without_tokens_has_no_chunks():
    assert num_chunks([0, 0], 8) == 0
    assert chunk_tokens([0, 0], 8).shape == (2, 0)
