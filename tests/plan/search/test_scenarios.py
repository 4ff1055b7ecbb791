"""What is assumed of windows that tell nothing of how experts deviate, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.plan import Problem
from equipoise.plan.search.scenarios import (
    DEVIATION,
    enough_draws,
    group_scenarios,
    read_history,
    with_noise,
)
from equipoise.topology import Topology

RANKS = 4


def history(windows, groups, **options):
    load = np.random.default_rng(3).lognormal(0, 1, (windows, 2, 8))
    problem = Problem(load, Topology(RANKS), 12, traffic_groups=groups)
    return read_history(problem, None, **options)


def variance(history):
    """Variance that the scenarios of the traffic groups price, ``(G, L, E)``."""
    risk = group_scenarios(history, np.random.default_rng(0)).risk.transpose(2, 0, 1)[:-1]
    z = np.sqrt(2 * np.log(RANKS))
    # risk = variance * z / 4 / sqrt(sum of variances / R): solved for the variance
    root = 4 * risk.sum(axis=-1, keepdims=True) / z / RANKS
    return np.asarray(risk * root * 4 / z)


def test_the_variance_of_a_single_window_is_assumed_by_load():
    alone = history(1, ["a"])
    load = alone.load[0]
    expected = [[2 * DEVIATION * x * np.mean(layer) for x in layer] for layer in load]
    assert variance(alone)[0] == pytest.approx(np.array(expected))


def test_the_variance_of_a_single_window_is_that_of_other_traffic_groups():
    mixed = history(5, ["a", "b", "b", "b", "b"])
    rows = mixed.load[1:]
    spread = mean_products = 0.0
    for layer in range(2):
        for expert in range(8):
            values = rows[:, layer, expert]
            spread += sum((v - values.mean()) ** 2 for v in values) / 3
            mean_products += values.mean() * rows[:, layer].mean()
    rate = spread / mean_products
    alone = mixed.load[0]
    expected = 2 * rate * alone * alone.mean(axis=-1, keepdims=True)
    assert variance(mixed)[0] == pytest.approx(expected)


def test_without_deviation_a_single_window_is_exact():
    exact = history(1, ["a"], deviation=0)
    assert exact.is_exact
    assert not variance(exact).any()
    assert enough_draws(exact, 4) == 1
    assert with_noise(exact, np.random.default_rng(0), 1).load == pytest.approx(exact.load)


@pytest.mark.parametrize(("windows", "draws"), [(1, 32), (2, 16), (5, 7), (8, 4), (40, 4)])
def test_few_windows_are_drawn_from_more_often(windows, draws):
    assert enough_draws(history(windows, ["a"] * windows), 4) == draws
