from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import rank_loads
from equipoise.dispatch import Even
from equipoise.placement import Placement
from tests.dispatch.test_dispatchers import batches
from tests.reference import dispatch as reference


@given(batch=batches(st.integers(0, 30), num_layers=1))
def test_quotas_are_dealt_one_by_one(batch):
    load, placement = batch
    quotas = Even().split(load, placement).quotas
    assert quotas[0].tolist() == reference.even_quotas(load[0], placement.slots[0])


@given(batch=batches(st.floats(0, 1e6)))
def test_ranks_carry_what_planners_assume(batch):
    load, placement = batch
    split = Even().split(load, placement)
    assert split.rank_loads == pytest.approx(rank_loads(load, placement))


def test_status_names_what_minmax_would_gain():
    ring = Placement([[0, 3, 1, 0, 2, 1, 3, 2]], num_ranks=4, num_experts=4)
    split = Even().split([[6, 2, 0, 0]], ring)
    assert split.peak.tolist() == [4.0]
    assert split.bound.tolist() == [3.0]
    assert split.status == (
        "Peaks are 33.3% above those of the best split over these copies; "
        "a min-max split reaches them."
    )


def test_odd_assignments_go_to_lower_slots():
    split = Even().split([[5, 2]], Placement([[0, 1, 0, 0]], num_ranks=2, num_experts=2))
    assert split.quotas.tolist() == [[2, 2, 2, 1]]
    assert np.array_equal(split.shares, [[5 / 3, 2, 5 / 3, 5 / 3]])
