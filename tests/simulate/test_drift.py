"""Chance, skew and drift: what ranks wait for, told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.cost import RankCost
from equipoise.dispatch import Even, MinMax
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.fair import fair_steps
from equipoise.simulate.familiar import familiar_steps
from equipoise.simulate.kinds import kind_names
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.simulate.step import StepParts, split_steps
from tests.reference.waits import split_wait

RANKS, EXPERTS, TOP_K = 4, 16, 2
TOPOLOGY = eq.Topology(RANKS)
BY_TOKENS = UncertainCost(name="tokens", planning_cost=RankCost(token_seconds=1e-6), error=0.0)


def served(popularity, num_steps=40, num_tokens=2000, seed=0):
    return sample_trace(
        steady(popularity, num_steps=num_steps), num_tokens=num_tokens, top_k=TOP_K, seed=seed
    )


def planned(fit, dispatch=None, slots=20):
    placement = eq.Greedy().plan(eq.Problem(fit, TOPOLOGY, slots)).placement
    return Layout(placement=placement, dispatch=dispatch or Even())


def split(later, layout, known=None, seed=1, model=BY_TOKENS):
    load = later.counts.astype(float)
    familiar = None
    if known is not None:
        familiar = familiar_steps(known, kind_names(later), load.sum(axis=-1), seed=seed)
    return split_steps(load, layout, TOPOLOGY, model, top_k=TOP_K, familiar=familiar, seed=seed)


@settings(deadline=None, max_examples=30)
@given(
    sigma=st.sampled_from([0.0, 0.5, 1.5]),
    moved=st.booleans(),
    known=st.booleans(),
    tokens=st.sampled_from([1, 30, 4000]),
    even=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_parts_add_up_to_the_whole_and_none_is_negative(
    sigma, moved, known, tokens, even, seed
):
    popularity = lognormal(EXPERTS, num_layers=2, sigma=sigma, seed=seed)
    fit = served(popularity, num_steps=6, num_tokens=tokens, seed=seed)
    later = served(popularity[:, ::-1] if moved else popularity, 6, tokens, seed + 1)
    layout = planned(fit, Even() if even else MinMax())
    parts = split(later, layout, fit if known else None, seed)
    whole = layout.step_seconds(later.counts.astype(float), TOPOLOGY, [BY_TOKENS])[0]
    assert parts.total == pytest.approx(whole)
    assert min(parts.means.values()) >= 0
    if not known:
        assert not parts.drift.any()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), moved=st.booleans())
def test_it_is_what_plain_loops_find(seed, moved):
    popularity = lognormal(EXPERTS, num_layers=2, sigma=1.0, seed=seed)
    fit = served(popularity, num_steps=5, seed=seed)
    later = served(popularity[:, ::-1] if moved else popularity, 5, 500, seed + 1)
    layout = planned(fit)
    load = later.counts.astype(float)
    sizes = load.sum(axis=-1)
    found = split(later, layout, fit, seed).means
    wanted = split_wait(
        recorded=load,
        fair=fair_steps(sizes, EXPERTS, TOP_K, seed),
        familiar=familiar_steps(fit, kind_names(later), sizes, seed=seed),
        slots=layout.placement.slots,
        num_ranks=RANKS,
        token_seconds=1e-6,
    )
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_fair_router_drifts_nowhere(seed):
    popularity = np.ones((8, EXPERTS))
    fit, later = (served(popularity, num_tokens=256, seed=2 * seed + i) for i in (0, 1))
    parts = split(later, planned(fit), fit, seed)
    assert parts.drift.sum() < 0.05 * parts.wait.sum()


def test_what_a_plan_knew_is_skew_and_no_drift():
    """Two hot experts that an even split of single copies cannot mend, the same all along."""
    popularity = np.ones((4, EXPERTS))
    popularity[:, :2] = 40
    fit, later = (served(popularity, seed=seed) for seed in (1, 2))
    parts = split(later, planned(fit, slots=EXPERTS), fit)
    assert parts.skew.sum() > 0.95 * parts.wait.sum()
    assert parts.drift.sum() < 0.03 * parts.wait.sum()


def test_a_planted_shift_is_drift():
    """The plan fits the loads it was made for; then the hot experts are others."""
    popularity = lognormal(EXPERTS, num_layers=4, sigma=1.0, seed=3)
    fit, same = (served(popularity, seed=seed) for seed in (1, 2))
    shifted = served(popularity[:, ::-1], seed=2)
    layout = planned(fit, MinMax(), slots=24)
    calm, moved = (split(later, layout, fit) for later in (same, shifted))
    assert moved.wait.sum() > 5 * calm.wait.sum()
    assert calm.drift.sum() < 0.02 * moved.wait.sum()
    assert moved.drift.sum() > 0.9 * moved.wait.sum()


def test_copies_for_other_loads_are_no_chance():
    """A fair router on copies made for a hot expert waits, but not by chance."""
    popularity = np.ones((4, EXPERTS))
    popularity[:, 0] = 30
    fit = served(popularity, seed=1)
    layout = planned(fit, slots=20)
    later = served(np.ones((4, EXPERTS)), num_tokens=100_000, seed=2)
    parts = split(later, layout, fit)
    assert parts.chance.sum() < 0.1 * parts.wait.sum()


def test_steps_of_a_domain_are_compared_with_that_domain():
    """Two domains, each as it was: no step drifts, though each is far from the mean of both."""
    popularity = lognormal(EXPERTS, num_layers=4, sigma=1.0, seed=5)
    parts = [[served(p, 20, seed=s) for p in (popularity, popularity[:, ::-1])] for s in (1, 2)]
    fit, later = (
        eq.Trace(
            counts=np.concatenate([t.counts for t in pair]),
            labels={"domain": np.repeat(["a", "b"], 20)},
            top_k=TOP_K,
        )
        for pair in parts
    )
    found = split(later, planned(fit), fit)
    assert found.drift.sum() < 0.05 * found.wait.sum()


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.sampled_from([1, 20, 3000]),
    wanted=st.sampled_from([1, 30, 500, 80_000]),
    of_rows=st.booleans(),
)
def test_familiar_steps_have_the_sizes_asked_for(tokens, wanted, of_rows):
    popularity = lognormal(EXPERTS, num_layers=2, sigma=1.0, seed=1)
    known = served(popularity, 5, tokens)
    sizes = np.array([[wanted, 2 * wanted], [wanted, 0]], float)
    found = familiar_steps(known, np.array(["", ""]), sizes, of_rows=of_rows)
    assert found.sum(axis=-1).tolist() == sizes.tolist()


def test_a_familiar_step_of_a_recorded_size_is_that_step():
    """It has the chance of one draw, not of a draw from a draw."""
    known = served(lognormal(EXPERTS, num_layers=2, sigma=1.0, seed=1), 5, 300)
    sizes = known.counts.sum(axis=-1).astype(float)
    assert (familiar_steps(known, np.full(5, ""), sizes) == known.counts).all()


def test_parts_of_no_wait():
    none = StepParts.of_experts(np.ones(3), np.ones(3)).told_apart(np.ones(3), np.ones(3))
    assert not none.wait.any()
