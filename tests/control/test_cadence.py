from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.cadence import layer_groups
from equipoise.errors import EquipoiseError


@pytest.mark.parametrize(
    ("num_layers", "layers_per_step", "sizes"),
    [
        (58, 1, [1] * 58 + [0]),
        (58, 2, [2] * 29 + [0]),
        (58, 5, [5] * 10 + [4] * 2),
        (61, 10, [9] * 5 + [8] * 2),
        (6, 4, [3, 3, 0]),
        (5, 3, [3, 2]),
    ],
)
def test_known_group_sizes(num_layers, layers_per_step, sizes):
    assert [len(group) for group in layer_groups(num_layers, layers_per_step)] == sizes


def test_known_groups():
    assert layer_groups(58, 2)[:2] == ((0, 29), (1, 30))
    assert layer_groups(58, 5)[0] == (0, 12, 24, 36, 48)
    assert layer_groups(6, 4) == ((0, 2, 4), (1, 3, 5), ())


@given(st.integers(1, 100), st.integers(1, 100))
def test_every_layer_is_in_one_group_of_at_most_so_many(num_layers, layers_per_step):
    groups = layer_groups(num_layers, layers_per_step)
    assert sorted(layer for group in groups for layer in group) == list(range(num_layers))
    assert max(len(group) for group in groups) <= layers_per_step


def test_numbers_out_of_range_are_refused():
    with pytest.raises(EquipoiseError, match="layers_per_step is 0"):
        layer_groups(5, 0)
