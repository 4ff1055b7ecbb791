from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.balance import rank_loads
from equipoise.control.advisor import GatedRepair, _last_shift
from equipoise.control.findings import Question
from equipoise.cost import RankCost
from equipoise.dispatch import Even
from equipoise.errors import EquipoiseError
from equipoise.migration import diff
from equipoise.noise import trace_noise_floor
from equipoise.placement import Placement
from equipoise.plan.evaluate import evaluate
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.problem import Problem
from equipoise.simulate.routers import lognormal, sample_trace, steady, uniform
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.control.test_controller import GATE, START

TOPOLOGY = Topology(num_ranks=4)
ADVISOR = GatedRepair(topology=TOPOLOGY, gate=GATE, repair={"proposals": 1 << 13, "num_threads": 1})
SKEWED = sample_trace(
    steady(lognormal(6, sigma=1.0, num_layers=3), num_steps=32), num_tokens=64, top_k=2, seed=1
)
WINDOW = replace(SKEWED, layer_ids=START.layer_ids)


def question(number: int = 1, **more: object) -> Question:
    values = {"current": START, "previous": None, "plan_above": np.inf} | more
    return Question(number=number, **values)


def test_a_skewed_window_is_measured_and_planned_for():
    answer = ADVISOR(question(plan_above=0.05), WINDOW)
    assert answer.assignments == 32 * 3 * 64 * 2
    assert answer.sure_excess < answer.balance[""].excess < answer.balance[""].imbalance - 1
    assert answer.predicted.move
    assert answer.predicted.gain_low > 0
    better = ADVISOR(question(current=answer.proposal), WINDOW)
    assert better.proposal is None
    assert better.balance[""].imbalance < answer.balance[""].imbalance


def test_ranks_and_layers_are_told_of_too():
    answer = ADVISOR(question(), WINDOW)
    load_TLR = rank_loads(WINDOW.counts, START)
    load_R = load_TLR.sum(axis=(0, 1))
    assert answer.rank_load == pytest.approx(load_R / load_R.mean())
    by_layer = (load_TLR.max(axis=2) / load_TLR.mean(axis=2)).mean(axis=0)
    told = [answer.layer_imbalance[layer] for layer in START.layer_ids]
    assert told == pytest.approx(by_layer)


def test_no_plan_below_the_threshold_or_from_too_few_assignments():
    excess = ADVISOR(question(), WINDOW).sure_excess
    assert ADVISOR(question(plan_above=excess), WINDOW).proposal is None
    starved = replace(ADVISOR, least_assignments=32 * 64 * 2 / 6 + 1)
    assert starved(question(plan_above=0.05), WINDOW).proposal is None


def test_a_change_is_compared_with_what_was_before():
    better = ADVISOR(question(plan_above=0.05), WINDOW).proposal
    forth = ADVISOR(question(current=better, previous=START), WINDOW).achieved
    back = ADVISOR(question(current=START, previous=better), WINDOW).achieved
    assert forth.gain_low > 0 > back.gain_high
    assert forth.gain_seconds == pytest.approx(-back.gain_seconds)


def test_balance_by_phase():
    phase = np.where(np.arange(32) % 4 == 0, "prefill", "decode")
    answer = ADVISOR(question(), replace(WINDOW, labels={"phase": phase}))
    alone = ADVISOR(question(), WINDOW.select(steps=phase == "prefill"))
    assert set(answer.balance) == {"", "prefill", "decode"}
    assert answer.balance["prefill"] == alone.balance[""]
    total, by = answer.balance[""], [answer.balance[name] for name in ("prefill", "decode")]
    assert total.imbalance == pytest.approx((by[0].imbalance + 3 * by[1].imbalance) / 4)
    assert 0 < total.balancedness < 1


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_a_window_without_load_is_no_alarm(dispatch):
    silent = replace(WINDOW, counts=np.zeros_like(WINDOW.counts))
    advisor = replace(ADVISOR, gate=replace(GATE, dispatch=dispatch))
    answer = advisor(question(plan_above=0.05), silent)
    assert (answer.balance, answer.sure_excess, answer.assignments) == ({}, 0.0, 0)


@pytest.mark.parametrize("num_tokens", [16, 256])
def test_a_fair_router_raises_an_alarm_on_fewer_than_one_look_in_a_hundred(num_tokens):
    trace = sample_trace(
        steady(uniform(32, num_layers=1), num_steps=3200), num_tokens=num_tokens, top_k=4, seed=5
    )
    placement = Contiguous().plan(Problem(trace, TOPOLOGY, 32)).placement
    looks = [trace.select(steps=np.arange(s, s + 16)) for s in range(0, 3200, 16)]
    alarms = [ADVISOR(question(current=placement), look).sure_excess > 0 for look in looks]
    assert np.mean(alarms) < 0.01


# Ranks 1 to 3 can help each other, and rank 0 can help them; nobody can help rank 0.
ONE_ALONE = Placement(
    [[*range(8), 8, 16, 24, 9, *range(8, 16), 16, 24, 17, 25, *range(16, 24), 8, 24, 10, 26,
      *range(24, 32), 9, 18, 11, 19]],
    num_ranks=4, num_experts=32,
)  # fmt: skip
EVENING = replace(ADVISOR, gate=replace(GATE, dispatch="minmax"))


def looks_of(popularity: np.ndarray, length: int = 16) -> list[Trace]:
    trace = sample_trace(steady(popularity, num_steps=3200), num_tokens=64, top_k=4, seed=5)
    return [trace.select(steps=np.arange(s, s + length)) for s in range(0, 3200, length)]


def test_under_the_min_max_split_a_fair_router_raises_no_alarm_either():
    found = [EVENING(question(current=ONE_ALONE), look) for look in looks_of(uniform(32))]
    assert np.mean([one.sure_excess > 0.01 for one in found]) < 0.01
    assert abs(np.mean([one.balance[""].excess for one in found])) < 0.01


def test_an_excess_that_an_even_split_would_hide_in_chance_is_seen_under_the_min_max_split():
    hotter = uniform(32) * np.where(np.arange(32) < 8, 1.12, 1 - 0.12 / 3)
    for look in looks_of(hotter, 200):
        found = EVENING(question(current=ONE_ALONE), look)
        assert found.balance[""].imbalance < trace_noise_floor(look, 4).mean.mean() + 0.05
        assert 0.02 < found.sure_excess < found.balance[""].excess < 0.2


def test_limits_on_plans_reach_the_planner():
    some = replace(ADVISOR, repair={"proposals": 1 << 13, "max_moves": 2})
    answer = some(question(plan_above=0.05), WINDOW)
    assert 0 < (answer.proposal.slots != START.slots).sum() <= 2
    with pytest.raises(EquipoiseError, match="repair has dispatch, nonsense; expected fields"):
        replace(ADVISOR, repair={"nonsense": 1, "dispatch": "even"})


OLD, NEW = (
    replace(
        sample_trace(
            steady(lognormal(6, sigma=1.0, num_layers=3, seed=seed), num_steps=steps),
            num_tokens=400, top_k=2, seed=seed,
        ),
        layer_ids=START.layer_ids,
    )
    for seed, steps in ((1, 24), (2, 12))
)  # fmt: skip


def test_only_steps_since_a_shift_are_planned_on():
    fitting = ADVISOR(question(plan_above=0.0), OLD).proposal
    shifted = Trace.merge([OLD, NEW])
    answer = ADVISOR(question(current=fitting, plan_above=0.05), shifted)
    alone = ADVISOR(question(current=fitting, plan_above=0.05), NEW)
    np.testing.assert_array_equal(answer.proposal.slots, alone.proposal.slots)
    assert answer.sure_excess == pytest.approx(alone.sure_excess, abs=0.02)
    assert answer.assignments == shifted.counts.sum()  # what was looked at is the window


def test_steady_traffic_is_not_cut():
    cut = [_last_shift(np.random.default_rng(seed).normal(0, 0.1, (100, 3))) for seed in range(200)]
    assert sum(start > 0 for start in cut) <= 2
    assert _last_shift(np.full((40, 2), 0.3)) == 0
    assert _last_shift(np.full((40, 2), np.nan)) == 0


def test_the_last_of_several_shifts_counts_and_idle_steps_do_not():
    rng = np.random.default_rng(0)
    level = np.repeat([0.1, 0.5, 0.1], [30, 30, 20])
    above = level[:, None] + rng.normal(0, 0.05, (80, 2))
    assert _last_shift(above) == 60
    idle = np.insert(above, 10, np.full((5, 2), np.nan), axis=0)
    assert _last_shift(idle) == 65


def test_plans_go_by_time_where_time_is_not_load():
    # Many experts take what their weights take: peaks of load say little of time.
    cost = RankCost(expert_seconds=60e-6, token_seconds=1e-6)
    window = sample_trace(
        steady(lognormal(32, sigma=1.2, num_layers=2), num_steps=32),
        num_tokens=400, top_k=4, seed=1,
    )  # fmt: skip
    current = Contiguous().plan(Problem(window, TOPOLOGY, 40)).placement
    timed, found = Even(cost=cost), []
    for known in (cost, RankCost(token_seconds=1e-6)):
        advisor = replace(ADVISOR, gate=replace(GATE, cost=known, expert_bytes=0))
        answer = advisor(question(current=current, plan_above=0.0), window)
        found.append(evaluate(answer.proposal, window, dispatch=timed).peak.sum())
    assert found[0] < 0.99 * found[1]


def _min_max_plans(num_tokens):
    """Plans by times and by loads for steps of that size, and the gate that times them."""
    by_time = RankCost(expert_seconds=60e-6, token_seconds=1e-6)
    window = sample_trace(
        steady(lognormal(32, sigma=1.5, num_layers=2, seed=1), num_steps=32),
        num_tokens=num_tokens, top_k=4, seed=1,
    )  # fmt: skip
    current = Contiguous().plan(Problem(window, TOPOLOGY, 40)).placement
    gates = [
        replace(GATE, cost=cost, expert_bytes=0, dispatch="minmax")
        for cost in (by_time, RankCost(token_seconds=1e-6))
    ]
    timed, by_load = (
        replace(ADVISOR, gate=gate)(question(current=current, plan_above=0.0), window).proposal
        for gate in gates
    )
    return gates[0], timed, by_load, window


def test_small_steps_under_the_min_max_split_are_planned_by_time():
    """The loads of a copy that few choose are balanced, and its weights are read all the same."""
    gate, timed, by_load, window = _min_max_plans(400)
    assert gate.decide(diff(by_load, timed, TOPOLOGY), window).gain_low > 0


def test_large_steps_under_the_min_max_split_are_planned_by_load():
    _, timed, by_load, _ = _min_max_plans(10_000)
    assert (timed.slots == by_load.slots).all()
