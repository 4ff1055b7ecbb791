"""Forecasts next to plain loops, and where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.cost import RankCost
from equipoise.dispatch import Even, dispatcher
from equipoise.errors import EquipoiseError
from equipoise.noise import noise_floor
from equipoise.plan.evaluate import evaluate_without_balancing
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.weigh.budget import LEAST_WINDOWS
from equipoise.plan.weigh.gate import Gate
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.fair import fair_steps
from equipoise.simulate.forecast import Moving, forecast
from equipoise.simulate.gain import gain_interval, planning_spread
from equipoise.simulate.kinds import step_kinds
from equipoise.simulate.routers import hot_expert, lognormal, sample_trace, steady, uniform
from equipoise.simulate.trial import Plans, step_loads

BY_TOKENS = RankCost(token_seconds=1e-6)
BY_WEIGHTS = RankCost(expert_seconds=20e-6, token_seconds=0.1e-6, fixed_seconds=20e-6)
H100 = "h100-deepep-ep8"


def greedy(dispatch: str) -> Greedy:
    return Greedy()


def interval(old, new, **values):
    """``gain_interval`` of steps of one kind."""
    return gain_interval(old, new, strata=np.zeros(old.shape[1], np.int64), **values)


def exact(cost: RankCost, error: float = 0.0) -> UncertainCost:
    return UncertainCost(name="ours", planning_cost=cost, error=error)


def skewed(num_tokens: int, num_steps: int = 40, *, layers: int = 2, seed: int = 0) -> eq.Trace:
    popularity = lognormal(16, num_layers=layers, seed=seed)
    return sample_trace(
        steady(popularity, num_steps=num_steps), num_tokens=num_tokens, top_k=2, seed=seed
    )


def naive_step_seconds(load_TLE, slots_LS, copies_LE, num_ranks, cost, speed):
    """Even split, one slot after the other."""
    T, L, _ = load_TLE.shape
    S = slots_LS.shape[1]
    seconds = []
    for t in range(T):
        step = 0.0
        for layer in range(L):
            ranks = [cost.fixed_seconds] * num_ranks
            for s in range(S):
                expert = slots_LS[layer, s]
                load = load_TLE[t, layer, expert] / copies_LE[layer, expert]
                if load > 0:
                    padded = -(-load // cost.token_block) * cost.token_block
                    padded = load if cost.token_block == 1 else padded
                    ranks[s // (S // num_ranks)] += max(
                        cost.expert_seconds, cost.token_seconds * padded
                    )
            step += max(r / v for r, v in zip(ranks, speed, strict=True))
        seconds.append(step)
    return seconds


@given(
    seed=st.integers(0, 999),
    ranks=st.integers(1, 4),
    per_rank=st.integers(2, 4),
    block=st.sampled_from([1, 8]),
)
def test_steps_take_what_plain_loops_add_up(seed, ranks, per_rank, block):
    rng = np.random.default_rng(seed)
    S = ranks * per_rank
    E = int(rng.integers(per_rank, S + 1))
    slots = np.stack(
        [rng.permutation(np.concatenate([np.arange(E), rng.integers(0, E, S - E)])) for _ in "ab"]
    )
    placement = eq.Placement(slots, num_ranks=ranks, num_experts=E)
    load = rng.integers(0, 60, (3, 2, E)).astype(float)
    speed = rng.uniform(0.5, 2, ranks)
    cost = replace(BY_WEIGHTS, token_seconds=1e-6, token_block=block)
    layout = Layout(placement=placement, dispatch=Even(cost=cost))
    topology = eq.Topology(ranks, speed=tuple(speed))
    found = layout.step_seconds(load, topology, [exact(cost), exact(BY_TOKENS)])
    for row, model in zip(found, (cost, BY_TOKENS), strict=True):
        expected = naive_step_seconds(load, slots, placement.copies, ranks, model, speed)
        assert row == pytest.approx(expected)


@given(experts=st.integers(1, 9), ranks=st.integers(1, 5), seed=st.integers(0, 99))
def test_without_balancing_steps_take_what_evaluate_says(experts, ranks, seed):
    rng = np.random.default_rng(seed)
    load = rng.integers(0, 400, (3, 2, experts))
    load[0, 0, 0] += 1
    trace = eq.Trace(counts=load)
    topology = eq.Topology(ranks)
    judge = Even(cost=BY_WEIGHTS)
    expected = evaluate_without_balancing(load, topology, dispatch=judge)
    layout = Layout.unbalanced(trace, ranks)
    found = layout.step_seconds(load.astype(float), topology, [exact(BY_WEIGHTS)])
    assert found[0] == pytest.approx(expected.peak.sum(axis=1))


def test_blocks_of_steps_change_nothing(monkeypatch):
    trace = skewed(50)
    layout, topology = Layout.unbalanced(trace, 4), eq.Topology(4)
    models = [exact(BY_WEIGHTS), exact(BY_TOKENS)]
    load = trace.counts.astype(float)
    whole = layout.step_seconds(load, topology, models)
    monkeypatch.setattr("equipoise.simulate.expert_time._BLOCK_CELLS", 200)
    assert np.array_equal(whole, layout.step_seconds(load, topology, models))


def test_the_idle_share_is_what_ranks_wait_for_the_slowest():
    trace = eq.Trace(counts=np.array([[[6, 2, 1, 3]], [[0, 0, 4, 4]]]))
    layout = Layout.unbalanced(trace, 2)
    # 8 and 4: the ranks wait 0 and 4 of 8; 0 and 8: they wait 8 and 0 of 8.
    share = layout.idle_share(trace.counts.astype(float), eq.Topology(2), exact(BY_TOKENS))
    assert share == pytest.approx((2 + 4) / 16)


@pytest.mark.parametrize("tokens", [64, 4096, 65_536])
def test_a_fair_router_shows_the_noise_floor(tokens):
    sizes = np.full((50, 4), tokens * 4.0)
    load = fair_steps(sizes, 32, 4, seed=0)
    assert load.sum(axis=-1) == pytest.approx(sizes)
    ranks = load.reshape(50, 4, 8, 4).sum(axis=-1)
    imbalance = (ranks.max(axis=-1) / ranks.mean(axis=-1)).mean()
    assert imbalance - 1 == pytest.approx(noise_floor(tokens, 32, 4, 8).mean - 1, rel=0.07)


@pytest.mark.parametrize("tokens", [300, 8192])
def test_a_fair_token_never_takes_an_expert_twice(tokens):
    """Which narrows the loads, here by a tenth: a token takes an expert or does not."""
    load = fair_steps(np.full((100, 5), tokens * 8.0), 32, 8, seed=1)
    assert load.mean() == pytest.approx(tokens / 4)
    assert load.std() == pytest.approx(np.sqrt(tokens * 1 / 4 * 3 / 4), rel=0.02)


def test_a_fair_router_of_nothing_routes_nothing():
    assert not fair_steps(np.zeros((1, 2)), 8, 2, seed=0).any()


def test_chance_is_nearly_all_that_a_fair_trace_waits():
    trace = sample_trace(steady(uniform(32, num_layers=4), num_steps=40), num_tokens=500, top_k=4)
    (today,) = forecast(trace, eq.Topology(8), exact(BY_TOKENS), planner=greedy).today
    assert today.steps == "all steps"
    assert today.share == pytest.approx(today.chance, rel=0.1)
    (skew,) = forecast(skewed(2000), eq.Topology(8), exact(BY_TOKENS), planner=greedy).today
    assert skew.share > 5 * skew.chance


def test_idle_shares_are_told_of_each_phase():
    parts = [skewed(2000), skewed(20, seed=1)]
    trace = replace(eq.Trace.merge(parts), labels={"phase": np.repeat(["prefill", "decode"], 40)})
    answer = forecast(trace, eq.Topology(4), exact(BY_TOKENS), planner=greedy)
    alone = [forecast(p, eq.Topology(4), exact(BY_TOKENS), planner=greedy).today[0] for p in parts]
    assert [idle.steps for idle in answer.today] == ["prefill", "decode"]
    assert [idle.share for idle in answer.today] == pytest.approx([idle.share for idle in alone])


# Where the answer is known ------------------------------------------------------------------------


def test_below_the_knee_more_copies_cost_time():
    """Every expert is active on every rank, so a rank takes the weights of its slots."""
    answer = forecast(
        skewed(64, 60), eq.Topology(8), exact(BY_WEIGHTS), dispatch=["even"], planner=greedy
    )
    assert answer.verdict.kind == "not now"
    gains = [option.gain for option in answer.options]
    assert gains[2] < gains[1] < -0.1
    assert answer.best.redundant == 0


def test_a_hot_expert_above_the_knee_is_copied():
    """One expert of 16 gets half of the load: alone on a rank, then in two and three copies."""
    load = np.full((40, 1, 16), 1000)
    load[:, :, 3] = 15_000
    trace = eq.Trace(counts=load)
    answer = forecast(trace, eq.Topology(4), exact(BY_TOKENS), dispatch=["even"], planner=greedy)
    # Without balancing 18,000 on a rank. With one more slot each, 5 of 1,000 + 15,000 in copies:
    assert answer.options[1].plain_seconds == pytest.approx(18e-3)
    assert answer.verdict.kind == "recommend"
    assert answer.best.gain > 0.5
    assert answer.best.interval == pytest.approx((answer.best.gain,) * 2)
    assert answer.best.throughput == pytest.approx(
        answer.best.plain_seconds / answer.best.step_seconds - 1
    )
    assert answer.verdict.text.startswith(f"recommend: {answer.best.redundant} redundant slots")


def test_other_work_dilutes_the_gain():
    trace = eq.Trace(counts=skewed(5000).counts)
    alone, whole = (
        forecast(trace, eq.Topology(4), exact(BY_TOKENS), planner=greedy, other_seconds=seconds)
        for seconds in (0.0, 0.1)
    )
    for a, b in zip(alone.options, whole.options, strict=True):
        saved = a.plain_seconds - a.step_seconds
        assert b.plain_seconds - b.step_seconds == pytest.approx(saved)
        assert b.gain == pytest.approx(saved / (a.plain_seconds + 0.1))
    assert "alone" in alone.verdict.text
    assert "alone" not in whole.verdict.text


def test_a_gain_below_the_least_is_not_recommended():
    trace = skewed(5000)
    told = {"planner": greedy, "redundant": [0], "dispatch": ["even"]}
    low, high = forecast(trace, eq.Topology(4), exact(BY_TOKENS), **told).best.interval
    kinds = [
        forecast(trace, eq.Topology(4), exact(BY_TOKENS), least_gain=least, **told).verdict.kind
        for least in (low / 2, (low + high) / 2, high * 1.01)
    ]
    assert kinds == ["recommend", "insufficient evidence", "not now"]


def test_a_gain_that_the_best_of_many_shows_by_chance_is_called_that():
    answer = forecast(skewed(5000), eq.Topology(4), exact(BY_TOKENS), planner=greedy)
    rng = np.random.default_rng(0)
    options = tuple(
        replace(option, above_needed=rng.normal(size=option.above_needed.shape))
        for option in answer.options
    )
    doubtful = replace(answer, options=options)
    assert doubtful.best.interval[0] > doubtful.best.needed
    assert doubtful.verdict.kind == "insufficient evidence"
    assert f"the best of {len(options)} options" in doubtful.verdict.why
    assert "would look as good if none paid" in doubtful.verdict.why


@pytest.mark.parametrize(("steps", "unseen"), [(2, 1), (10, 2), (20, 4)])
def test_few_steps_are_no_evidence(steps, unseen):
    answer = forecast(skewed(5000, steps), eq.Topology(4), exact(BY_TOKENS), planner=greedy)
    assert answer.unseen_steps == unseen < LEAST_WINDOWS
    assert answer.verdict.kind == "insufficient evidence"
    assert (answer.best.interval is None) == (unseen == 1)
    enough = forecast(skewed(5000, steps + 25), eq.Topology(4), exact(BY_TOKENS), planner=greedy)
    assert enough.verdict.kind == "recommend"


@pytest.mark.parametrize("cost", ["h100-deepep-ep32", "gb200-cutlass-ep32"])
@pytest.mark.parametrize("seed", range(3))
def test_a_fair_router_raises_no_alarm(cost, seed):
    fair = steady(uniform(256, num_layers=2), num_steps=40)
    trace = sample_trace(fair, num_tokens=256, top_k=8, seed=seed)
    model = UncertainCost.published(cost)
    answer = forecast(trace, eq.Topology(32), model, planner=greedy)
    assert answer.verdict.kind != "recommend"


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), tokens=st.sampled_from([8, 200, 3000]), error=st.booleans())
def test_what_is_recommended_is_faster_than_no_balancing(seed, tokens, error):
    rng = np.random.default_rng(seed)
    popularity = lognormal(8, sigma=float(rng.uniform(0, 1)), seed=seed)
    trace = sample_trace(steady(popularity, num_steps=30), num_tokens=tokens, top_k=2, seed=seed)
    model = exact(BY_WEIGHTS, 0.3 * error)
    answer = forecast(trace, eq.Topology(4), model, dispatch=["even"], planner=greedy, seed=seed)
    best = answer.best
    assert best.gain - best.needed == max(o.gain - o.needed for o in answer.options)
    if answer.verdict.kind == "recommend":
        assert best.step_seconds < best.plain_seconds
        assert best.interval[0] >= best.needed
    if best.step_seconds >= best.plain_seconds:
        assert answer.verdict.kind == "not now"


# What makes an interval ---------------------------------------------------------------------------


def test_the_interval_of_independent_steps_is_students():
    rng = np.random.default_rng(3)
    T = 4000
    new = rng.normal(0.9, 0.05, (1, T))
    low, high = interval(np.ones((1, T)), new, further_steps=10**9, spread=0.0, seed=0)
    half = 1.2816 * new.std() / np.sqrt(T)
    assert low + high == pytest.approx(2 * (1 - new.mean()), abs=2e-4)
    assert (high - low) / 2 == pytest.approx(half, rel=0.6)  # of eight blocks only
    both = interval(np.ones((1, T)), new, further_steps=T, spread=0.0, seed=0)
    assert both[1] - both[0] == pytest.approx((high - low) * np.sqrt(2), rel=1e-4)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(5)
    inside = []
    for T in (5, 12, 40):
        for _ in range(150):
            new = rng.normal(0.9, 0.1, T)
            low, high = interval(
                np.ones((1, T)), new[None], further_steps=8, spread=0.0, seed=int(T)
            )
            inside.append(low <= 1 - rng.normal(0.9, 0.1, 8).mean() <= high)
    assert 0.75 < np.mean(inside) < 0.87


def test_steps_of_each_kind_are_resampled_by_themselves():
    """Kinds that differ, each the same in every step, leave nothing to chance."""
    kinds = np.random.default_rng(0).permutation(np.repeat([0, 1], 10))
    new = np.where(kinds, 0.5, 0.9)[None]
    told = {"further_steps": 20, "spread": 0.0, "seed": 0}
    apart = gain_interval(np.ones((1, 20)), new, strata=kinds, **told)
    assert apart == pytest.approx((0.3, 0.3))
    kinds[0] = 2  # a kind of a single step says nothing of chance
    mixed = gain_interval(np.ones((1, 20)), new, strata=kinds, **told)
    assert mixed == interval(np.ones((1, 20)), new, **told)
    assert mixed[1] - mixed[0] > 0.05


def test_kinds_of_steps_are_their_domains_and_phases():
    labels = {"domain": np.array(["a", "b", "a", "b"]), "phase": np.array(["x", "x", "y", "x"])}
    counts = np.array(skewed(10, 4).counts)
    assert len(set(step_kinds(eq.Trace(counts=counts)).tolist())) == 1
    one, two, three, four = step_kinds(eq.Trace(counts=counts, labels=labels)).tolist()
    assert len({one, two, three}) == 3
    assert four == two
    counts[0] = 0
    two, three, four = step_kinds(eq.Trace(counts=counts, labels=labels)).tolist()
    assert four == two != three


def test_a_spread_of_plans_widens_the_interval():
    old, new = np.ones((1, 30)), np.full((1, 30), 0.9)
    low, high = interval(old, new, further_steps=30, spread=0.01, seed=0)
    assert [low, high] == pytest.approx([0.1 - 0.0128, 0.1 + 0.0128], abs=2e-3)
    sure = interval(old, new, further_steps=30, spread=0.0, seed=0)
    assert sure == pytest.approx((0.1, 0.1))


def test_steps_that_resemble_each_other_for_long_widen_the_interval():
    """Blocks as long as a request know how few requests there are."""
    rng = np.random.default_rng(0)
    new = 1 - np.repeat(rng.normal(0.2, 0.05, 12), 25)[None]
    told = {"further_steps": 300, "seed": 0}
    (a, b), (c, d) = (interval(np.ones((1, 300)), new, lasting=n, **told) for n in (1, 100))
    assert d - c > 1.5 * (b - a)


def test_an_option_says_what_a_plan_made_again_would_do():
    best = forecast(skewed(40_000), eq.Topology(4), exact(BY_TOKENS), planner=greedy).best
    (low, high), (lowest, highest) = best.interval, best.replanned
    assert lowest < low < best.gain < high < highest


def test_the_spread_of_plans_is_how_far_twins_are_apart():
    assert planning_spread([]) == 0
    rng = np.random.default_rng(0)
    gains = rng.normal(0.1, 0.02, (5000, 2))
    assert planning_spread([tuple(pair) for pair in gains]) == pytest.approx(
        0.02 * np.sqrt(2), rel=0.05
    )


def test_plans_that_differ_with_one_split_do_not_widen_the_interval_of_another():
    """Twins differ with a split by times, and not with an even one."""
    trace = skewed(20_000)
    told = {"dispatch": ["even", "minmax"], "redundant": [8], "planner": greedy}
    answer = forecast(trace, eq.Topology(4), exact(BY_WEIGHTS), **told)
    alone = forecast(
        trace, eq.Topology(4), exact(BY_WEIGHTS), **told | {"dispatch": ["even"]}
    ).options[0]
    both = answer.options[0]
    assert both.dispatch == alone.dispatch == "even"
    assert both.replanned == alone.replanned


def test_twins_are_plans_from_the_halves_of_each_kind_of_steps():
    """The later steps of both domains heat other experts, so their plan copies others."""
    load = np.full((8, 1, 8), 10)
    domain = np.array(["a", "b", "a", "b", "b", "a", "b", "a"])
    load[:4, :, 0] = load[4:, :, 5] = 1000
    trace = eq.Trace(counts=load, labels={"domain": domain})
    plans = Plans(trace, eq.Topology(2), greedy)
    early, late = plans.twins(2)
    assert early.copies[0, [0, 5]].tolist() == [2, 1]
    assert late.copies[0, 5] == 2
    assert plans.twins(2) == [early, late]  # made once
    assert Plans(eq.Trace(counts=load[:1]), eq.Topology(2), greedy).twins(2) == []


def test_costs_that_are_not_sure_widen_what_depends_on_them():
    trace = skewed(1500)  # around the knee: whether copies pay depends on it
    told = {"dispatch": ["even"], "redundant": [8], "planner": greedy}
    sure, unsure = (
        forecast(trace, eq.Topology(8), exact(BY_WEIGHTS, error), **told).best.interval
        for error in (0.0, 0.4)
    )
    assert unsure[1] - unsure[0] > 2 * (sure[1] - sure[0])
    sure, unsure = (  # a scale that both sides share changes no share
        forecast(trace, eq.Topology(8), exact(BY_TOKENS, error), **told).best.interval
        for error in (0.0, 0.4)
    )
    assert unsure == pytest.approx(sure, abs=2e-3)


def test_costs_are_drawn_around_the_one_given():
    model = exact(BY_WEIGHTS, 0.2)
    drawn = [draw.planning_cost for draw in model.draws(2000, seed=1)]
    for name in ("fixed_seconds", "expert_seconds", "token_seconds"):
        logs = np.log([getattr(cost, name) for cost in drawn])
        assert logs.mean() == pytest.approx(np.log(getattr(BY_WEIGHTS, name)), abs=0.02)
        assert logs.std() == pytest.approx(0.2, rel=0.06)
    assert exact(BY_WEIGHTS).draws(10, seed=0) == ()


# Steps, plans and maps ----------------------------------------------------------------------------


def test_rows_are_drawn_as_steps_of_another_size():
    trace = skewed(10_000, 4)
    empty = eq.Trace(counts=np.concatenate([trace.counts, np.zeros_like(trace.counts[:1])]))
    load = step_loads(empty, 300, seed=0)
    assert load.shape == trace.counts.shape
    assert np.array_equal(load, np.rint(load))
    assert load.sum(axis=-1) == pytest.approx(300)
    many = step_loads(empty, 3e6, seed=0)
    shares = trace.counts / trace.counts.sum(axis=-1, keepdims=True)
    assert many / 3e6 == pytest.approx(shares, abs=2e-3)
    assert np.array_equal(step_loads(empty, None, seed=0), trace.counts)


def test_an_engines_rule_runs_on_the_plan_for_an_even_split():
    asked = []

    def planner(name):
        asked.append(name)
        return Greedy()

    answer = forecast(
        skewed(4000),
        eq.Topology(4),
        exact(BY_TOKENS),
        dispatch=["even", "minmax", "vllm"],
        engine_dispatch="vllm",
        planner=planner,
    )
    assert asked == ["even", "minmax"] * 3
    assert answer.best.dispatch == "vllm"
    assert [option.can_run for option in answer.options] == [False, False, True] * 3
    rule = dispatcher("vllm", eq.Topology(4), top_k=2)
    held = skewed(4000).split(at=0.8)[1].counts
    peaks = eq.evaluate(answer.options[2].placement, held, dispatch=rule).peak
    assert answer.options[2].step_seconds == pytest.approx(1e-6 * peaks.sum(axis=1).mean())


def test_memory_is_that_of_the_slots_beyond_the_fewest():
    trace = skewed(200, 10)
    answer = forecast(
        trace,
        eq.Topology(5),  # 16 experts: 20 slots are the fewest
        exact(BY_TOKENS),
        dispatch=["even"],
        planner=greedy,
        slot_bytes=1000,
        kv_bytes_per_token=7,
    )
    rows = [(o.redundant, o.bytes_per_rank, o.kv_tokens) for o in answer.options]
    assert rows == [(4, 0, 0), (9, 1000, 142), (14, 2000, 285)]


def test_the_map_in_force_is_what_gains_are_counted_from():
    trace, topology = skewed(5000), eq.Topology(4)
    fit, _ = trace.split(at=0.8)
    current = Greedy().plan(eq.Problem(fit, topology, 20)).placement
    told = {"dispatch": ["even"], "planner": greedy, "current": current}
    answer = forecast(trace, topology, exact(BY_TOKENS), redundant=[0], **told)
    same = answer.options[1]
    assert [option.redundant for option in answer.options] == [0, 4]
    assert (same.gain, answer.decision) == (0, None)
    assert answer.options[0].gain < 0
    assert answer.verdict.kind == "not now"
    assert "the map in force" in answer.verdict.text


def test_what_is_worse_than_no_balancing_is_no_gain_over_a_bad_map():
    """Experts 0, 4, 8 and 12 are hot: one on every rank without balancing."""
    load = np.full((40, 1, 16), 10)
    load[:, :, ::4] = 1000
    hot, cold = [0, 4, 8, 12], [i for i in range(16) if i % 4]
    order = {
        "bad": [*hot, *cold],
        "better": [*hot[:2], *cold[:2], *hot[2:], *cold[2:]],
    }
    bad, better = (eq.Placement([slots], num_ranks=4, num_experts=16) for slots in order.values())

    class Fixed:
        def plan(self, problem):
            return replace(Greedy().plan(problem), placement=better)

    answer = forecast(
        eq.Trace(counts=load),
        eq.Topology(4),
        exact(BY_TOKENS),
        redundant=[0],
        dispatch=["even"],
        planner=lambda dispatch: Fixed(),
        current=bad,
    )
    assert answer.best.gain > 0.4
    assert answer.best.interval[0] > answer.best.needed
    assert answer.verdict.kind == "not now"
    assert "no plan saves enough over no balancing" in answer.verdict.text


def test_moves_are_priced_as_the_gate_does():
    trace, topology = skewed(5000), eq.Topology(4)
    plain = Layout.unbalanced(trace, 4).placement
    told = {"dispatch": ["even"], "planner": greedy, "current": plain, "redundant": [0]}
    for dwell, kind in ((1e6, "recommend"), (3.0, "not now")):
        moving = Moving(
            expert_bytes=10**7,
            dwell_steps=dwell,
            stall_seconds=0.05,
            interference=0.1,
            delay_steps=2,
        )
        answer = forecast(trace, topology, exact(BY_TOKENS), moving=moving, **told)
        gate = Gate(
            cost=BY_TOKENS,
            expert_bytes=10**7,
            dwell_steps=dwell,
            stall_seconds=0.05,
            interference=0.1,
            delay_steps=2,
            dispatch=Even(cost=BY_TOKENS),
        )
        held = trace.split(at=0.8)[1].counts
        expected = gate.decide(eq.diff(plain, answer.best.placement, topology), held)
        assert answer.decision == expected
        assert answer.verdict.kind == kind
    other = forecast(
        trace, topology, exact(BY_TOKENS), moving=moving, **told | {"redundant": [0, 8]}
    )
    assert other.best.redundant == 8
    assert other.decision is None  # another number of slots: no move, but a restart


def test_the_default_planner_is_robust_for_what_dispatches():
    answer = forecast(skewed(2000, 30, layers=1), eq.Topology(4), exact(BY_TOKENS), redundant=[4])
    assert answer.verdict.kind == "recommend"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hold_out": 0}, "hold_out is 0"),
        ({"redundant": []}, "No number of redundant slots"),
        ({"redundant": [3]}, "divide"),
        ({"redundant": [-1]}, "redundant is -1"),
        ({"dispatch": []}, "No dispatcher to try"),
        ({"dispatch": ["fair"]}, "no dispatcher"),
        ({"engine_dispatch": "vllm"}, "give even,minmax,vllm"),
        ({"other_seconds": -1}, "other_seconds"),
        ({"least_gain": 2}, "least_gain"),
        ({"further_steps": 0}, "further_steps"),
        ({"step_assignments": 0}, "step_assignments"),
        ({"step_assignments": 1e30}, "step_assignments"),
    ],
)
def test_values_out_of_range_are_refused(values, said):
    with pytest.raises(EquipoiseError, match=said):
        forecast(skewed(100), eq.Topology(4), exact(BY_TOKENS), planner=greedy, **values)


def test_steps_without_load_are_refused():
    counts = np.array(skewed(100).counts)
    counts[-8:] = 0
    with pytest.raises(EquipoiseError, match="no load"):
        forecast(eq.Trace(counts=counts), eq.Topology(4), exact(BY_TOKENS), planner=greedy)


def test_a_single_step_is_refused():
    with pytest.raises(EquipoiseError, match="one step"):
        forecast(skewed(100, 1), eq.Topology(4), exact(BY_TOKENS), planner=greedy)


def test_steps_beyond_what_numbers_hold_are_refused():
    counts = np.full((4, 1, 64), 1 << 47)
    with pytest.raises(EquipoiseError, match="2\\*\\*53"):
        forecast(eq.Trace(counts=counts), eq.Topology(4), exact(BY_TOKENS), planner=greedy)


def test_unknown_costs_and_errors_are_refused():
    with pytest.raises(EquipoiseError, match="no rank cost"):
        UncertainCost.published("h100")
    with pytest.raises(EquipoiseError, match="cost_error"):
        exact(BY_TOKENS, -0.1)


def test_hot_expert_is_a_router_of_the_lab():
    """The failing case of tokens and time: balanced tokens, slower layers."""
    popularity = hot_expert(16, num_layers=1)
    trace = sample_trace(steady(popularity, num_steps=60), num_tokens=128, top_k=2)
    answer = forecast(
        trace,
        eq.Topology(8),
        UncertainCost.published(H100),
        dispatch=["even"],
        redundant=[8],
        planner=greedy,
    )
    assert answer.verdict.kind == "not now"
    assert answer.best.gain < 0
