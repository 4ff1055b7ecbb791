"""How long loads resemble each other, where it is known."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.simulate.lasting import lasting_steps
from equipoise.simulate.routers import lognormal, sample_trace, steady


def requests(steps_each: int, num_requests: int = 40) -> np.ndarray:
    """One request after the other, each with experts of its own."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(16), (num_requests, 2))
    return np.concatenate(
        [rng.multinomial(200, share, (steps_each, 2)) for share in shares]
    ).astype(float)


def one_kind(load: np.ndarray) -> np.ndarray:
    return np.zeros(len(load), np.int64)


@pytest.mark.parametrize("length", [5, 20])
def test_requests_last_as_long_as_they_have_steps(length):
    load = requests(length)
    assert 0.5 * length < lasting_steps(load, one_kind(load)) <= 1.5 * length


def test_steps_of_a_steady_router_do_not_resemble_each_other():
    steps = steady(lognormal(16, num_layers=2, seed=1), num_steps=200)
    load = sample_trace(steps, num_tokens=100, top_k=2, seed=2).counts.astype(float)
    assert lasting_steps(load, one_kind(load)) < 5


def test_what_differs_between_kinds_does_not_last():
    """Two domains by turns, each steady."""
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(16), 2)
    load = np.stack([rng.multinomial(200, shares[t % 2]) for t in range(100)])[:, None].astype(
        float
    )
    assert lasting_steps(load, np.arange(100) % 2) < 5


def test_many_steps_are_summed_and_few_are_no_matter():
    load = requests(100)
    assert 50 < lasting_steps(load, one_kind(load)) <= 150
    assert lasting_steps(load[:1], one_kind(load[:1])) == 1
    assert lasting_steps(np.zeros((5, 2, 4)), np.zeros(5, np.int64)) == 1
