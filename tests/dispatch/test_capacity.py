"""Dropping beyond capacity: whom it hits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import expert_loads
from equipoise.dispatch.capacity import dropped_choices, expert_capacity
from equipoise.errors import EquipoiseError
from equipoise.lab import dropped_tokens
from tests.reference import tokens as reference

HOT = np.repeat(np.arange(8), [84, 7, 7, 6, 6, 6, 6, 6])


@st.composite
def choices(draw):
    num_experts = draw(st.integers(1, 6))
    shape = draw(st.integers(0, 20)), draw(st.integers(1, 4))
    values = st.integers(-1, num_experts)
    size = shape[0] * shape[1]
    ids = draw(st.lists(values, min_size=size, max_size=size))
    return np.array(ids, np.int64).reshape(shape), num_experts


@given(batch=choices(), factor=st.sampled_from([0, 0.3, 1, 1.25, 2.1, 50]))
def test_first_come_first_served_and_as_many_as_counted(batch, factor):
    ids, num_experts = batch
    dropped = dropped_choices(ids, num_experts, factor)
    loads = expert_loads(ids, num_experts)
    assert dropped.sum() == dropped_tokens(loads, factor)
    capacity = expert_capacity(int(loads.sum()), num_experts, factor)
    assert dropped.tolist() == reference.dropped(ids.tolist(), num_experts, capacity)


def test_the_labs_hot_router():
    ids = np.random.default_rng(0).permutation(HOT).reshape(64, 2)
    assert expert_capacity(128, 8, 1.0) == 16
    assert dropped_choices(ids, 8, 1.0).sum() == 68
    assert not dropped_choices(ids, 8, 5.25).any()


def test_the_last_ones_are_dropped():
    dropped = dropped_choices([[0, 1], [0, 1], [0, 2], [-1, 3]], 4, 0.5)
    assert dropped.tolist() == [[False, False], [True, True], [True, False], [False, False]]


@pytest.mark.parametrize(
    ("ids", "factor", "message"),
    [
        ([0, 1], 1.0, r"shape \(2,\); expected \(tokens, top_k\)"),
        ([[0.5, 1]], 1.0, "type float64"),
        ([[0, 1]], -1.0, "capacity_factor is -1.0"),
        ([[0, 1]], np.nan, "capacity_factor is nan"),
    ],
)
def test_what_is_refused(ids, factor, message):
    with pytest.raises(EquipoiseError, match=message):
        dropped_choices(ids, 2, factor)
