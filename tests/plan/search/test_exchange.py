"""Exchanges of experts: those of plain loops, within the move budget, for what they pay."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.plan.search._exchange_kernels import exchange_experts
from tests.reference import exchange as plain

L, E, R, C = 2, 10, 4, 4
PRICE = 5e-4


def layout(seed):
    """Slots of every rank with no expert twice on one, and loads of a copy."""
    chance = np.random.default_rng(seed)
    by_rank = np.empty((L, R, C), dtype=np.int64)
    for layer in range(L):
        for rank in range(R):
            by_rank[layer, rank] = chance.choice(E, C, replace=False)
    copies = np.stack([np.bincount(layer.ravel(), minlength=E) for layer in by_rank])
    load = np.exp(chance.normal(0, 1, (L, E))) * (copies > 0)
    return by_rank, load / load.sum(axis=1, keepdims=True) * R / np.maximum(copies, 1)


def held(by_rank):
    return (by_rank[..., None] == np.arange(E)).any(axis=2)


def peaks(by_rank, share):
    return np.stack(
        [share[layer][by_rank[layer]].sum(axis=1).max() for layer in range(len(by_rank))]
    )


def exchanged(by_rank, home, share, price=PRICE, most=10**6):
    new = by_rank.copy()
    exchange_experts(new, home, share, price, most)
    return new


seeds = st.integers(0, 2**20)


@given(seed=seeds, most=st.integers(0, 20), price=st.sampled_from([0.0, PRICE, 0.1]))
def test_they_are_those_of_plain_loops(seed, most, price):
    by_rank, share = layout(seed)
    home = held(layout(seed + 1)[0])
    rows = by_rank.tolist()
    plain.exchange_experts(rows, home.astype(int).tolist(), share.tolist(), price, most)
    assert exchanged(by_rank, home, share, price, most).tolist() == rows


@given(seed=seeds, most=st.integers(0, 20))
def test_they_keep_the_copies_and_the_move_budget_and_sink_the_peak(seed, most):
    by_rank, share = layout(seed)
    new = exchanged(by_rank, held(by_rank), share, most=most)
    before, after = held(by_rank), held(new)
    assert (after.sum(axis=1) == before.sum(axis=1)).all()
    assert (after.sum(axis=2) == C).all()
    assert (after & ~before).sum() <= most
    assert (peaks(new, share) <= peaks(by_rank, share) + 1e-12).all()


def test_an_expert_goes_back_home_for_nothing():
    by_rank, share = layout(5)
    away = exchanged(by_rank, held(by_rank), share)
    assert (away != by_rank).any()
    assert (exchanged(by_rank, held(by_rank), share, price=9) == by_rank).all()
    assert (exchanged(by_rank, held(away), share, price=9) != by_rank).any()


def test_a_layer_without_load_stays():
    by_rank, share = layout(7)
    share[0] = 0
    new = exchanged(by_rank, held(by_rank), share)
    assert (new[0] == by_rank[0]).all()
    assert (new[1] != by_rank[1]).any()
