import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.vllm.tensors import (
    compute_logical_maps,
    to_placement,
    to_tensors,
)
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


@pytest.mark.parametrize(
    ("slots", "num_experts", "table", "count"),
    [
        (
            [[0, 1, 2, 0], [1, 2, 0, 1]],
            3,
            [[[0, 3], [1, -1], [2, -1]], [[2, -1], [0, 3], [1, -1]]],
            [[2, 1, 1], [1, 2, 1]],
        ),
        (
            [[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]],
            4,
            [
                [[0, 4, -1], [1, 5, -1], [2, -1, -1], [3, -1, -1]],
                [[0, 2, 4], [3, -1, -1], [1, -1, -1], [5, -1, -1]],
            ],
            [[2, 2, 1, 1], [3, 1, 1, 1]],
        ),
        ([0, 1, 2, 0], 3, [[0, 3], [1, -1], [2, -1]], [2, 1, 1]),
        ([[0, 1, 2, -1]], 3, [[[0], [1], [2]]], [[1, 1, 1]]),
        ([[0, 1, 1, 0]], 3, [[[0, 3], [1, 2], [-1, -1]]], [[2, 2, 0]]),
        ([[-1, -1]], 2, [[[-1], [-1]]], [[0, 0]]),
    ],
)
def test_compute_logical_maps_golden(slots, num_experts, table, count):
    got_table, got_count = compute_logical_maps(slots, num_experts)
    assert got_table.tolist() == table
    assert got_count.tolist() == count
    assert got_table.dtype == got_count.dtype == np.int64


@pytest.mark.parametrize(
    ("slots", "num_experts", "message"),
    [
        ([[0, 1, 3]], 3, "slot 2 holds expert 3"),
        ([[0, -2, 1]], 3, "slot 1 holds expert -2"),
        ([[0.0, 1.0]], 2, "expected integers"),
        ([[True, False]], 2, "expected integers"),
        ([[[0]]], 1, "expected integers"),
        (np.zeros((0, 4), dtype=int), 2, "none of them 0"),
        ([[0]], 0, "num_experts is 0"),
    ],
)
def test_compute_logical_maps_refuses(slots, num_experts, message):
    with pytest.raises(EquipoiseError, match=message):
        compute_logical_maps(slots, num_experts)


def naive_logical_maps(slots, num_experts):
    return [[[s for s, e in enumerate(row) if e == x] for x in range(num_experts)] for row in slots]


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.tuples(
            st.integers(4, 6),
            st.lists(
                st.lists(st.integers(-1, 3), min_size=width, max_size=width),
                min_size=1,
                max_size=3,
            ),
        )
    )
)
def test_compute_logical_maps_is_the_plain_loop(case):
    num_experts, slots = case
    table, count = compute_logical_maps(slots, num_experts)
    expected = naive_logical_maps(slots, num_experts)
    got = [[[s for s in row if s >= 0] for row in layer] for layer in table.tolist()]
    assert got == expected
    assert count.tolist() == [[len(copies) for copies in layer] for layer in expected]


def test_tensors_and_back():
    slots = [[0, 1, 2, 0], [1, 2, 0, 1]]
    placement = Placement(slots, num_ranks=2, num_experts=3, layer_ids=[3, 4])
    tensors = to_tensors(placement)
    assert tensors.physical_to_logical.tolist() == slots
    assert tensors.logical_to_physical.shape == (2, 3, 1024)
    assert tensors.logical_to_physical[0, :, :3].tolist() == [[0, 3, -1], [1, -1, -1], [2, -1, -1]]
    assert (tensors.logical_to_physical[..., 2:] == -1).all()
    assert tensors.replica_count.tolist() == [[2, 1, 1], [1, 2, 1]]
    back = to_placement(tensors.physical_to_logical, num_ranks=2, num_experts=3, layer_ids=(3, 4))
    assert back == placement


def test_more_copies_than_the_engine_holds():
    placement = Placement(np.zeros((1, 1025), dtype=int), num_ranks=1, num_experts=1)
    with pytest.raises(EquipoiseError, match="1025 copies"):
        to_tensors(placement)


@pytest.mark.parametrize("slots", [[[0, 1, 2, -1]], [[0, 1, 1, 0]], [[0, 1, 2, 3]]])
def test_a_map_the_engine_would_commit_in_silence(slots):
    with pytest.raises(EquipoiseError):
        to_placement(slots, num_ranks=2, num_experts=3)
