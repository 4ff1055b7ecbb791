from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import noise
from equipoise.balance import imbalance
from equipoise.errors import EquipoiseError
from equipoise.noise import (
    NoiseFloor,
    excess,
    expected_maximum,
    noise_floor,
    simulate_noise_floor,
    trace_noise_floor,
)
from equipoise.placement import Placement
from equipoise.simulate.routers import hot_expert, sample_trace, steady, uniform
from equipoise.trace import Trace


def fair_steps(
    num_tokens: int, num_experts: int, top_k: int, num_ranks: int, num_steps: int
) -> np.ndarray:
    """Imbalance of independently simulated steps, by shuffling the experts for every token."""
    rng = np.random.default_rng(12)
    experts = np.arange(num_experts)
    gamma = []
    for _ in range(num_steps):
        tokens = rng.permuted(np.tile(experts, (num_tokens, 1)), axis=1)[:, :top_k]
        on_rank = np.bincount((tokens * num_ranks // num_experts).ravel(), minlength=num_ranks)
        gamma.append(on_rank.max() / on_rank.mean())
    return np.array(gamma)


@pytest.mark.parametrize(
    ("num_ranks", "mean", "std"),
    [
        (2, 0.564, 0.826),
        (4, 1.029, 0.701),
        (8, 1.424, 0.611),
        (16, 1.766, 0.543),
        (32, 2.070, 0.492),
        (36, 2.118, 0.484),
        (48, 2.233, 0.467),
        (64, 2.344, 0.451),
        (72, 2.388, 0.445),
        (128, 2.595, 0.419),
        (144, 2.635, 0.414),
        (256, 2.827, 0.392),
        (320, 2.898, 0.384),
    ],
)
def test_expected_maximum_of_normals(num_ranks, mean, std):
    assert expected_maximum(num_ranks) == pytest.approx((mean, std), abs=6e-4)


def test_expected_maximum_of_one_and_two_is_exact():
    assert expected_maximum(1) == pytest.approx((0, 1), abs=1e-9)
    assert expected_maximum(2)[0] == pytest.approx(1 / np.sqrt(np.pi))


def test_known_floor():  # K34
    std = np.sqrt((1 - 1 / 32) / 64 * (1 - 7 / 255))
    assert std == pytest.approx(0.1213, abs=5e-5)
    assert 1 + expected_maximum(32)[0] * std == pytest.approx(1.251, abs=5e-4)
    # The two corrections that first-order formula lacks bring it to what simulation shows.
    floor = noise_floor(256, 256, 8, 32)
    assert floor.mean == pytest.approx(1.262, abs=0.004)
    assert floor.std == pytest.approx(0.062, abs=0.004)


@pytest.mark.parametrize(
    ("num_tokens", "num_ranks", "mean", "std"),
    [
        (64, 8, 1.19, 0.07),
        (64, 16, 1.33, 0.09),
        (64, 32, 1.55, 0.13),
        (64, 64, 1.92, 0.21),
        (64, 128, 2.51, 0.29),
        (64, 256, 3.45, 0.44),
        (256, 8, 1.09, 0.03),
        (256, 32, 1.26, 0.06),
        (256, 128, 1.69, 0.12),
        (256, 256, 2.11, 0.17),
        (1024, 16, 1.08, 0.02),
        (1024, 64, 1.21, 0.04),
        (1024, 256, 1.53, 0.08),
        (4096, 8, 1.02, 0.01),
        (4096, 128, 1.17, 0.03),
        (16384, 32, 1.03, 0.01),
        (16384, 128, 1.08, 0.01),
    ],
)
def test_published_simulations(num_tokens, num_ranks, mean, std):
    floor = noise_floor(num_tokens, 256, 8, num_ranks)
    # Their means come from 16 to 400 draws and two digits.
    assert floor.mean == pytest.approx(mean, abs=0.006 + std / 4)
    assert floor.std == pytest.approx(std, abs=0.005 + 0.15 * std)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "num_ranks"),
    [
        (2, 256, 8, 2),  # the formula from here: 8 assignments a rank
        (32, 8, 2, 8),
        (21, 64, 6, 16),
        (128, 128, 1, 8),
        (16, 8, 2, 8),  # the table below
        (3, 64, 6, 16),
        (10, 128, 1, 32),
        (1, 64, 4, 8),
    ],
)
def test_floor_is_what_independent_simulation_shows(num_tokens, num_experts, top_k, num_ranks):
    steps = fair_steps(num_tokens, num_experts, top_k, num_ranks, num_steps=600)
    floor = noise_floor(num_tokens, num_experts, top_k, num_ranks)
    error = 3 * steps.std() / np.sqrt(400)
    assert floor.mean == pytest.approx(steps.mean(), abs=0.012 + error)
    assert floor.std == pytest.approx(steps.std(), rel=0.2)


@pytest.mark.parametrize("num_ranks", [8, 36])
def test_formula_and_simulation_meet_where_the_rule_changes(num_ranks):
    tokens = np.array([noise.FORMULA_FROM * num_ranks / 8])
    formula = noise._formula(tokens, 256, 8, num_ranks)
    table = noise._small_step_table(256, 8, num_ranks)
    assert formula[0][0] == pytest.approx(table[0][-1], abs=0.03)
    assert formula[1][0] == pytest.approx(table[1][-1], rel=0.15)


@given(
    st.integers(1, 3000), st.sampled_from([(8, 2), (64, 6), (60, 4)]), st.sampled_from([2, 4, 9])
)
def test_floor_falls_with_the_batch_and_grows_with_the_ranks(num_tokens, router, num_ranks):
    num_experts, top_k = router
    floor = noise_floor(num_tokens, num_experts, top_k, num_ranks)
    larger = noise_floor(4 * num_tokens, num_experts, top_k, num_ranks)
    assert 1 <= larger.mean < floor.mean
    assert noise_floor(num_tokens, num_experts, top_k, 3 * num_ranks).mean > floor.mean
    if num_tokens * top_k > 16 * num_ranks:
        assert (larger.mean - 1) / (floor.mean - 1) == pytest.approx(0.5, abs=0.03)


def test_no_chance_no_floor():
    assert noise_floor(0, 8, 2, 4) == NoiseFloor(1.0, 0.0)
    assert noise_floor(100, 8, 2, 1) == NoiseFloor(1.0, 0.0)
    assert noise_floor(100, 8, 8, 4) == NoiseFloor(1.0, 0.0)
    assert noise_floor(100, 1, 1, 1) == NoiseFloor(1.0, 0.0)
    assert simulate_noise_floor(0, 8, 2, 4) == NoiseFloor(1.0, 0.0)
    assert simulate_noise_floor(20, 8, 8, 4).mean == pytest.approx(1)


def test_two_experts_one_choice():
    # |2 heads / n - 1| of n coins: mean sqrt(2 / (pi n)).
    assert noise_floor(1000, 2, 1, 2).mean == pytest.approx(1 + np.sqrt(2 / np.pi / 1000), abs=2e-4)


def test_simulation_repeats_and_depends_on_the_seed():
    first = simulate_noise_floor(32, 16, 2, 4, num_draws=20, seed=3)
    assert first == simulate_noise_floor(32, 16, 2, 4, num_draws=20, seed=3)
    assert first != simulate_noise_floor(32, 16, 2, 4, num_draws=20, seed=4)


def test_simulation_of_ranks_that_do_not_divide_the_experts_is_fair():
    floor = simulate_noise_floor(4096, 10, 2, 4, num_draws=50)
    # Chance adds 0.02; without splitting the border experts unequal ranks would add 0.2.
    assert floor.mean == pytest.approx(noise_floor(4096, 10, 2, 4).mean, abs=0.005)


def test_simulation_under_a_placement():
    contiguous = Placement([list(range(16))] * 2, num_ranks=4, num_experts=16)
    plain = simulate_noise_floor(64, 16, 2, 4, num_draws=50)
    placed = simulate_noise_floor(64, 16, 2, placement=contiguous, num_draws=50)
    assert (placed.mean, placed.std) == pytest.approx((plain.mean, plain.std))
    # Two copies of expert 0 halve its load: ranks 0 and 1 expect 3/4 of what ranks 2 and 3 get.
    copied = Placement([[0, 1, 0, 2, 3, 4, 5, 6]], num_ranks=4, num_experts=7)
    assert simulate_noise_floor(20_000, 7, 1, placement=copied, num_draws=20).mean == pytest.approx(
        2 / 7 * 4, abs=0.02
    )


ROUTERS = [(256, 256, 8, 32), (512, 256, 8, 8), (64, 64, 6, 16), (128, 8, 2, 8), (16, 256, 8, 32)]


@pytest.mark.parametrize("router", ROUTERS)
def test_a_fair_router_raises_the_alarm_in_less_than_one_percent_of_steps(router):
    floor = noise_floor(*router)
    steps = fair_steps(*router, num_steps=500)
    assert (steps > floor.alarm_level).mean() < 0.01
    assert (steps > floor.mean).mean() > 0.3  # and yet it is above the floor half the time
    assert abs(excess(steps, floor).mean()) < 4 * floor.std / np.sqrt(500) + 0.01


def test_an_alarm_on_plain_imbalance_would_be_true_nearly_always():
    steps = fair_steps(256, 256, 8, 32, num_steps=500)
    assert (steps > 1.15).mean() == pytest.approx(0.993, abs=0.02)
    assert (steps > 1.3).mean() == pytest.approx(0.22, abs=0.06)


def test_a_hot_router_raises_the_alarm():
    popularity = steady(hot_expert(64, share=0.1), num_steps=20)
    trace = sample_trace(popularity, num_tokens=256, top_k=4)
    gamma = imbalance(trace.counts.reshape(20, 1, 16, 4).sum(axis=-1))
    assert (gamma > trace_noise_floor(trace, 16).alarm_level).all()


def test_floor_of_a_trace():
    counts = np.zeros((2, 2, 16), int)
    counts[0, 0] = 8  # 64 tokens with top-2
    counts[0, 1, 0] = 10  # 5 tokens, below the formula
    counts[1, 1] = 400
    floor = trace_noise_floor(Trace(counts=counts, top_k=2), 4)
    for cell, tokens in {(0, 0): 64, (0, 1): 5, (1, 0): 0, (1, 1): 3200}.items():
        expected = noise_floor(tokens, 16, 2, 4)
        assert (floor.mean[cell], floor.std[cell]) == (expected.mean, expected.std)


def test_a_trace_without_top_k_is_read_as_independent_assignments():
    trace = sample_trace(uniform(16), num_tokens=100, top_k=4)
    unknown = Trace(counts=trace.counts)
    independent = noise_floor(400, 16, 1, 4).mean
    assert trace_noise_floor(unknown, 4).mean == pytest.approx(independent)
    assert trace_noise_floor(trace, 4).mean < trace_noise_floor(unknown, 4).mean


def test_excess_of_numbers_lists_and_arrays():
    floor = NoiseFloor(1.25, 0.05)
    assert excess(1.5, floor) == 0.25
    assert excess([[1.25, 1.0]], floor).tolist() == [[0, -0.25]]
    assert floor.alarm_level == pytest.approx(1.45)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: noise_floor(-1, 8, 2, 4), "num_tokens is -1"),
        (lambda: noise_floor(1.5, 8, 2, 4), "whole number"),
        (lambda: noise_floor(1, 0, 2, 4), "num_experts is 0"),
        (lambda: noise_floor(1, 8, 9, 4), "cannot choose 9"),
        (lambda: noise_floor(1, 8, 0, 4), "top_k is 0"),
        (lambda: noise_floor(1, 8, 2, 0), "num_ranks is 0"),
        (lambda: noise_floor(1, 8, 2, 10**9), "num_ranks is 1000000000"),
        (lambda: simulate_noise_floor(10**9, 8, 2, 4), "take minutes"),
        (lambda: simulate_noise_floor(8, 8, 2), "either num_ranks or placement"),
        (lambda: simulate_noise_floor(8, 8, 2, 4, num_draws=1), "2 or more"),
        (
            lambda: simulate_noise_floor(
                8, 4, 2, placement=Placement([[0, 1]], num_ranks=1, num_experts=2)
            ),
            "placement is for 2 experts",
        ),
        (lambda: excess("high", NoiseFloor(1, 0)), "expected numbers"),
        (lambda: trace_noise_floor(Trace(counts=[[1, 1]]), 0), "num_ranks is 0"),
    ],
)
def test_wrong_input_gets_a_sentence(call, says):
    with pytest.raises(EquipoiseError, match=says):
        call()


def test_large_numbers_of_experts_and_ranks_use_the_formula_and_stay_fast():
    assert noise_floor(4, 4096, 1, 4096).mean > 100
