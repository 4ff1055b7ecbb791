"""How unevenly requests are spread over the ranks."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
from equipoise.report.attention import measure_attention


def brought(share: list[int]) -> eq.Trace:
    source = np.random.default_rng(0).poisson(1000 * np.array(share)[:, None, None], (5, 4, 2, 8))
    return eq.Trace(counts=source.sum(axis=1), source_counts=source)


def test_the_rank_with_most_is_what_attention_waits_for():
    found = measure_attention(brought([1, 1, 5, 1]))
    assert found.imbalance == pytest.approx(5 / 2, rel=0.01)
    assert found.busiest_rank == 2
    assert f"in a step the fullest rank has {found.imbalance:.2f}x" in found.headline[0]


def test_even_requests_are_not_worth_a_sentence():
    assert measure_attention(brought([1, 1, 1, 1])).headline == ()


def test_without_source_ranks_nothing_is_known():
    assert measure_attention(eq.Trace(counts=np.ones((2, 1, 4), np.int64))) is None


def test_steps_without_load_are_left_out():
    silent = np.zeros((3, 2, 1, 4), np.int64)
    assert measure_attention(eq.Trace(counts=silent.sum(axis=1), source_counts=silent)) is None
