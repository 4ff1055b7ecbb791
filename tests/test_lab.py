from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import imbalance
from equipoise.errors import EquipoiseError
from equipoise.lab import (
    add_copies,
    best_placement,
    device_loads,
    dropped_tokens,
    ep_step_time,
    parallel_efficiency,
)
from equipoise.placement import Placement
from tests.reference import balance as reference

loads = st.lists(st.integers(0, 1000), min_size=1, max_size=12)
few_loads = st.lists(st.integers(0, 50), min_size=1, max_size=6)


# --- devices -------------------------------------------------------------------------------------


def test_experts_are_dealt_over_the_devices():  # K21
    assert device_loads([4, 1, 1, 2], 2).tolist() == [5, 3]
    assert ep_step_time([4, 1, 1, 2], 2) == 5
    assert parallel_efficiency([4, 1, 1, 2], 2) == 0.8


@given(loads, st.data())
def test_devices_like_the_reference(row, data):
    num_devices = data.draw(st.integers(1, 5))
    placement = data.draw(
        st.lists(st.integers(0, num_devices - 1), min_size=len(row), max_size=len(row))
    )
    expected = reference.device_loads(row, num_devices, placement)
    assert device_loads(row, num_devices, placement).tolist() == expected
    assert ep_step_time(row, num_devices, placement) == max(expected)
    assert parallel_efficiency(row, num_devices, placement) == pytest.approx(
        1 / reference.imbalance(expected)
    )


def test_every_layer_is_a_barrier():
    per_layer = ep_step_time([[9, 1], [1, 9]], 2)
    assert per_layer.tolist() == [9, 9]
    assert ep_step_time([[[1, 2], [3, 4]]] * 5, 1).shape == (5, 2)


# --- capacity ------------------------------------------------------------------------------------


def test_capacity_one_drops_68_of_128():
    hot = [84, 16, 10, 7, 5, 3, 2, 1]
    assert sum(hot) == 128
    assert dropped_tokens(hot, 1.0) == 68
    assert dropped_tokens(hot, 5.25) == 0
    assert dropped_tokens(hot, 5.24) == 0  # the capacity rounds up to 84
    assert dropped_tokens(hot, 5.18) == 1
    assert imbalance(hot) == 5.25


@given(loads, st.integers(1, 40))
def test_capacity_like_the_reference_without_rounding_errors(row, tenths):
    expected = reference.dropped_tokens(row, tenths, 10)
    assert dropped_tokens(row, tenths / 10) == expected


def test_capacity_is_not_rounded_up_by_a_rounding_error():
    assert 2.1 * (10 / 3) > 7
    assert dropped_tokens([8, 1, 1], 2.1) == 1


def test_capacity_of_every_layer():
    assert dropped_tokens([[4, 0], [2, 2]], 1).tolist() == [2, 0]


def test_a_capacity_beyond_float64_drops_nothing():
    assert dropped_tokens([1e300, 0], 1e300) == 0
    assert dropped_tokens([1.5e308, 0], 1) == 0.75e308


def test_without_load_devices_are_efficient():
    assert parallel_efficiency([0, 0, 0], 2) == 1


def test_a_single_row_gives_a_plain_number():
    assert round(ep_step_time([1, 2, 4], 2), 1) == 5.0


def test_arguments_stay_as_they_are():
    load = np.array([[3.0, 1.0]])
    load.flags.writeable = False
    dropped_tokens(load, 1)
    ep_step_time(load, 2)


# --- placing and copying -------------------------------------------------------------------------


def test_heaviest_first_on_the_lightest_device():
    assert best_placement([7, 6, 5, 4, 3], 2).tolist() == [0, 1, 1, 0, 0]
    assert best_placement([1, 1, 1, 1], 2).tolist() == [0, 1, 0, 1]
    assert best_placement([5], 3).tolist() == [0]


@given(few_loads, st.integers(1, 3))
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


@given(few_loads, st.integers(1, 8))
def test_copies_share_the_load_of_their_expert(row, num_copies):
    load, expert = add_copies(row, num_copies)
    assert device_loads(load, len(row), expert) == pytest.approx(np.array(row, float))
    assert expert[: len(row)].tolist() == list(range(len(row)))


PLACEMENT = Placement([[0, 1]], num_ranks=2, num_experts=2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ep_step_time([1, 2], 0), "num_devices is 0"),
        (lambda: ep_step_time([1, 2], 2, [0]), "each of the 2 experts"),
        (lambda: ep_step_time([1, 2], 2, [0, 2]), "Expert 1 is placed on device 2"),
        (lambda: ep_step_time([1, 2], 2, [0.0, 1.0]), "float64"),
        (
            lambda: ep_step_time([1, 2], 2, PLACEMENT),
            "placement have type object",
        ),
        (lambda: dropped_tokens([1, 2], -1), "0 or more"),
        (lambda: dropped_tokens([1, 2], np.nan), "capacity_factor is nan"),
        (lambda: dropped_tokens([1, 2], "1"), "expected a number"),
        (lambda: best_placement([[1, 2]], 2), "one number for each expert"),
        (lambda: best_placement([1, 2], 0), "num_devices is 0"),
        (lambda: best_placement([1, -2], 2), "finite numbers >= 0"),
        (lambda: add_copies([1, 2], 0), "num_copies is 0"),
    ],
)
def test_wrong_input_gets_a_sentence(call, says):
    with pytest.raises(EquipoiseError, match=says):
        call()
