"""The mean of the slowest rank, against draws of all ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.simulate.jitter import expected_slowest

SECONDS = arrays(np.float64, st.tuples(st.just(3), st.integers(1, 9)), elements=st.floats(0, 100))


@pytest.mark.parametrize("num_ranks", [2, 8, 64])
@pytest.mark.parametrize("jitter", [0.02, 0.1, 0.3])
def test_it_is_the_mean_over_draws(num_ranks: int, jitter: float) -> None:
    rng = np.random.default_rng(num_ranks)
    mean = rng.uniform(0.8, 1.2, num_ranks)
    drawn = mean * (1 + jitter * rng.standard_normal((200_000, num_ranks)))
    slowest = drawn.max(axis=-1)
    error = slowest.std() / np.sqrt(len(slowest))
    assert abs(float(expected_slowest(mean, jitter)) - slowest.mean()) < 5 * error


def test_two_equal_ranks_have_the_known_mean() -> None:
    # E max of two independent normals of mean 1 and deviation s is 1 + s / sqrt(pi).
    assert expected_slowest(np.ones(2), 0.1) == pytest.approx(1 + 0.1 / np.sqrt(np.pi), rel=1e-6)


@given(SECONDS, st.floats(0, 0.5))
def test_never_below_the_largest_mean_nor_above_the_sum(
    rank_seconds: np.ndarray, jitter: float
) -> None:
    slowest = expected_slowest(rank_seconds, jitter)
    largest = rank_seconds.max(axis=-1)
    num_ranks = rank_seconds.shape[-1]
    assert (slowest >= largest).all()
    # The mean of the largest of R normals is at most sqrt(2 log R) deviations up.
    most = largest * (1 + jitter * np.sqrt(2 * np.log(num_ranks)))
    assert (slowest <= most * (1 + 1e-6) + 1e-12).all()


@given(SECONDS)
def test_without_jitter_it_is_the_maximum(rank_seconds: np.ndarray) -> None:
    assert (expected_slowest(rank_seconds, 0.0) == rank_seconds.max(axis=-1)).all()
