"""TensorRT-LLM's turns against its fixtures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.trtllm.rules import Trtllm
from equipoise.placement import Placement

SIX = Placement([[0, 1, 2, 0, 3, 0]], num_ranks=2, num_experts=4)


def turns(ids, slots_of, none, off):
    """The rule in plain loops over choices in a line."""
    answer, seen = [], {}
    for i, e in enumerate(ids):
        block = i // 1024
        if e not in slots_of:
            answer.append(none)
            continue
        slots, earlier = slots_of[e], seen.get((block, e), 0)
        answer.append(slots[(block + off + earlier) % len(slots)])
        seen[block, e] = earlier + 1
    return answer


def test_routing():
    ids = np.array([0, 0, 0, 0, 1, 2, 3, 0, -1, 4]).reshape(5, 2)
    assert Trtllm().slots(ids, SIX).ravel().tolist() == [0, 3, 5, 0, 1, 2, 4, 3, 6, 6]
    assert Trtllm().slots([[0, 0], [0, 0]], SIX, rank=1).ravel().tolist() == [3, 5, 0, 3]
    without = Trtllm(attention_dp=False).slots([[0, 0], [0, 0]], SIX, rank=1)
    assert without.ravel().tolist() == [0, 3, 5, 0]


@given(num_tokens=st.integers(1, 900), rank=st.integers(0, 1), seed=st.integers(0, 99))
def test_same_as_plain_loops_over_blocks(num_tokens, rank, seed):
    ids = np.random.default_rng(seed).integers(-1, 5, (num_tokens, 1, 3))
    slots_of = {0: [0, 3, 5], 1: [1], 2: [2], 3: [4]}
    wanted = turns(ids.ravel().tolist(), slots_of, 6, rank)
    assert Trtllm().slots(ids, SIX, rank=rank).ravel().tolist() == wanted


def test_layers_are_lines_of_their_own():
    both = Placement([[0, 1, 2, 0, 3, 0], [3, 2, 1, 0, 0, 0]], num_ranks=2, num_experts=4)
    ids = np.random.default_rng(1).integers(-1, 5, (700, 2, 3))
    slots = Trtllm().slots(ids, both, rank=1)
    for row in range(2):
        alone = Placement(both.slots[[row]], num_ranks=2, num_experts=4)
        assert np.array_equal(Trtllm().slots(ids[:, row], alone, rank=1), slots[:, row])


def test_each_block_is_off_by_less_than_one():
    load = np.zeros((1, 2, 4))
    load[..., 0] = 5 * 1024 + 7
    slots = Trtllm().slots(np.zeros((5 * 1024 + 7, 1), int), SIX)
    found = np.bincount(slots.ravel(), minlength=6)
    expected = Trtllm().split(load, SIX).source_shares[0, 0]
    assert np.abs(found - expected)[[0, 3, 5]].max() <= 6
    assert expected[[0, 3, 5]].sum() == pytest.approx(5 * 1024 + 7)
