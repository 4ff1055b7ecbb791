"""Least-loaded expert parallelism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch.llep import Llep
from equipoise.errors import EquipoiseError

SKEWED = [70, 10, 5, 5, 4, 3, 2, 1]


def test_known_answers():
    flow = Llep(min_chunk=1).spill(SKEWED, 4)
    assert flow[:, 0].tolist() == [15, 15, 18, 22]
    assert flow.sum(axis=1).tolist() == [25, 25, 25, 25]
    flow = Llep(min_chunk=20).spill(SKEWED, 4)
    assert flow[:, 0].tolist() == [15, 0, 33, 22]
    assert flow[1, [4, 5]].tolist() == [4, 3]
    assert flow.sum(axis=1).tolist() == [25, 17, 33, 25]


@given(
    load=st.lists(st.integers(0, 500), min_size=6, max_size=6).filter(any),
    num_ranks=st.sampled_from([1, 2, 3, 6]),
    min_chunk=st.sampled_from([1, 7, 1024]),
)
def test_everything_is_served_and_with_small_chunks_to_the_mean(load, num_ranks, min_chunk):
    flow = Llep(min_chunk=min_chunk).spill(load, num_ranks)
    assert (flow >= 0).all()
    assert flow.sum(axis=0).tolist() == load
    skewed = max(load) * 6 >= 1.3 * sum(load)
    if min_chunk == 1 and skewed:
        assert flow.sum(axis=1).max() <= -(-sum(load) // num_ranks)
    if not skewed:
        assert np.count_nonzero(flow) == np.count_nonzero(load)


def test_little_skew_stays_at_home():
    flow = Llep().spill([12, 10, 9, 9], 2)
    assert flow.tolist() == [[12, 10, 0, 0], [0, 0, 9, 9]]
    assert not Llep().spill([0, 0], 2).any()


@pytest.mark.parametrize(
    ("load", "num_ranks", "message"),
    [
        ([1, 2, 3], 2, "a multiple of 2"),
        ([1.5, 2], 2, "not whole"),
        ([[1, 2]], 2, "shape"),
        ([-1, 2], 2, "is -1"),
        ([1, 2], 0, "num_ranks"),
    ],
)
def test_what_is_refused(load, num_ranks, message):
    with pytest.raises(EquipoiseError, match=message):
        Llep().spill(load, num_ranks)


def test_options_that_make_no_sense():
    with pytest.raises(EquipoiseError, match=r"capacity is 0\.5"):
        Llep(capacity=0.5)
    with pytest.raises(EquipoiseError, match="min_chunk is 0"):
        Llep(min_chunk=0)
