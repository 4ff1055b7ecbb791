"""Our controller next to plans that stay, where it is known which of them is better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import equipoise as eq
from equipoise.cost import RankCost
from equipoise.dispatch import dispatcher
from equipoise.errors import EquipoiseError
from equipoise.plan.planners.eplb import Greedy
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.forecast import forecast
from equipoise.simulate.online import Stay, replay
from equipoise.simulate.online_trial import LEAST_STEPS, InTime, Online
from equipoise.simulate.routers import lognormal

TOPOLOGY = eq.Topology(4)
COST = UncertainCost(name="ours", planning_cost=RankCost(token_seconds=1e-6), error=0.1)
FREE = Online(expert_bytes=1, interference=0.0, stall_seconds=0.0, plan_seconds=0.0)
DEAR = replace(FREE, stall_seconds=10.0)


def greedy(dispatch: str) -> Greedy:
    return Greedy()


def shifting(num_steps: int = 400, tokens: int = 20_000, routers: int = 2) -> eq.Trace:
    """One router for the planned half and a little of the other, then others."""
    popularity = [lognormal(16, num_layers=1, sigma=1.2, seed=s)[0] for s in range(1, routers + 1)]
    before = int(num_steps * 0.55)
    rng = np.random.default_rng(0)
    sizes = [before, *[(num_steps - before) // (routers - 1)] * (routers - 1)]
    parts = [rng.multinomial(tokens, p, (n, 1)) for p, n in zip(popularity, sizes, strict=True)]
    return eq.Trace(counts=np.concatenate(parts), top_k=2)


def asked(online: Online | None, trace: eq.Trace | None = None, **more):
    told = {"dispatch": ["even"], "redundant": [4], "planner": greedy, "hold_out": 0.5} | more
    return forecast(trace or shifting(), TOPOLOGY, COST, online=online, **told)


@pytest.fixture(scope="module")
def free():
    return asked(FREE, shifting(1800, routers=10))


def test_traffic_that_changes_is_worth_a_controller_if_moves_cost_little(free):
    static, online = free.options
    assert (static.is_online, online.is_online) == (False, True)
    assert online.gain > static.gain + 0.1
    assert online.moves > 0


def test_a_controller_is_the_best_only_if_it_surely_beats_what_stays_by_what_pays(free):
    static, online = free.options
    for low, best in ((free.least_gain, "online"), (free.least_gain / 2, "static")):
        tried = replace(online, over_static=(low, 0.3))
        found = replace(free, options=(static, tried))
        assert found.best is (tried if best == "online" else static)
        assert ("kept balanced by our controller" in found.verdict.text) == (best == "online")


def test_one_change_of_traffic_is_no_evidence_of_more():
    """Its interval knows that what lasted for half of the steps was there once."""
    once = asked(FREE)
    static, online = once.options
    assert online.gain > static.gain + 0.05
    assert online.over_static[0] < 0
    assert once.best is static


def test_a_controller_whose_moves_cost_more_than_they_bring_is_not_recommended():
    """The gate leaves it at the plan that stays; and if it did not, it would not be the best."""
    dear = asked(DEAR, shifting(1800, routers=10))
    static, online = dear.options
    assert online.over_static[0] < dear.least_gain
    assert dear.best is static
    assert dear.online is online


def test_without_being_asked_for_nothing_is_served_in_time():
    plain = asked(None)
    assert (len(plain.options), plain.in_time, plain.online) == (1, None, None)


def test_a_map_that_never_changes_takes_what_the_steps_take():
    held = shifting().split(at=0.5)[1]
    models = (COST, *COST.draws(3, 0))
    in_time = InTime.of(
        held, None, 0, topology=TOPOLOGY, models=models, other_seconds=0.001, online=DEAR
    )
    start = Layout(
        placement=eq.Placement([[*range(16), 0, 1, 2, 3]], num_ranks=4, num_experts=16),
        dispatch=dispatcher("even", TOPOLOGY),
    )
    by_hand = 0.001 + start.step_seconds(held.counts.astype(float), TOPOLOGY, models)
    assert in_time.static(start) == pytest.approx(by_hand)
    stays = replay(held, start, Stay(), in_time.conditions)
    assert in_time.timed(stays, start) == pytest.approx(by_hand)


def test_what_moved_is_timed_by_every_model_with_what_was_lost():
    held = shifting().split(at=0.5)[1]
    prices = replace(FREE, stall_seconds=0.01)
    models = (COST, UncertainCost(name="twice", planning_cost=RankCost(token_seconds=2e-6)))
    in_time = InTime.of(
        held, None, 0, topology=TOPOLOGY, models=models, other_seconds=0.0, online=prices
    )
    plan = Greedy().plan(eq.Problem(shifting().split(at=0.5)[0], TOPOLOGY, 20)).placement
    start = Layout(placement=plan, dispatch=dispatcher("even", TOPOLOGY))
    (one, two), moves = in_time.controlled(start, seed=0)
    stays = in_time.static(start)[0]
    assert moves > 0
    assert one.sum() < stays.sum()
    lost = 2 * one - two  # what does not depend on the model
    assert lost.max() == pytest.approx(0.01, abs=1e-6)
    assert (lost > -1e-12).all()


def test_rows_that_sum_steps_are_served_as_some_of_each():
    trace = shifting(tokens=200_000)
    held = eq.Trace(counts=trace.counts[-12:], top_k=2)
    told = {"topology": TOPOLOGY, "models": (COST,), "other_seconds": 0.0, "online": FREE}
    in_time = InTime.of(held, 20_000, 0, **told)
    assert (in_time.each, in_time.steps.num_steps) == (10, 120)
    assert in_time.static(Layout.unbalanced(held, 4)).shape == (1, 12)
    few = InTime.of(held, 150_000, 0, **told)
    assert few.steps.num_steps >= LEAST_STEPS


def test_too_few_steps_are_refused():
    with pytest.raises(EquipoiseError, match="20 unseen steps are too few for a controller"):
        asked(FREE, eq.Trace(counts=shifting().counts[:40], top_k=2))
    with pytest.raises(EquipoiseError, match="interference"):
        replace(FREE, interference=2.0)
