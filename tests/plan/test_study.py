"""The parts of planning, one by one, are what a study puts together."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
from equipoise.dispatch import Even, dispatcher
from equipoise.migration import diff
from equipoise.plan import Colocate, Greedy, hold_out_steps, measure_reach
from equipoise.trace import TokenIds

TOPOLOGY = eq.Topology(4, 2)


@pytest.fixture(scope="module")
def trace():
    """Ten steps of 60 tokens, top-2, 2 layers of 8 experts, of which some are hot."""
    chance = np.random.default_rng(1)
    first = chance.choice(8, (600, 2), p=np.arange(1, 9) / 36)
    ids = np.stack([first, (first + chance.integers(1, 8, first.shape)) % 8], axis=2)
    counts = (ids.reshape(10, 60, 2, 2)[..., None] == np.arange(8)).sum(axis=(1, 3))
    tokens = TokenIds(ids, np.arange(0, 601, 60))
    return eq.Trace(counts=counts, layer_ids=(3, 4), top_k=2, tokens=tokens)


def test_its_parts(trace):
    found = eq.study(trace, TOPOLOGY, num_slots=12, planner=Greedy(), hold_out=0.3)
    fit, held = trace.split(at=0.7)
    plan = Greedy().plan(eq.Problem(fit, TOPOLOGY, 12))
    assert found.plan.placement == plan.placement
    assert np.array_equal(found.plan.bound, plan.bound)
    assert found.migration is None
    judge = Even(topology=TOPOLOGY)
    unseen = eq.evaluate(plan.placement, held, dispatch=judge)
    assert np.array_equal(found.scores.unseen["plan"].peak, unseen.peak)
    assert found.verdict.against == "plain"
    assert found.reach == measure_reach(plan.placement, held, TOPOLOGY)


def test_from_the_placement_in_force(trace):
    current = eq.Contiguous().plan(eq.Problem(trace, TOPOLOGY, 12)).placement
    found = eq.study(trace, TOPOLOGY, num_slots=12, planner=Greedy(), current=current)
    assert found.verdict.against == "current"
    migration = diff(current, found.plan.placement, TOPOLOGY)
    assert (found.migration.counts == migration.counts).all()
    with pytest.raises(eq.EquipoiseError, match="placement in force has other slots"):
        eq.study(trace, TOPOLOGY, num_slots=16, planner=Greedy(), current=current)


def test_a_planner_may_need_the_steps_that_are_planned_on(trace):
    def planner(fit):
        assert fit.num_steps == 8
        return Colocate(tokens=fit.tokens, start=Greedy(), proposals=500)

    assert eq.study(trace, TOPOLOGY, num_slots=12, planner=planner).plan.planner.startswith("Colo")


def test_what_is_refused_before_the_search_is_not_searched(trace):
    class Never:
        def plan(self, problem):
            raise AssertionError

    def refuse(problem):
        assert problem.num_slots == 12
        raise eq.EquipoiseError("No.")

    with pytest.raises(eq.EquipoiseError, match=r"No\."):
        eq.study(trace, TOPOLOGY, num_slots=12, planner=Never(), before_search=refuse)


def test_nothing_held_out(trace):
    found = eq.study(trace, TOPOLOGY, num_slots=12, planner=Greedy(), hold_out=0)
    assert found.held is None
    assert found.reach is None
    assert "Nothing was verified" in found.verdict.text


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), "half", None])
def test_shares_that_are_none(trace, share):
    with pytest.raises(eq.EquipoiseError, match=r"hold_out is .*; expected a share from 0"):
        hold_out_steps(trace, share)


def test_a_single_step_cannot_be_held_out():
    trace = eq.Trace(counts=np.ones((1, 2, 8), np.int64))
    with pytest.raises(eq.EquipoiseError, match=r"has one step.* give hold_out 0 to plan"):
        hold_out_steps(trace, 0.2)


def test_rules_that_go_by_tokens_know_how_many_experts_a_token_has(trace):
    robust = eq.Robust(dispatch="vllm", proposals=512)
    found = eq.study(trace, TOPOLOGY, num_slots=12, planner=robust, dispatch="vllm")
    assert found.plan.problem.top_k == 2
    assert found.plan.dispatcher.top_k == found.scores.dispatcher.top_k == 2
    known = dispatcher("vllm", TOPOLOGY, top_k=2)
    by_hand = eq.Robust(dispatch=known, proposals=512)
    assert by_hand.plan(found.plan.problem).placement == found.plan.placement
