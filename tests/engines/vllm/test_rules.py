"""vLLM's replica pick against its fixtures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import expert_loads, imbalance
from equipoise.engines.vllm.rules import Vllm, count_hashes
from equipoise.placement import Placement


def copies(number):
    """One expert in a number of slots, each on its own rank."""
    return Placement([[0] * number], num_ranks=number, num_experts=1)


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (3, [0, 0, 2, 2, 1, 0, 0, 2, 2, 1, 0, 0]),
        (5, [0, 4, 2, 1, 4, 2, 1, 4, 3, 1, 4, 3]),
        (2, [0, 1] * 6),
        (4, [0, 1, 2, 3] * 3),
        (8, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]),
    ],
)
def test_copies_of_the_first_rows(number, wanted):
    slots = Vllm().slots(np.zeros((12, 1), int), copies(number))
    assert slots.ravel().tolist() == wanted
    again = Vllm().slots(np.zeros((12, 1), int), copies(number), rank=number - 1)
    assert again.ravel().tolist() == wanted


@pytest.mark.parametrize(("number", "rows", "wanted"), [(3, 2, 3.0), (5, 8, 1.875), (8, 2, 4.0)])
def test_bias_of_small_batches(number, rows, wanted):
    slots = Vllm().slots(np.zeros((rows, 1), int), copies(number))
    assert imbalance(expert_loads(slots, number)) == wanted
    load = np.full((1, number, 1), rows)
    assert imbalance(Vllm(top_k=1).split(load, copies(number)).rank_loads[0]) == wanted


def test_routing():
    placement = Placement([[0, 1, 2, 3, 0, 1, 3, 3]], num_ranks=2, num_experts=4)
    ids = [[0, 3], [0, 3], [1, 2], [3, 0], [0, 3]]
    slots = Vllm().slots(ids, placement)
    assert slots.tolist() == [[0, 3], [4, 3], [1, 2], [7, 4], [0, 6]]


@given(rows=st.integers(1, 300), number=st.integers(1, 7))
def test_hash_in_plain_integers(rows, number):
    slots = Vllm().slots(np.zeros((rows, 1), int), copies(number))
    assert slots.ravel().tolist() == [((t * 2654435769) % 2**32) % number for t in range(rows)]


def test_large_batches_are_even():
    split = Vllm(top_k=1).split(np.full((1, 3, 1), 4096), copies(3))
    assert split.rank_loads / 4096 == pytest.approx(np.ones((1, 3)), abs=0.01)


def counted(rows, number):
    """Going through the rows."""
    return np.bincount(Vllm.code(np.arange(rows)) % number, minlength=number).tolist()


@given(rows=st.integers(1, 3000), number=st.integers(2, 40))
def test_hashes_are_counted_as_if_row_by_row(rows, number):
    assert count_hashes(rows, number).tolist() == counted(rows, number)


@pytest.mark.parametrize("number", [2, 3, 7, 8, 64])
def test_hashes_of_many_rows(number):
    assert count_hashes(2_000_003, number).tolist() == counted(2_000_003, number)


@pytest.mark.parametrize("number", [2, 3, 7, 8, 64])
def test_a_whole_period_takes_every_value_once(number):
    """All but the last row of a period: what the last one would add is missing."""
    whole = [len(range(value, 2**32, number)) for value in range(number)]
    whole[int(Vllm.code(np.array([2**32 - 1]))[0]) % number] -= 1
    assert count_hashes(2**32 - 1, number).tolist() == whole
