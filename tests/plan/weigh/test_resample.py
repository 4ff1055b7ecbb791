"""Means of circular blocks, next to plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.plan.weigh.resample import block_length, resampled_means


@given(T=st.integers(1, 12), size=st.integers(1, 15), seed=st.integers(0, 99))
def test_means_are_those_of_blocks_taken_one_by_one(T, size, seed):
    values = np.random.default_rng(seed).normal(size=(2, T))
    means = resampled_means(values, block_steps=size, num_draws=7, seed=seed)
    size = min(size, T)
    first = np.random.default_rng(seed).integers(0, T, (7, -(-T // size)))
    for draw in range(7):
        steps = [(start + i) % T for start in first[draw] for i in range(size)][:T]
        assert means[:, draw] == pytest.approx(values[:, steps].mean(axis=1))


def test_blocks_are_as_long_as_the_cube_root():
    assert [block_length(T) for T in (1, 2, 8, 27, 1000)] == [1, 1, 2, 3, 10]


def test_neighbours_that_are_equal_vary_as_their_blocks_do():
    values = np.random.default_rng(0).normal(size=64).repeat(8)
    single, blocks = (
        resampled_means(values, block_steps=size, num_draws=4000, seed=1).std() for size in (1, 32)
    )
    assert single == pytest.approx(values.std() / np.sqrt(512), rel=0.05)
    assert 2 < blocks / single < 4  # sqrt(8), give or take what 16 blocks are off
