"""LPLB's quota."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import Split
from equipoise.engines.deepseek.rules import Lplb
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

PAIR = Placement([[0, 0]], num_ranks=2, num_experts=1)


def shared(first, load):
    """A split of one expert that leaves its first copy that share."""
    return Split(
        placement=PAIR,
        load=np.array([[float(load)]]),
        shares=np.array([[first * load, (1 - first) * load]]),
        bottleneck_ranks=np.ones((1, 2), np.bool_),
        dispatch="given",
        rounding=lambda split: split.shares.astype(np.int64),
    )


def test_known_answer():
    slots = Lplb().slots(np.zeros((10, 1), int), shared(0.6, 1000))
    k = [1, 0, 9, 8, 7, 6, 5, 4, 3, 2]
    assert slots.ravel().tolist() == [int(x >= 6) for x in k]
    same = Lplb().slots(np.zeros((499, 1), int), shared(0.6, 1000))
    assert not same.any()
    assert Lplb().slots(np.zeros((499, 1), int), shared(0.05, 1000)).all()


@given(total=st.integers(1, 498), first=st.floats(0, 1))
def test_the_quota_is_exact_where_499_does_not_divide(total, first):
    slots = Lplb().slots(np.zeros((total, 1), int), shared(first, 10**6))
    share = first * 10**6 / 10**6
    assert (slots == 0).sum() == sum(k < share * total for k in range(total))


def test_every_layer_and_expert_counts_its_own():
    placement = Placement([[0, 1, 2, 0], [1, 2, 0, 2]], num_ranks=2, num_experts=3)
    ids = np.random.default_rng(0).integers(-1, 4, (40, 2, 2))
    load = np.array([[90, 10, 20], [10, 30, 90]])
    split = Lplb().split(load, placement)
    slots = Lplb().slots(ids, split)
    for layer, row in enumerate(placement.slots.tolist()):
        for expert in range(3):
            mine = slots[:, layer][ids[:, layer] == expert].tolist()
            of_expert = [s for s, held in enumerate(row) if held == expert]
            first = split.shares[layer, of_expert[0]] / load[layer, expert]
            wanted = [
                of_expert[int((j * 499 + 41) % len(mine) >= first * len(mine)) if first < 1 else 0]
                for j in range(len(mine))
            ]
            assert mine == wanted
    assert (slots[(ids < 0) | (ids > 2)] == -1).all()


def test_shares_are_those_of_the_best_split():
    split = Lplb().split([[600, 200, 100]], Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3))
    assert split.gap == pytest.approx(0)
    assert split.shares.tolist() == [[250, 200, 350, 100]]


def test_three_copies_are_refused():
    three = Placement([[0, 0, 0, 1]], num_ranks=2, num_experts=2, layer_ids=(5,))
    with pytest.raises(EquipoiseError, match="Layer 5: expert 0 has 3 copies; LPLB supports"):
        Lplb().split([[1, 1]], three)
