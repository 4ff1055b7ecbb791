from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Even
from equipoise.engines.trace_io import read_trace
from equipoise.errors import EquipoiseError
from equipoise.plan import Greedy, Problem, Robust, evaluate
from equipoise.plan.weigh.budget import Point, budget, chances, least_sum
from equipoise.topology import Topology
from equipoise.trace import Trace

EXPERT_BYTES = 44_040_192  # DeepSeek-V3, FP8
KV_BYTES = 70_272  # its latent cache, BF16


def skewed(steps, layers=3, experts=8, seed=0):
    """Windows ``(steps, layers, experts)`` that all have the same hot experts, but for noise."""
    rng = np.random.default_rng(seed)
    popularity = np.random.default_rng(1).lognormal(0, 1, (layers, experts))
    return popularity * rng.lognormal(0, 0.1, (steps, layers, experts))


def greedy_budget(planned, held_out, num_ranks=4, **options):
    return budget(planned, held_out, Topology(num_ranks), planner=Greedy(), **options)


def as_point(times):
    return Point(
        redundant=(0,),
        bytes_per_rank=None,
        kv_tokens=None,
        mean_imbalance=None,
        relative_step_time=None,
        step_seconds=None,
        expert_seconds=None,
        times=np.array(times, dtype=np.float64),
    )


@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(0, 9)),
    st.integers(0, 14),
)
def test_least_sum_is_the_best_of_all_choices(cost, most):
    A, L = cost.shape
    rows = least_sum(cost, most)
    assert rows.shape == (L,)
    assert rows.sum() <= most
    choices = (c for c in product(range(A), repeat=L) if sum(c) <= most)
    best = min(cost[list(choice), range(L)].sum() for choice in choices)
    assert cost[rows, range(L)].sum() == pytest.approx(best, rel=1e-12)


def test_least_sum_sees_past_a_step_that_gains_nothing():
    # A greedy choice spends both on the second column: 1 and 1; two on the first take off 10.
    cost = np.array([[10.0, 10], [10, 9], [0, 8]])
    assert least_sum(cost, 2).tolist() == [2, 0]
    assert least_sum(cost, 1).tolist() == [0, 1]


def test_least_sum_spends_nothing_for_nothing():
    assert least_sum(np.full((3, 2), 5.0), 4).tolist() == [0, 0]


@given(st.integers(0, 2**32), st.sampled_from(["even", "minmax"]))
def test_unequal_layers_are_no_worse_on_the_windows_planned_on(seed, dispatch):
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1, (3, 3, 8))
    result = greedy_budget(load, load, dispatch=dispatch, up_to=12)
    chosen = [result.allocation(rows) for rows in range(10)]
    for added, equal in enumerate(result.points):
        assert chosen[3 * added].times.mean() <= equal.times.mean() * (1 + 1e-12)
        assert sum(chosen[3 * added].redundant) <= sum(equal.redundant)
    means = [point.times.mean() for point in chosen]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(means))


def test_points_are_the_plans_scored_on_unseen_windows():
    fit, held = skewed(4), skewed(3, seed=5)
    result = greedy_budget(fit, held, up_to=8)
    assert [point.redundant for point in result.points] == [(0,) * 3, (4,) * 3, (8,) * 3]
    for point, placement in zip(result.points, result.placements, strict=True):
        problem = Problem(fit, Topology(4), 8 + point.redundant[0])
        assert placement == Greedy().plan(problem).placement
        score = evaluate(placement, held)
        assert point.mean_imbalance == score.mean_imbalance
        assert point.relative_step_time == pytest.approx(score.relative_step_time)
        assert np.allclose(point.times, score.imbalance.sum(axis=1))
        assert (point.bytes_per_rank, point.kv_tokens, point.step_seconds) == (None, None, None)
    gains = [score.times.mean() for score in result.points]
    assert result.layer_gain.shape == (2, 3)
    assert np.allclose(result.layer_gain.sum(axis=1), -np.diff(gains))


def test_an_unequal_choice_is_scored_layer_by_layer():
    fit, held = skewed(4), skewed(3, seed=5)
    result = greedy_budget(fit, held, up_to=8)
    chosen = result.allocation(2)
    expected = np.zeros(3)
    for layer, redundant in enumerate(chosen.redundant):
        expected += evaluate(result.placements[redundant // 4], held).imbalance[:, layer]
    assert np.allclose(chosen.times, expected)
    assert chosen.mean_imbalance == pytest.approx(expected.mean() / 3)


def test_prices_of_deepseek_v3():
    load = skewed(4, layers=58)
    result = greedy_budget(
        load, load, up_to=8, expert_bytes=EXPERT_BYTES, kv_bytes_per_token=KV_BYTES
    )
    assert [point.bytes_per_rank for point in result.points] == [0, 2_554_331_136, 5_108_662_272]
    assert [point.kv_tokens for point in result.points] == [0, 36_349, 72_698]
    chosen = result.allocation(10)
    assert chosen.bytes_per_rank == sum(chosen.redundant) // 4 * EXPERT_BYTES <= 10 * EXPERT_BYTES


def test_slots_go_to_the_layer_that_needs_them():
    load = np.full((3, 2, 8), 10.0)
    load[:, 1, :3] = 100, 90, 80
    result = greedy_budget(load, load, up_to=8)
    assert result.allocation(2).redundant == (0, 8)
    assert result.allocation(2).times.mean() < result.points[1].times.mean()
    assert result.layer_gain[0, 0] <= 0 < result.layer_gain[0, 1]


def test_experts_that_do_not_divide_start_at_the_fewest_slots():
    load = skewed(3, experts=5)
    result = greedy_budget(load, load, num_ranks=2, up_to=5, expert_bytes=10)
    assert [point.redundant[0] for point in result.points] == [1, 3, 5]
    assert [point.bytes_per_rank for point in result.points] == [0, 30, 60]


def test_four_slots_a_rank_are_tried_unless_each_expert_is_everywhere_before():
    load = skewed(2)
    assert len(greedy_budget(load, load).points) == 5
    assert len(greedy_budget(load, load, num_ranks=2).points) == 5
    load = skewed(2, experts=3)
    assert [p.redundant[0] for p in greedy_budget(load, load, num_ranks=3).points] == [0, 3, 6]


def test_a_gain_has_the_standard_error_of_the_differences():
    gain = as_point([9, 10]).gain_over(as_point([10, 12]))
    assert gain.share == pytest.approx(1.5 / 11)
    assert gain.error == pytest.approx(0.5 / 11)
    assert str(gain) == "13.6% ± 4.5%"
    assert (gain.chance, gain.is_sure) == (1 / 4, False)  # both gain: heads and heads


def test_many_windows_are_joined_to_blocks_of_neighbours():
    """Neighbours tell much the same, so that each of them is no evidence of its own."""
    before, saved = np.full(40, 10.0), np.repeat([1.0, -0.5, 0.8, 0.9], 10)
    gain = as_point(before - saved).gain_over(as_point(before))
    assert gain.share == pytest.approx(0.055)
    blocks = [block.mean() for block in np.array_split(saved, 16)]
    assert gain.error == pytest.approx(np.std(blocks, ddof=1) / 4 / 10)


@pytest.mark.parametrize(
    ("saved", "sure"),
    [
        ([1, 2, 1, 2], False),  # four of four gain in 1 case of 16
        ([1, 2, 1, 2, 1], True),
        ([1, 2, 1, 2, -1], False),
        ([0] * 8, False),
        ([-1] * 8, False),
        ([1, 2, 1, 2, 1, 2, -0.1, 2], True),
    ],
)
def test_a_gain_is_sure_if_chance_gives_it_in_fewer_than_one_case_of_twenty(saved, sure):
    before = as_point([10] * len(saved))
    assert as_point(10 - np.array(saved)).gain_over(before).is_sure == sure


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 7)),
        elements=st.integers(-9, 9).map(float),
    )
)
def test_chances_count_the_ways_to_draw_the_signs(saved):
    """One by one: how often the largest of the sums is no smaller than the one seen."""

    def sums(signs):
        drawn = (saved * signs).sum(axis=1)
        size = np.sqrt((saved**2).sum(axis=1))
        return [d / s if s else 0.0 for d, s in zip(drawn, size, strict=True)]

    seen = sums(np.ones(saved.shape[1]))
    ways = [max(sums(np.array(signs))) for signs in product((1, -1), repeat=saved.shape[1])]
    expected = [np.mean([way >= s - 1e-12 for way in ways]) for s in seen]
    assert chances(saved).tolist() == pytest.approx(expected)


def test_the_best_of_many_is_no_winner():
    rng = np.random.default_rng(3)
    found = [chances(rng.normal(size=(20, 8))).min() < 0.05 for _ in range(200)]
    assert np.mean(found) < 0.1  # about 0.05; were each judged by itself, 0.6


def fair(num_steps, seed):
    """Steps of a router without favourites, ``(T, L, E)``: 256 tokens choose 4 of 32 experts."""
    rng = np.random.default_rng(seed)
    keys = rng.random((num_steps, 2, 256, 32))
    chosen = np.argpartition(keys, 4, axis=3)[..., :4]
    return (chosen[..., None] == np.arange(32)).sum(axis=(2, 3))


def test_nothing_pays_where_all_imbalance_is_chance():
    """A few steps give no verdict; more give the right one, of 40 recordings all but 2 at most."""
    paid = 0
    for seed in range(40):
        steps = fair(30, seed)
        few = greedy_budget(steps[:8], steps[8:10])
        assert (few.is_decided, len(few.front), few.best_by_layer) == (False, 1, None)
        enough = greedy_budget(steps[:20], steps[20:])
        assert enough.is_decided
        paid += len(enough.front) > 1 or enough.best_by_layer is not None
    assert paid <= 2


def test_too_few_windows_are_no_verdict():
    result = greedy_budget(skewed(8), skewed(4, seed=3), up_to=8)
    assert result.points[1].gain_over(result.points[0]).share > 0.05
    assert result.front == result.points[:1]
    assert result.advice == (
        "No verdict: 4 unseen windows cannot tell a gain from chance; it takes 5 or more. Record "
        "more steps, or hold out more of them."
    )


def test_what_takes_more_memory_than_it_is_worth_does_not_pay():
    load, held = skewed(8), skewed(6, seed=3)
    shares = [
        after.gain_over(before).share
        for before, after in pairwise(greedy_budget(load, held, up_to=24, least_gain=0).points)
    ]
    all_of_them = greedy_budget(load, held, up_to=24, dispatch="minmax", least_gain=0)
    some = greedy_budget(load, held, up_to=24, dispatch="minmax", least_gain=0.1)
    none = greedy_budget(load, held, up_to=24, dispatch="minmax", least_gain=0.9)
    assert max(shares) < 0.9
    assert len(all_of_them.front) > len(some.front) > len(none.front) == 1
    assert some.advice.endswith(
        "; it is not certain that they save 10.0% for each further slot on every rank."
    )
    assert none.advice.endswith(
        "; it is not certain that they save 90.0% for each further slot on every rank."
    )


class Even3(Greedy):
    """A planner that takes some numbers of slots only."""

    def plan(self, problem):
        if (problem.num_slots - 8) % 12:
            raise EquipoiseError("Redundant slots come in twelves.")
        return super().plan(problem)


def test_numbers_of_slots_that_a_planner_refuses_are_left_out():
    load = skewed(6)
    result = budget(load, load, Topology(4), up_to=24, planner=Even3(), expert_bytes=5)
    assert result.added == (0, 3, 6)
    assert [point.redundant[0] for point in result.points] == [0, 12, 24]
    assert [point.bytes_per_rank for point in result.points] == [0, 45, 90]
    assert set(result.allocation(5).redundant) <= {0, 12}
    assert sum(result.allocation(9).redundant) <= 9 * 4
    assert result.by_layer[2].redundant == (24,) * 3
    with pytest.raises(EquipoiseError, match=r"takes 1 of the numbers of slots tried, 8 to 16, .*"):
        budget(load, load, Topology(4), up_to=8, planner=Even3())


def test_redundancy_that_pays():
    load, held = skewed(8), skewed(6, seed=3)
    options = {"dispatch": "minmax", "least_gain": 0}
    result = greedy_budget(load, held, up_to=24, expert_bytes=10**9 // 3, **options)
    first, last = result.front[0], result.front[-1]
    assert first is result.points[0]
    assert len(result.front) > 2
    assert all(b.gain_over(a).share > 0 for a, b in pairwise(result.front))
    size = last.bytes_per_rank / 1e9
    gain = last.gain_over(first)
    assert result.advice.startswith(
        f"{last.redundant[0]} redundant slots a layer pay: they take {gain} "
        f"({gain.share / size:.1%} a GB) off the busiest rank's load of 6 unseen windows for "
        f"{size:.3f} GB a rank; the first 4 take "
    )
    step = result.front[1].gain_over(first)
    assert f"the first 4 take {step} ({step.share:.1%} a GB), the last " in result.advice
    assert result.advice.endswith("not a gain beyond chance.")
    short = greedy_budget(load, held, up_to=4)
    step = short.points[1].gain_over(short.points[0])
    assert short.advice == (
        f"4 redundant slots a layer pay: they take {step} off the busiest rank's load of 6 unseen "
        "windows. Larger numbers were not tried."
    )


def test_redundancy_does_not_pay_where_ranks_are_level():
    load = np.full((5, 2, 8), 10.0)
    result = greedy_budget(load, load, up_to=8, expert_bytes=10**9)
    assert result.front == result.points[:1]
    assert result.advice == (
        "More redundant slots do not pay: 4, the best of those tried, take 0.0% ± 0.0% off the "
        "busiest rank's load of 5 unseen windows for 2.000 GB a rank; that is not a gain beyond "
        "chance."
    )


def test_redundancy_does_not_pay_on_traffic_unlike_the_past():
    level = np.full((5, 3, 8), 10.0)  # one copy of each is perfect, more of some are not
    result = greedy_budget(skewed(4), level, up_to=8)
    assert result.planned_time[-1].sum() < result.planned_time[0].sum()
    assert result.front == result.points[:1]
    assert (result.layer_gain[0] < 0).all()
    assert result.advice.startswith("More redundant slots do not pay: ")


def test_reading_weights_makes_every_slot_cost():
    # Memory-bound: each rank reads its 2 experts, then 3.
    cost = RankCost(fixed_seconds=1.0, expert_seconds=2.0, token_seconds=1e-6)
    load = skewed(5, layers=2)
    result = greedy_budget(load, load, up_to=4, dispatch=Even(cost=cost))
    assert [point.step_seconds for point in result.points] == [10.0, 14.0]
    assert [point.mean_imbalance for point in result.points] == [None, None]
    assert result.front == result.points[:1]
    assert "take -40.0% ± 0.0% off the expert time of 5 unseen windows" in result.advice
    assert result.allocation(2).redundant == (0, 0)


def test_slow_ranks_count_for_more():
    load, topology = skewed(3), Topology(4, speed=(1, 1, 1, 0.5))
    result = budget(load, load, topology, up_to=4, planner=Greedy())
    peaks = Even(topology=topology).peaks(load, result.placements[1])
    assert np.array_equal(result.peak[1], peaks)
    assert result.points[1].mean_imbalance == pytest.approx((peaks / load.mean(2) / 2).mean())


def test_windows_and_layers_without_load_change_nothing():
    fit, held = skewed(4), skewed(3, seed=5)
    expected = greedy_budget(fit, held, up_to=4)
    padded = np.concatenate([held, np.zeros((2, 3, 8))])
    assert np.array_equal(greedy_budget(fit, padded, up_to=4).mean, expected.mean)
    held[0, 0] = 0
    result = greedy_budget(fit, held, up_to=4)
    assert result.points[0].mean_imbalance == evaluate(result.placements[0], held).mean_imbalance


def test_robust_plans_for_the_dispatcher_unless_told_otherwise():
    load = skewed(2, layers=1, experts=4)
    result = budget(load, load, Topology(2), up_to=2, dispatch="minmax")
    assert result.planner == repr(Robust(dispatch="minmax"))
    assert result.dispatch == "minmax"


def test_domains_of_the_trace_reach_the_planner():
    load = (1e4 * skewed(8, experts=16)).astype(np.int64)
    load[::2] = load[::2, :, ::-1]
    trace = Trace(counts=load, labels={"domain": np.array(["code", "chat"] * 4)})
    planner = Robust(proposals=5000)
    result = budget(trace, trace, Topology(4), up_to=4, planner=planner)
    assert result.placements[1] == planner.plan(Problem(trace, Topology(4), 20)).placement


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": skewed(1)}, "One held-out window cannot tell a gain from chance"),
        ({"held_out": skewed(2, layers=2)}, "held-out windows have 2 layers of 8 experts"),
        ({"held_out": skewed(2, experts=6)}, "3 layers of 6 experts, those planned on 3 of 8"),
        ({"held_out": np.full((2, 3, 8), np.nan)}, "expected finite numbers"),
        ({"planned": [[1.0, 2.0], [3.0]]}, "do not form an array"),
        ({"planned": np.zeros((2, 3, 8))}, "zero everywhere"),
        ({"up_to": 3}, "Up to 3 redundant slots are to be tried; expected from 4, "),
        ({"up_to": 25}, "Up to 25 redundant slots .* to 24, every expert on every rank"),
        ({"up_to": 10**18}, "expected from 4, one more on every rank, to 24"),
        ({"up_to": float("nan")}, "Up to nan"),
        ({"topology": Topology(1)}, "every rank holds every expert already"),
        ({"least_gain": -0.1}, "least_gain is -0.1"),
        ({"expert_bytes": 0}, "expert_bytes is 0; expected 1 or more"),
        ({"expert_bytes": 9, "kv_bytes_per_token": float("nan")}, "kv_bytes_per_token is nan"),
        ({"kv_bytes_per_token": 9}, "give the bytes of an expert too"),
        ({"dispatch": "best"}, "no dispatcher 'best'"),
    ],
)
def test_refuses(change, message):
    arguments = {"planned": skewed(2), "held_out": skewed(2), "topology": Topology(4)} | change
    planned, held_out, topology = (arguments.pop(k) for k in ("planned", "held_out", "topology"))
    with pytest.raises(EquipoiseError, match=message):
        budget(planned, held_out, topology, planner=Greedy(), **arguments)


def test_refuses_negative_slots():
    with pytest.raises(EquipoiseError, match="slots_per_rank is -1"):
        greedy_budget(skewed(2), skewed(2)).allocation(-1)


@pytest.mark.shared_data
def test_glm52(shared_data):
    fit, held = read_trace(shared_data / "glm52").split(at=0.875)  # window 7 of every domain
    result = greedy_budget(fit, held, 32, up_to=96)
    means = [point.mean_imbalance for point in result.points]
    assert means == pytest.approx([1.930, 1.680, 1.615, 1.589], abs=0.005)
    assert len(result.front) == 4
    for added, equal in enumerate(result.points[1:3], start=1):
        assert result.allocation(75 * added).gain_over(equal).is_sure


@pytest.mark.shared_data
@pytest.mark.parametrize(("tokens", "pays"), [(1024, False), (16_384, True)])
def test_small_steps_read_weights_and_large_ones_compute(shared_data, tokens, pays):
    fit, held = read_trace(shared_data / "glm52").split(at=0.875)
    share = held.counts / held.counts.sum(axis=2, keepdims=True)
    steps = np.random.default_rng(0).multinomial(8 * tokens, share)
    dispatch = Even(cost=rank_cost("h100-deepep-ep32"))
    result = greedy_budget(fit.counts, steps, 32, up_to=32, dispatch=dispatch)
    assert (len(result.front) == 2) == pays
