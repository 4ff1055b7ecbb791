from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import device_loads, ep_step_time
from equipoise.errors import EquipoiseError
from equipoise.plan.teaching import add_copies, best_placement

loads = st.lists(st.integers(0, 50), min_size=1, max_size=6)


def test_heaviest_first_on_the_lightest_device():
    assert best_placement([7, 6, 5, 4, 3], 2).tolist() == [0, 1, 1, 0, 0]
    assert best_placement([1, 1, 1, 1], 2).tolist() == [0, 1, 0, 1]
    assert best_placement([5], 3).tolist() == [0]


@given(loads, st.integers(1, 3))
def test_within_four_thirds_of_the_best_of_all_placements(row, num_devices):
    best = min(
        ep_step_time(row, num_devices, placement)
        for placement in product(range(num_devices), repeat=len(row))
    )
    found = ep_step_time(row, num_devices, best_placement(row, num_devices))
    assert best <= found <= best * 4 / 3 + 1e-9


def test_extra_copies_go_to_the_most_load_per_copy():
    load, expert = add_copies([12, 9, 1], 3)
    assert expert.tolist() == [0, 1, 2, 0, 1, 0]
    assert load.tolist() == [4, 4.5, 1, 4, 4.5, 4]


@given(loads, st.integers(1, 8))
def test_copies_share_the_load_of_their_expert(row, num_copies):
    load, expert = add_copies(row, num_copies)
    assert device_loads(load, len(row), expert) == pytest.approx(np.array(row, float))
    assert expert[: len(row)].tolist() == list(range(len(row)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: best_placement([[1, 2]], 2), "one number for each expert"),
        (lambda: best_placement([1, 2], 0), "num_devices is 0"),
        (lambda: best_placement([1, -2], 2), "finite numbers >= 0"),
        (lambda: add_copies([1, 2], 0), "num_copies is 0"),
    ],
)
def test_wrong_input_gets_a_sentence(call, says):
    with pytest.raises(EquipoiseError, match=says):
        call()
