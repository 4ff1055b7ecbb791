"""Policies in time next to plain sums, and where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise as eq
from equipoise.control import Settings
from equipoise.cost import RankCost
from equipoise.dispatch import Even
from equipoise.errors import EquipoiseError
from equipoise.migration import diff, with_slots
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.online import (
    Conditions,
    Controlled,
    Replan,
    Stay,
    controlled,
    online_seconds,
    replay,
)
from equipoise.simulate.routers import lognormal, sample_trace, shift_domains, steady, uniform
from equipoise.topology import Link
from tests.control.advisors import Restless

L, E, S, R = 3, 6, 8, 4
TOPOLOGY = eq.Topology(R, 2)
START = eq.Placement([[0, 1, 2, 3, 4, 5, 0, 1]] * L, num_ranks=R, num_experts=E)
MODEL = UncertainCost(
    name="ours", planning_cost=RankCost(fixed_seconds=0.1, token_seconds=1e-2), error=0
)
CONDITIONS = Conditions(
    topology=TOPOLOGY, model=MODEL, expert_bytes=10**9, interference=0.25, stall_seconds=0.5
)
LAYOUT = Layout(placement=START, dispatch=Even())
OFTEN = Settings(
    window=8, update_interval=8, warm_up_steps=0, cool_down_steps=8, excess_on=1e-9, excess_off=0
)


def loads(seed: int, num_steps: int = 60) -> eq.Trace:
    """Steps whose popular experts change in the middle."""
    first, second = (lognormal(E, num_layers=L, seed=2 * seed + i) for i in range(2))
    popularity, _ = shift_domains(
        [first, second], num_steps=num_steps, steps_per_domain=num_steps // 2
    )
    return sample_trace(popularity, num_tokens=64, top_k=2, seed=seed)


def quiet_restless(seed: int) -> Restless:
    class Quiet(Restless):
        def __call__(self, question, window):
            return self._finding(question, _shuffled(question.current, seed + question.number))

    return Quiet(seed)


def _shuffled(placement, seed):
    rng = np.random.default_rng(seed)
    return with_slots(placement, np.stack([rng.permutation(row) for row in placement.slots]))


@st.composite
def policies(draw):
    plan_seconds = draw(st.sampled_from([0.0, 0.7, 5.0]))
    background = draw(st.booleans())
    if draw(st.booleans()):
        settings = replace(OFTEN, layers_per_step=draw(st.integers(1, 4)), background=background)
        advisor = quiet_restless(draw(st.integers(0, 99)))
        return Controlled(settings=settings, advisor=advisor, plan_seconds=plan_seconds)
    return Replan(
        interval=draw(st.integers(1, 20)),
        window=draw(st.integers(1, 20)),
        above=draw(st.sampled_from([None, 1.0, 1.3])),
        plan_seconds=plan_seconds,
        layers_per_step=draw(st.sampled_from([None, 1, 2])),
        background=background,
    )


@given(policy=policies(), seed=st.integers(0, 99))
def test_moves_are_the_differences_of_the_maps_and_steps_take_what_their_map_does(policy, seed):
    steps = loads(seed)
    result = replay(steps, LAYOUT, policy, CONDITIONS)
    placement, moves, crossed, transfer_seconds = START, 0, 0, 0.0
    arrivals = list(result.arrivals)
    for t in range(steps.num_steps):
        while arrivals and arrivals[0].step == t:
            arrival = arrivals.pop(0)
            slots = placement.slots.copy()
            slots[list(arrival.rows)] = arrival.slots
            new = with_slots(placement, slots)
            moves += int((new.slots != placement.slots).sum())
            migration = diff(placement, new, TOPOLOGY)
            crossed += migration.bytes(CONDITIONS.expert_bytes)
            transfer_seconds += migration.seconds(CONDITIONS.expert_bytes)
            placement = new
        load = steps.counts[t][None].astype(float)
        alone = Layout(placement=placement, dispatch=Even()).step_seconds(load, TOPOLOGY, [MODEL])
        assert result.seconds[t] - result.lost[t] == pytest.approx(alone[0, 0])
        assert result.imbalance[t] == pytest.approx(eq.evaluate(placement, load).mean_imbalance)
    assert all(arrival.step == steps.num_steps for arrival in arrivals)  # after the last step
    left = sum(arrival.moves for arrival in arrivals)
    assert result.moves == moves + left
    assert bool(left) or (result.moved_bytes, result.placement) == (crossed, placement)
    share = CONDITIONS.interference if _background(policy) else 1.0
    stalls = CONDITIONS.stall_seconds * sum(at < steps.num_steps for at in result.changes)
    assert result.lost.sum() >= stalls + share * transfer_seconds - 1e-9
    if len(arrivals) == 0 == len(_under_way(result, steps)):
        assert result.lost.sum() == pytest.approx(stalls + share * transfer_seconds)


def _background(policy):
    return policy.settings.background if isinstance(policy, Controlled) else policy.background


def _under_way(result, steps):
    """Steps slowed after the last arrival: what was still moving when the steps ended."""
    last = max((arrival.step for arrival in result.arrivals), default=0)
    return np.flatnonzero(result.lost[last:])


@given(policy=policies(), seed=st.integers(0, 99), cut=st.integers(1, 59))
def test_no_policy_sees_what_comes(policy, seed, cut):
    steps = loads(seed)
    counts = steps.counts.copy()
    counts[cut:] = counts[cut:, :, ::-1] * 3
    before = replay(steps, LAYOUT, policy, CONDITIONS)
    after = replay(replace(steps, counts=counts, tokens=None), LAYOUT, policy, CONDITIONS)
    for name in ("seconds", "lost", "imbalance"):
        np.testing.assert_array_equal(getattr(before, name)[:cut], getattr(after, name)[:cut])
    seen = [(a.step, a.rows, a.moves) for a in before.arrivals if a.step <= cut]
    assert seen == [(a.step, a.rows, a.moves) for a in after.arrivals if a.step <= cut]


def test_a_plan_serves_only_after_planning_and_moving():
    # Every step takes 1 s: 0.7 s besides the experts, whose load is the same on all ranks.
    model = UncertainCost(
        name="ours", planning_cost=RankCost(fixed_seconds=0.1, token_seconds=1e-9), error=0
    )
    conditions = Conditions(
        topology=eq.Topology(R, node_link=Link(0.0, 1e9)),
        model=model, expert_bytes=10**9, interference=0.5, other_seconds=0.7,
    )  # fmt: skip
    steps = loads(0)
    policy = Replan(interval=10, window=10, plan_seconds=3.0, layers_per_step=None)
    result = replay(steps, LAYOUT, policy, conditions)
    # Asked after step 9, which ends at second 10; there after the step that ends at second 13.
    assert result.changes[0] == 13
    seconds = diff(START, with_slots(START, _map_after(result, 1)), conditions.topology).seconds(
        conditions.expert_bytes
    )
    # A step of 1 s carries 2 s of transfers, half of which it is longer for.
    steps_moving = int(np.ceil(seconds / 2))
    assert result.arrivals[0].step == 13 + steps_moving
    assert result.lost[13 : 13 + steps_moving].sum() == pytest.approx(seconds / 2)
    assert not result.lost[:13].any()


def _map_after(result, number):
    slots = START.slots.copy()
    for arrival in result.arrivals[:number]:
        slots[list(arrival.rows)] = arrival.slots
    return slots


def test_a_threshold_waits_for_its_imbalance():
    steps = loads(3)
    never = replay(steps, LAYOUT, Replan(interval=1, window=5, above=9.0), CONDITIONS)
    stay = replay(steps, LAYOUT, Stay(), CONDITIONS)
    np.testing.assert_array_equal(never.seconds, stay.seconds)
    assert stay.moves == 0
    assert not stay.lost.any()
    often = replay(steps, LAYOUT, Replan(interval=1, window=5, above=1.0), CONDITIONS)
    assert often.changes


SKEWED = lognormal(16, num_layers=2, seed=1), lognormal(16, num_layers=2, seed=2)
CHEAP = Conditions(
    topology=eq.Topology(4), model=MODEL, expert_bytes=1000, interference=0.2, stall_seconds=0
)
LIVE = Settings(window=20, update_interval=20, warm_up_steps=0)


def live(**more) -> Controlled:
    return controlled(
        CHEAP, "even", LIVE, dwell_steps=500, top_k=2,
        repair={"proposals": 1 << 12, "num_threads": 1}, **more,
    )  # fmt: skip


def planned(trace: eq.Trace) -> Layout:
    placement = eq.Greedy().plan(eq.Problem(trace, CHEAP.topology, 20)).placement
    return Layout(placement=placement, dispatch=Even())


def test_our_controller_answers_a_shift_and_gains_by_it():
    popularity, _ = shift_domains(SKEWED, num_steps=200, steps_per_domain=60)
    steps = sample_trace(popularity[:120], num_tokens=512, top_k=2, seed=0)
    start = planned(steps.select(steps=np.arange(20)))
    result = replay(steps, start, live(plan_seconds=1.0), CHEAP)
    assert result.changes
    assert min(result.changes) > 60
    stay = replay(steps, start, Stay(), CHEAP)
    assert result.imbalance[-20:].mean() < 0.8 * stay.imbalance[-20:].mean()
    assert result.seconds.sum() < stay.seconds.sum()
    np.testing.assert_array_equal(online_seconds(steps, start, live(plan_seconds=1.0), CHEAP),
                                  result.seconds)  # fmt: skip


def test_our_controller_leaves_fair_routing_alone():
    fair = steady(uniform(16, num_layers=2), num_steps=120)
    steps = sample_trace(fair, num_tokens=64, top_k=2, seed=0)
    assert replay(steps, planned(steps), live(), CHEAP).changes == ()


def test_a_map_of_another_model_is_refused():
    with pytest.raises(EquipoiseError, match="the steps 2 layers of 16"):
        replay(sample_trace(SKEWED[0], num_tokens=8, top_k=1), LAYOUT, Stay(), CONDITIONS)
    with pytest.raises(EquipoiseError, match="interference is 2"):
        replace(CONDITIONS, interference=2)
