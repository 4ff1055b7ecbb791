"""Ranks that are slow for what they have to do."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
from equipoise.errors import EquipoiseError
from equipoise.report.measured import unbalanced
from equipoise.report.stragglers import straggler_text

COUNTS = np.random.default_rng(0).poisson(500, (6, 2, 64))
COUNTS[:, :, :8] *= 3  # of rank 0
TRACE = eq.Trace(counts=COUNTS)
LAYOUT = unbalanced(TRACE, 8)
SECONDS = COUNTS.reshape(6, 2, 8, 8).sum(axis=(0, 1, 3)) * 1e-6


def test_a_rank_with_more_to_do_is_no_straggler():
    said = straggler_text(TRACE, LAYOUT, SECONDS.tolist())
    assert said.startswith("No rank is slow for its load")


def test_a_slow_rank_is_named_with_the_speeds_to_plan_with():
    slow = SECONDS * [1, 1, 1, 2, 1, 1, 1, 1]
    said = straggler_text(TRACE, LAYOUT, slow.tolist())
    assert said.startswith("Rank 3 (1.95x the time) is slow for the load: a straggler")
    assert said.endswith("plan with --speed 1,1,1,0.512,1,1,1,1.")


def test_several_are_named_together():
    counts = eq.Trace(counts=np.full((2, 1, 32), 100))
    times = [1.0] * 6 + [2.0, 3.0]
    said = straggler_text(counts, unbalanced(counts, 8), times)
    assert said.startswith("Ranks 6 (1.95x the time), 7 (3.05x the time) are slow")


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1, 1, 1], "3 times were given for 8 ranks"),
        ([1] * 7 + [0], "time of a rank"),
        ([1] * 7 + [float("nan")], "time of a rank"),
    ],
)
def test_what_is_refused(times, message):
    with pytest.raises(EquipoiseError, match=message):
        straggler_text(TRACE, LAYOUT, times)
