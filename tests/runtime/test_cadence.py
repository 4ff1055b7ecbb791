from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.runtime.cadence import Cycle, Turn, layer_groups


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


def test_a_known_cycle():
    cycle = Cycle(
        num_layers=5, layers_per_step=2, samples=3, start=2, sample_interval=2, update_interval=3,
        gap=4,
    )  # fmt: skip
    turns = [cycle.turn(iteration) for iteration in range(20)]
    skip, sample, update, drain = Turn.SKIP, Turn.SAMPLE, Turn.UPDATE, Turn.DRAIN
    counting = [skip, skip, sample, skip, sample, skip, sample]
    updating = [update, drain, skip, update, drain, skip, update, drain]
    assert turns == [*counting, *updating, skip, skip, skip, skip, sample]


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(2, 4)
)
def test_a_cycle_samples_and_updates_as_often_as_it_says(L, K, samples, every, update_every):
    cycle = Cycle(
        num_layers=L, layers_per_step=K, samples=samples, sample_interval=every,
        update_interval=update_every,
    )  # fmt: skip
    num_groups = len(layer_groups(L, K))
    period = (samples - 1) * every + 1 + (num_groups - 1) * update_every + 2
    turns = [cycle.turn(i) for i in range(period)]
    assert turns.count(Turn.SAMPLE) == samples
    assert turns.count(Turn.UPDATE) == turns.count(Turn.DRAIN) == num_groups
    assert cycle.turn(period) is Turn.SAMPLE


def test_numbers_out_of_range_are_refused():
    with pytest.raises(EquipoiseError, match="layers_per_step is 0"):
        layer_groups(5, 0)
    with pytest.raises(EquipoiseError, match="update_interval is 1; expected 2 or more"):
        Cycle(num_layers=5, layers_per_step=1, samples=1, update_interval=1)
