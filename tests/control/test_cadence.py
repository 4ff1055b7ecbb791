from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.cadence import layers_by_step
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
def test_known_sizes(num_layers, layers_per_step, sizes):
    assert [len(step) for step in layers_by_step(num_layers, layers_per_step)] == sizes


def test_known_steps():
    assert layers_by_step(58, 2)[:2] == ((0, 29), (1, 30))
    assert layers_by_step(58, 5)[0] == (0, 12, 24, 36, 48)
    assert layers_by_step(6, 4) == ((0, 2, 4), (1, 3, 5), ())


@given(st.integers(1, 100), st.integers(1, 100))
def test_every_layer_is_has_one_step_of_few_enough_layers(num_layers, layers_per_step):
    steps = layers_by_step(num_layers, layers_per_step)
    assert sorted(layer for step in steps for layer in step) == list(range(num_layers))
    assert max(len(step) for step in steps) <= layers_per_step


def test_numbers_out_of_range_are_refused():
    with pytest.raises(EquipoiseError, match="layers_per_step is 0"):
        layers_by_step(5, 0)
