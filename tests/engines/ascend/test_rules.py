"""vllm-ascend's tables against its fixtures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.ascend.rules import Ascend, AscendMrv2, copies_by_table
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

SAMPLE = Placement([[7, 2, 0, 3, 5, 6, 1, 4, 7, 2]], num_ranks=2, num_experts=8)
DEFAULT = Placement([[*range(8), 0, 1]], num_ranks=2, num_experts=8)
HALVES = Placement([[0] * 4 + [1] * 4], num_ranks=8, num_experts=2)


@pytest.mark.parametrize(
    ("placement", "tensor_parallel", "rank", "wanted"),
    [
        (SAMPLE, 1, 0, [2, 6, 1, 3, 7, 4, 5, 0]),
        (SAMPLE, 1, 1, [2, 6, 9, 3, 7, 4, 5, 8]),
        (SAMPLE, 2, 1, [2, 6, 9, 3, 7, 4, 5, 0]),
        (DEFAULT, 1, 0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (DEFAULT, 1, 1, [8, 9, 2, 3, 4, 5, 6, 7]),
        (HALVES, 1, 7, [3, 7]),
        (HALVES, 4, 3, [3, 4]),
        (HALVES, 4, 7, [0, 5]),
    ],
)
def test_table_of_a_rank(placement, tensor_parallel, rank, wanted):
    rule = Ascend(tensor_parallel=tensor_parallel)
    every_expert = np.tile(np.arange(placement.num_experts), (3, 1))
    assert rule.slots(every_expert, placement, rank=rank).tolist() == [wanted] * 3


def test_three_copies_share_unevenly():
    placement = Placement([[*range(30), 0, 0]], num_ranks=32, num_experts=30)
    load = np.zeros((1, 32, 30))
    load[..., 0] = 1
    split = Ascend().split(load, placement)
    assert split.quotas[0, [0, 30, 31]].tolist() == [11, 11, 10]


@pytest.mark.parametrize(
    ("ranks", "slots", "copies"),
    [
        (4, 9, [2, 1, 1, 1, 1, 1, 1, 1]),
        (4, 10, [2, 2, 1, 1, 1, 1, 1, 1]),  # a third copy of the first would take nothing off it
        (4, 11, [4, 1, 1, 1, 1, 1, 1, 1]),
        (8, 10, [3, 1, 1, 1, 1, 1, 1, 1]),
        (2, 16, [2] * 8),
    ],
)
def test_copies_that_take_load_off_the_busiest_one(ranks, slots, copies):
    load = np.array([[100.0, 30, 20, 20, 20, 20, 20, 20]])
    assert copies_by_table(load, slots, ranks).tolist() == [copies]


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.floats(0, 1),
    st.integers(0, 2**20),
)
def test_copies_by_table_fill_the_slots(experts, ranks, filled, seed):
    slots = experts + int(filled * experts * (ranks - 1))
    load = np.random.default_rng(seed).integers(0, 9, (3, experts)).astype(float)
    copies = copies_by_table(load, slots, ranks)
    assert (copies.sum(axis=1) == slots).all()
    assert copies.min() >= 1
    assert copies.max() <= ranks


def test_mrv2_takes_turns_by_row():
    placement = Placement([[0, 1, 2, 3, 0, 1, 3, 3]], num_ranks=2, num_experts=4)
    ids = np.tile(np.arange(4), (1030, 1))
    slots = AscendMrv2().slots(ids, placement, rank=1)
    assert slots[:6].tolist() == [
        [4, 1, 2, 6],
        [0, 5, 2, 7],
        [4, 1, 2, 3],
        [0, 5, 2, 6],
        [4, 1, 2, 7],
        [0, 5, 2, 3],
    ]
    assert slots[1024:].tolist() == slots[:6].tolist()


def test_groups_have_a_rank():
    with pytest.raises(EquipoiseError, match="tensor_parallel is 0"):
        Ascend(tensor_parallel=0)
