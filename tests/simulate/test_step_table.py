from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.simulate.step_table import (
    NUM_DRAWS,
    drawn_steps,
    layout_seconds,
    parts_of_recording,
    step_table,
    table_sizes,
)
from equipoise.topology import Topology
from equipoise.trace import Trace

LAYERS, EXPERTS, TOP_K = 3, 16, 2
POPULARITY = lognormal(EXPERTS, num_layers=LAYERS, seed=1)


def recorded(num_steps: int, num_tokens: int, seed: int = 0) -> Trace:
    return sample_trace(
        steady(POPULARITY, num_steps=num_steps), num_tokens=num_tokens, top_k=TOP_K, seed=seed
    )


@given(tokens=st.integers(1, 3000), seed=st.integers(0, 99))
def test_drawn_steps_have_the_tokens_asked_for_and_no_unknown_experts(tokens, seed):
    trace = recorded(5, 50, seed)
    counts = trace.counts.copy()
    counts[:, 1] = 0  # a layer that was not recorded
    load = drawn_steps(Trace(counts=counts, top_k=TOP_K), tokens, top_k=TOP_K, number=7, seed=seed)
    assert load.shape == (7, LAYERS, EXPERTS)
    assert (load.sum(axis=2) == np.array([tokens * TOP_K, 0, tokens * TOP_K])).all()
    assert not load[:, counts.sum(axis=0) == 0].any()


def test_a_step_as_large_as_those_recorded_is_one_of_them():
    trace = recorded(NUM_DRAWS, 100)
    load = drawn_steps(trace, 100, top_k=TOP_K)
    assert (load == trace.counts).all()


def test_large_steps_of_small_ones_have_the_chance_of_large_ones():
    """Loads vary by the square root of their mean, not by what each recorded step varies by."""
    trace = recorded(4000, 8)
    load = drawn_steps(trace, 800, top_k=TOP_K, seed=3)[:, 0]
    expected = recorded(200, 800, seed=9).counts[:, 0]
    assert load.std(axis=0).mean() == pytest.approx(expected.std(axis=0).mean(), rel=0.15)
    assert load.mean(axis=0) == pytest.approx(expected.mean(axis=0), rel=0.1, abs=3)


def test_sizes_are_near_each_other_and_end_at_the_most():
    for most in (1, 2, 31, 33, 4096, 655_360):
        sizes = table_sizes(most)
        assert (sizes[0], sizes[-1]) == (1, most)
        ratios = np.divide(sizes[1:], sizes[:-1])
        assert (ratios > 1).all()
        assert (ratios <= 2).all()
        assert (ratios[np.array(sizes[1:]) > 64] < 1.45).all()


@pytest.mark.parametrize("cost", ["h100-deepep-ep8", "gb200-cutlass-ep8"])
def test_times_between_sizes_are_near_those_of_steps_of_that_size(cost):
    trace = recorded(40, 300)
    layout, topology = Layout.unbalanced(trace, 8), Topology(8)
    seconds = layout_seconds(layout, topology, UncertainCost.published(cost))
    table = step_table(trace, seconds, top_k=TOP_K, most_tokens=8192)
    sizes, means = list(table), [times.mean() for times in table.values()]
    for tokens in (3, 39, 300, 1200, 5000):
        true = seconds(drawn_steps(trace, tokens, top_k=TOP_K, number=200, seed=5)).mean()
        assert np.interp(tokens, sizes, means) == pytest.approx(true, rel=0.03)


def test_parts_are_no_more_than_the_recording_has_batches():
    trace = recorded(20, 100)
    seconds = np.arange(float(NUM_DRAWS))
    for tokens, parts in ((1, 20), (100, 20), (200, 10), (1500, 1), (9999, 1)):
        means = parts_of_recording(seconds, trace, tokens, top_k=TOP_K)
        assert len(means) == parts
        assert means.mean() == pytest.approx(seconds.mean(), rel=0.2)


def test_progress_is_told_by_size():
    told = []
    trace = recorded(3, 20)
    step_table(
        trace,
        lambda load: load.sum(axis=(1, 2)),
        top_k=TOP_K,
        most_tokens=5,
        progress=lambda done, total, said="": told.append((done, total)),
    )
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_recording_without_load_is_refused():
    empty = Trace(counts=np.zeros((2, 1, 4), np.int64))
    with pytest.raises(EquipoiseError, match="no load"):
        drawn_steps(empty, 5, top_k=1)


def test_more_load_than_numbers_hold_is_refused():
    huge = Trace(counts=np.full((2, 1, 64), 1 << 47))
    with pytest.raises(EquipoiseError, match=r"2\*\*53"):
        drawn_steps(huge, 5, top_k=1)
