from __future__ import annotations

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.plan import Contiguous, Problem, RoundRobin
from equipoise.topology import Topology


def rows(planner, num_experts, num_slots, num_ranks):
    load = np.arange(1, 2 * num_experts + 1).reshape(2, num_experts)
    placement = planner.plan(Problem(load, Topology(num_ranks), num_slots)).placement
    assert (placement.slots[0] == placement.slots[1]).all()
    return placement.by_rank[0].tolist()


def test_without_redundant_slots():
    assert rows(Contiguous(), 8, 8, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows(RoundRobin(), 8, 8, 2) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_redundant_slots_take_the_rarest_expert_the_rank_lacks():
    assert rows(Contiguous(), 4, 8, 2) == [[0, 1, 2, 3], [2, 3, 0, 1]]
    assert rows(RoundRobin(), 4, 6, 2) == [[0, 2, 1], [1, 3, 0]]
    # 5 experts do not divide over 2 ranks: the smaller rank fills up.
    assert rows(Contiguous(), 5, 6, 2) == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize("planner", [Contiguous(), RoundRobin()])
def test_no_duplicates_and_even_copies(planner):
    problem = Problem(np.ones((1, 256)), Topology(36), 288)
    placement = planner.plan(problem).placement
    assert not placement.duplicates.any()
    assert placement.copies.max() <= 2


@pytest.mark.parametrize("planner", [Contiguous(), RoundRobin()])
def test_more_slots_than_all_experts_on_all_ranks_are_refused(planner):
    with pytest.raises(EquipoiseError, match="more copies than ranks"):
        planner.plan(Problem([[1, 2]], Topology(2), 6))
