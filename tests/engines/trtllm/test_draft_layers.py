from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.trtllm.draft_layers import default_row, with_draft_layers
from equipoise.placement import Placement

PLACEMENT = Placement(
    [[0, 1, 0, 2, 0, 3], [3, 0, 1, 2, 1, 2]], num_ranks=3, num_experts=4, layer_ids=[3, 4]
)


@pytest.mark.parametrize(
    ("sizes", "ranks"),
    [
        ((8, 8, 4), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ((8, 12, 4), [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 0]]),
        ((5, 6, 2), [[0, 1, 2], [2, 3, 4]]),
        ((8, 10, 5), [[0, 1], [1, 2], [3, 4], [4, 5], [6, 7]]),
    ],
)
def test_a_layer_without_a_map(sizes, ranks):
    assert default_row(*sizes).reshape(len(ranks), -1).tolist() == ranks


@given(experts=st.integers(1, 40), ranks=st.integers(1, 12), extra=st.integers(0, 3))
def test_every_expert_has_a_slot_and_none_two_on_a_rank(experts, ranks, extra):
    size = min(experts, -(-experts // ranks) + extra)
    row = default_row(experts, size * ranks, ranks)
    made = Placement([row], num_ranks=ranks, num_experts=experts)
    assert made.copies_on_rank.max() == 1


def test_rows_come_after_the_others():
    made = with_draft_layers(PLACEMENT, [5, 7])
    assert made.layer_ids == (3, 4, 5, 7)
    assert made.rows([0, 1]) == PLACEMENT
    assert made.slots[2:].tolist() == [[0, 1, 1, 2, 2, 3]] * 2
