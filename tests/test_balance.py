from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import balance
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from tests.reference import balance as reference

loads = st.lists(st.integers(0, 1000), min_size=1, max_size=12)
barriers = st.integers(1, 6).flatmap(
    lambda ranks: st.lists(
        st.lists(st.integers(0, 100), min_size=ranks, max_size=ranks), min_size=1, max_size=6
    )
)


@st.composite
def placed_loads(draw: st.DrawFn) -> tuple[list[list[int]], Placement]:
    experts, ranks, layers = (draw(st.integers(1, most)) for most in (6, 4, 3))
    slots = ranks * (-(-experts // ranks) + draw(st.integers(0, 2)))
    extra = st.lists(
        st.integers(0, experts - 1), min_size=slots - experts, max_size=slots - experts
    )
    rows = [draw(st.permutations([*range(experts), *draw(extra)])) for _ in range(layers)]
    row = st.lists(st.integers(0, 99), min_size=experts, max_size=experts)
    load = draw(st.lists(row, min_size=layers, max_size=layers))
    return load, Placement(rows, num_ranks=ranks, num_experts=experts)


# --- one barrier ---------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-2, 9), min_size=3, max_size=3), max_size=20))
def test_expert_loads_count_like_the_reference(ids):
    assert balance.expert_loads(ids, 6).tolist() == reference.expert_loads(ids, 6)


def test_an_expert_named_twice_counts_twice_and_unknown_ids_not_at_all():
    assert balance.expert_loads([[0, 0], [1, -1], [4, 2]], 4).tolist() == [2, 1, 1, 0]


def test_expert_loads_take_any_integer_array_and_no_tokens():
    assert balance.expert_loads(np.array([[3, 255]], np.uint8), 4).tolist() == [0, 0, 0, 1]
    assert balance.expert_loads([], 2).tolist() == [0, 0]


@given(loads)
def test_the_three_conventions_agree(row):
    gamma = balance.imbalance(row)
    assert gamma == pytest.approx(reference.imbalance(row))
    assert balance.imbalance_ratio(row) == pytest.approx(gamma - 1)
    assert balance.balancedness(row) == pytest.approx(1 / gamma)


def test_idle_share_and_slowdown_are_not_the_same_number():  # K35
    loads = [1.3, 0.9, 0.9, 0.9]
    assert balance.imbalance(loads) == pytest.approx(1.3)
    averages = balance.average_over_barriers(loads)
    assert averages.idle_share == pytest.approx(0.2308, abs=5e-5)
    assert averages.relative_step_time == pytest.approx(1.3)


def test_no_load_is_balanced():
    assert balance.imbalance([0, 0]) == 1
    assert balance.imbalance_ratio([0, 0]) == 0
    assert balance.balancedness([[0, 0], [2, 0]]).tolist() == [1, 0.5]


def test_a_single_row_gives_a_plain_number():
    assert isinstance(balance.imbalance([1, 2]), float)
    assert round(balance.imbalance([1, 2, 4]), 2) == 1.71


def test_axis_picks_the_ranks():
    assert balance.imbalance([[6, 2], [2, 2]], axis=0).tolist() == [1.5, 1.0]


# --- many barriers -------------------------------------------------------------------------------


def test_golden_of_the_conventions():
    averages = balance.average_over_barriers([[6, 2, 2, 2], [20, 25, 20, 15]])
    assert averages.mean_imbalance == 1.625
    assert averages.max_imbalance == 2.0
    assert averages.mean_balancedness == pytest.approx(0.65)
    assert averages.mean_imbalance_ratio == 0.625
    assert averages.ratio_of_sums == pytest.approx(0.7419354839)
    assert averages.relative_step_time == pytest.approx(1.3478260870)


def test_collapsing_layers_first_hides_imbalance():
    rank_loads = [[6, 2, 2, 2], [20, 25, 20, 15]]
    assert reference.collapsed(rank_loads) == pytest.approx(1.1739130435)
    assert reference.collapsed([[9, 1], [1, 9]]) == 1
    assert balance.average_over_barriers([[9, 1], [1, 9]]).relative_step_time == pytest.approx(1.8)


def test_two_equal_one_hot_layers():  # K21
    rank_loads = np.array([[100, 0, 0, 0]] * 2)
    averages = balance.average_over_barriers(rank_loads)
    assert rank_loads.mean(axis=1).sum() == 50
    assert rank_loads.max(axis=1).sum() == 200
    assert (averages.ratio_of_sums, averages.mean_imbalance) == (0.25, 4)


@given(barriers, st.integers(1, 4))
def test_layers_without_load_change_nothing(rows, num_empty):
    plain = balance.average_over_barriers(rows)
    padded = balance.average_over_barriers(rows + [[0] * len(rows[0])] * num_empty)
    assert padded.num_without_load == plain.num_without_load + num_empty
    assert padded.num_barriers == plain.num_barriers
    for name in ("mean_imbalance", "max_imbalance", "mean_balancedness", "ratio_of_sums"):
        assert getattr(padded, name) == pytest.approx(getattr(plain, name))


@given(barriers)
def test_averages_are_consistent(rows):
    a = balance.average_over_barriers(rows)
    assert a.mean_imbalance == pytest.approx(1 + a.mean_imbalance_ratio)
    assert 1 <= a.mean_imbalance <= a.max_imbalance + 1e-12
    assert a.relative_step_time <= a.max_imbalance + 1e-12
    assert 1 / a.mean_balancedness <= a.mean_imbalance + 1e-12  # Jensen


def test_averages_without_any_load():
    averages = balance.average_over_barriers([[0, 0], [0, 0]])
    assert (averages.num_barriers, averages.num_without_load) == (0, 2)
    assert averages.mean_imbalance == averages.ratio_of_sums == 1


# --- placements with copies ----------------------------------------------------------------------


@given(placed_loads())
def test_placed_loads_like_the_reference(case):
    load, placement = case
    expected = reference.rank_loads(load, placement)
    assert np.allclose(balance.rank_loads(load, placement), expected)
    assert np.allclose(balance.rank_loads([load, load], placement), [expected, expected])
    active = reference.active_experts(load, placement)
    assert balance.active_experts(load, placement).tolist() == active


@given(placed_loads())
def test_even_split_conserves_load(case):
    load, placement = case
    assert np.allclose(balance.rank_loads(load, placement).sum(axis=1), np.sum(load, axis=1))


def test_active_experts_count_slots_with_load():
    placement = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)
    assert balance.active_experts([[5, 0, 0]], placement).tolist() == [[1, 1]]
    assert balance.active_experts([[[5, 0, 1]], [[0, 0, 0]]], placement).tolist() == [
        [[1, 2]],
        [[0, 0]],
    ]


def test_peak_tokens_is_the_worst_step_of_each_layer_not_the_sum():
    placement = Placement([[0, 1], [0, 1]], num_ranks=2, num_experts=2)
    steps = [[[5, 1], [2, 2]], [[0, 4], [3, 0]]]
    assert balance.peak_tokens(steps, placement).tolist() == [5, 3]
    assert balance.peak_tokens(steps[1], placement).tolist() == [4, 3]


# --- wrong input ---------------------------------------------------------------------------------

PLACEMENT = Placement([[0, 1]], num_ranks=2, num_experts=2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: balance.expert_loads([[0, 1], [2]], 4), "rows of equal length"),
        (lambda: balance.expert_loads([[0.5, 1]], 4), "expected integers"),
        (lambda: balance.expert_loads([[0]], 0), "num_experts is 0"),
        (lambda: balance.expert_loads([[0]], 10**12), "1 to 65536"),
        (lambda: balance.expert_loads([[0]], 4.0), "whole number"),
        (lambda: balance.imbalance([]), "at least one number"),
        (lambda: balance.imbalance(3), "at least one number"),
        (lambda: balance.imbalance(["many"]), "expected numbers"),
        (lambda: balance.imbalance([1, -2]), r"at \[1\] is -2"),
        (lambda: balance.imbalance([[1, 2], [np.nan, 2]]), r"at \[1, 0\] is nan"),
        (lambda: balance.balancedness([1, np.inf]), "finite"),
        (lambda: balance.imbalance([1, 2], axis=1), "no axis 1"),
        (lambda: balance.imbalance([1, 2], axis=None), "no axis None"),
        (lambda: balance.imbalance([[1, 2]], axis=True), "no axis True"),
        (lambda: balance.imbalance([1.7e308, 1.7e308]), "add up to infinity"),
        (lambda: balance.expert_loads(np.array([[2**63]], np.uint64), True), "whole number"),
        (lambda: balance.rank_loads([[1, 2, 3]], PLACEMENT), r"ending in \(1, 2\)"),
        (lambda: balance.rank_loads([[1, np.nan]], PLACEMENT), "finite"),
        (lambda: balance.rank_loads([[1, 2]], [[0, 1]]), "expected a Placement"),
        (lambda: balance.active_experts([1, 2], PLACEMENT), "layers, experts"),
    ],
)
def test_wrong_input_gets_a_sentence(call, says):
    with pytest.raises(EquipoiseError, match=says):
        call()


def test_unsigned_ids_beyond_int64_are_no_experts():
    ids = np.array([[0, 2**64 - 1, 2**63]], np.uint64)
    assert balance.expert_loads(ids, 4).tolist() == [1, 0, 0, 0]


def test_arguments_stay_as_they_are():
    load = np.array([[3.0, 1.0]])
    load.flags.writeable = False
    balance.rank_loads(load, PLACEMENT)
    balance.average_over_barriers(load)
