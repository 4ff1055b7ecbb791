from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.quality import adrs_twin
from equipoise.placement import Placement


@pytest.fixture(scope="module")
def windows():
    return adrs_twin.twin(seed=0)


def test_score_of_the_published_leader():
    assert adrs_twin.score(0.7555, 0.00152) == pytest.approx(74.6, abs=0.05)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1e-4, 55.0), (0.001, 55.0), (0.002, 50.0), (0.01, 46.0), (0.5, 35.02), (2, 25.005)],
)
def test_speed_bonus_and_penalty(seconds, expected):
    assert adrs_twin.score(0.5, seconds) == pytest.approx(expected)


def test_balancedness_counts_every_layer():
    placement = Placement([[0, 1, 2, 3], [0, 1, 2, 3]], num_ranks=2, num_experts=4)
    ranks, slots = adrs_twin.balancedness(placement, np.array([[4, 2, 1, 1], [1, 1, 1, 1]]))
    assert ranks == pytest.approx((4 + 2) / (6 + 2))
    assert slots == pytest.approx((2 + 1) / (4 + 1))


def test_twin_follows_the_recipe(windows):
    assert windows.shape == (12, 58, 256)
    assert (windows.sum(axis=2) == 2_000_000).all()
    z = np.log(np.maximum(windows, 1)) / 1.1
    z -= z.mean(axis=2, keepdims=True)
    kept = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairwise(z)]
    assert kept == pytest.approx(adrs_twin.KEPT, abs=0.03)
    of_group = z[0].reshape(58, 8, 32).mean(axis=2)
    assert of_group.var() == pytest.approx(0.2, abs=0.05)


def test_rows_come_out_as_noted_for_an_earlier_twin(windows):
    pairs = list(pairwise(windows))
    results = [
        adrs_twin.run(name, place, pairs)
        for name, place in adrs_twin.rows(None, proposals=0).items()
        if name in adrs_twin.EARLIER_TWIN
    ]
    assert len(results) == 4
    assert adrs_twin.agrees(results)
