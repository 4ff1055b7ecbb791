from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError
from equipoise.plan import Greedy, Problem, evaluate, peak_lower_bound
from equipoise.plan.planners.robust import Robust
from equipoise.plan.search import _anneal_kernels as kernels
from equipoise.plan.search.anneal import Progress, _tail_mean
from equipoise.plan.search.scenarios import MAX_WINDOWS, read_history
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.conftest import SHARED_DATA
from tests.reference import robust as reference

FLASHLB = [600, 560, 120, 120, 20, 10, 10, 10]  # K11
QUICK = Robust(proposals=40_000, num_threads=2)


def two_domains(steps=8, noise=0.1, seed=0, layers=3):
    """Windows of two domains with unlike hot experts, ``(T, layers, 16)``, and their names."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0, 1, (2, 1, layers, 16))
    load = mean * rng.lognormal(0, noise, (2, steps, layers, 16))
    return 1e4 * load.reshape(2 * steps, layers, 16), np.repeat(["code", "chat"], steps)


def domain_problem(load, names, num_slots=20):
    return Problem(load, Topology(4), num_slots, traffic_groups=names)


@st.composite
def layers(draw):
    """A small layer: loads, risks, weights, placed slots, ranks."""
    num_ranks, size = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    num_experts = draw(st.integers(size, num_ranks * size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    T = draw(st.integers(1, 5))
    load = rng.lognormal(0, 1, (num_experts, T))
    load *= num_ranks / load.sum(axis=0)
    risk = 0.1 * rng.random((num_experts, T))
    plan = Greedy().plan(Problem(load.T.mean(axis=0)[None], Topology(num_ranks), num_ranks * size))
    return load, risk, rng.dirichlet(np.ones(T)), plan.placement.slots[0].copy(), num_ranks


def plain(num_ranks, load):
    """Equal ranks and no terms, as the kernels take them."""
    node = np.zeros(num_ranks, dtype=np.int64)
    ranks = kernels.Ranks(np.ones(num_ranks), node, False, 0.0, 0.0)
    return ranks, kernels.Terms(np.zeros((num_ranks, len(load))), 0, False, 0.0)


@given(layers(), st.sampled_from([1.0, 0.5, 0.3]), st.integers(1, 5))
def test_even_kernel_keeps_the_objective_it_says(layer, tail, bits):
    load, risk, weight, slots, num_ranks = layer
    tail = max(tail, weight.min())
    start = slots.copy()
    found, value = kernels.anneal_fixed(
        load,
        risk,
        slots,
        *plain(num_ranks, load),
        kernels.Objective(weight, tail, bits, False),
        kernels.Schedule(300, 1e-1, 1e-3),
        5,
    )
    assert np.array_equal(slots, start)
    expected = reference.even_objective(load, risk, weight, found, num_ranks, tail, bits)
    assert value == pytest.approx(expected, rel=1e-9)
    before = reference.even_objective(load, risk, weight, slots, num_ranks, tail, bits)
    assert value <= before * (1 + 1e-9)
    Problem(load.T[:, None], Topology(num_ranks), len(slots)).placement(found[None])  # is valid
    assert all(len(set(rank)) == len(rank) for rank in found.reshape(num_ranks, -1).tolist())


@given(layers())
def test_minmax_kernel_reaches_the_exact_split(layer):
    load, _, _, slots, num_ranks = layer
    load = load[:, :1].copy()
    found, value = kernels.anneal_minmax(
        load,
        slots,
        *plain(num_ranks, load),
        kernels.Objective(np.ones(1), 1.0, 4, True),
        kernels.Schedule(200, 1e-2, 1e-4),
        5,
    )
    problem = Problem(load.T, Topology(num_ranks), len(slots))
    exact = MinMax().peaks(load.T[None], problem.placement(found[None]))[0, 0]
    assert exact * (1 - 1e-9) <= value <= exact * 1.01 + 5e-3
    before = MinMax().peaks(load.T[None], problem.placement(slots[None]))[0, 0]
    assert exact <= before * 1.01 + 5e-3


def test_joint_search_reaches_the_optimum_greedy_misses():
    problem = Problem([FLASHLB], Topology(8), 16)
    assert Greedy().plan(problem).peak[0] == pytest.approx(232)
    for seed in range(5):
        plan = Robust(deviation=0, seed=seed, proposals=500_000).plan(problem)
        assert plan.peak[0] == pytest.approx(590 / 3)  # 196.67
    split = Robust(dispatch="minmax", deviation=0, proposals=500_000).plan(problem)
    assert split.dispatch == "minmax"
    assert split.peak[0] <= 193.34
    assert split.peak[0] >= peak_lower_bound([FLASHLB], 8, 16)[0]


@pytest.mark.parametrize("load", [[9, 7, 5, 3, 2], [8, 1, 1, 1, 1], [5, 4, 3, 2, 1]])
def test_a_window_that_will_come_again_is_planned_optimally(load):
    plan = replace(QUICK, deviation=0).plan(Problem([load], Topology(3), 9))
    assert plan.peak[0] == pytest.approx(reference.best_peak(load, 3, 3))


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
@pytest.mark.parametrize("num_slots", [16, 20])
def test_better_than_greedy_where_domains_differ(dispatch, num_slots):
    load, names = two_domains(layers=8)
    past = np.tile([True] * 6 + [False] * 2, 2)
    problem = domain_problem(load[past], names[past], num_slots)
    greedy, robust = Greedy().plan(problem), replace(QUICK, dispatch=dispatch).plan(problem)
    assert not robust.placement.duplicates.any()
    assert (robust.peak >= robust.bound * (1 - 1e-12)).all()
    assert "that was better than a plan for the sum of all windows" in robust.status
    before, after = (
        evaluate(p.placement, load[~past], dispatch=dispatch).mean_imbalance
        for p in (greedy, robust)
    )
    assert after < before


def test_the_plain_plan_where_the_past_does_not_help():
    rng = np.random.default_rng(1)
    load = rng.lognormal(0, 1, (4, 2, 16))  # every window unlike any other
    problem = Problem(load, Topology(4), 16)
    plan = QUICK.plan(problem)
    assert plan.placement == Greedy().plan(problem).placement
    assert "no other was better beyond chance" in plan.status


def test_the_plain_plan_when_no_traffic_group_has_a_past():
    load, _ = two_domains(steps=1)
    problem = domain_problem(load, np.array(["code", "chat"]))
    plan = QUICK.plan(problem)
    assert plan.placement == Greedy().plan(problem).placement
    assert "No traffic group has two windows" in plan.status


def test_alternating_phases_need_no_labels():
    rng = np.random.default_rng(3)
    phases = rng.lognormal(0, 1, (2, 1, 16))
    load = np.tile(phases, (10, 1, 1)) * rng.lognormal(0, 0.02, (20, 1, 16))
    problem = Problem(load[:16], Topology(4), 20)
    greedy, robust = Greedy().plan(problem), Robust(proposals=500_000).plan(problem)
    before, after = (evaluate(p.placement, load[16:]).mean_imbalance for p in (greedy, robust))
    assert after < 1.1
    assert before > 1.2


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_same_answer_for_any_thread_count(dispatch):
    problem = domain_problem(*two_domains())
    plans = [replace(QUICK, dispatch=dispatch, num_threads=n).plan(problem) for n in (1, 1, 2, 5)]
    assert all(plan.placement == plans[0].placement for plan in plans)
    other = replace(QUICK, dispatch=dispatch, seed=1, num_threads=1).plan(problem)
    assert other.placement != plans[0].placement


@pytest.mark.parametrize(
    ("dispatch", "exponents"),
    [("even", (-40, 60)), ("minmax", (-40, 20))],  # a batch has fewer than 2**53 assignments
)
def test_scaling_by_powers_of_two_changes_nothing(dispatch, exponents):
    load, names = two_domains()
    robust = replace(QUICK, dispatch=dispatch)
    plain = robust.plan(domain_problem(load, names))
    for exponent in exponents:
        scaled = robust.plan(domain_problem(np.ldexp(load, exponent), names))
        assert scaled.placement == plain.placement


def test_more_moves_never_end_worse():
    reached = []
    for proposals in (0, 5_000, 20_000, 80_000):
        seen: list[Progress] = []
        plan = Robust(proposals=proposals, progress=seen.append).plan(
            Problem([FLASHLB], Topology(8), 16)
        )
        reached.append(plan.peak[0])
        values = [p.best for p in seen]
        assert values == sorted(values, reverse=True)
    assert reached == sorted(reached, reverse=True)
    assert reached[0] == pytest.approx(232)


def test_a_budget_ends_the_search():
    problem = domain_problem(*two_domains())
    assert Robust(time_budget_seconds=0).plan(problem).placement == Greedy().plan(problem).placement
    seen: list[Progress] = []
    single = Problem([FLASHLB], Topology(8), 16)
    exact = Robust(deviation=0, proposals=10**15, time_budget_seconds=0.3, progress=seen.append)
    exact.plan(single)
    assert seen[-1].seconds < 60  # all proposals would take years


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
@pytest.mark.parametrize("windows", [1, 16])
def test_progress_goes_from_nothing_to_all_without_a_step_back(dispatch, windows):
    seen: list[Progress] = []
    load, names = two_domains()
    problem = domain_problem(load[:windows], names[:windows])
    replace(QUICK, dispatch=dispatch, deviation=0, progress=seen.append).plan(problem)
    shares = [p.done for p in seen]
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert shares[-1] == 1
    assert np.diff([0, *shares]).max() < 0.5  # the last round of all is half of its stage
    if windows > 1:
        assert seen[0].stage == "comparing ways to plan"
        assert seen[0].best is None
    assert all(p.best is not None for p in seen if p.stage != "comparing ways to plan")


def test_the_tail_is_kept_lower():
    load, names = two_domains(noise=0.02)
    load[names == "code", :, 0] *= 3
    problem = domain_problem(load, names, 16)
    worst = {
        tail: evaluate(
            replace(QUICK, tail=tail, proposals=200_000).plan(problem).placement, load
        ).imbalance.max(axis=0)
        for tail in (0.0, 1.0)
    }
    assert worst[0.0].mean() <= worst[1.0].mean()


def test_tail_mean_agrees_with_the_reference():
    rng = np.random.default_rng(0)
    peak, weight = rng.random((7, 3)), rng.dirichlet(np.ones(7))
    for tail in (1.0, 0.6, 0.31):
        expected = [reference.tail_mean(peak[:, i], weight, tail) for i in range(3)]
        assert _tail_mean(peak, weight, tail) == pytest.approx(expected)
    assert _tail_mean(peak, weight, 0.0) == pytest.approx(peak.max(axis=0))


def test_a_heavier_traffic_group_is_balanced_better():
    load, names = two_domains(noise=0.02, layers=6)
    problem = domain_problem(load, names, 16)
    code = {}
    for weight in (0.05, 20.0):
        plan = replace(QUICK, traffic_weights={"code": weight}, proposals=100_000).plan(problem)
        code[weight] = evaluate(plan.placement, load[names == "code"]).mean_imbalance
    assert code[20.0] < code[0.05]


def test_layers_and_windows_without_load():
    load, names = two_domains()
    load[:, 1] = 0
    load[3, 2] = 0
    plan = QUICK.plan(domain_problem(load, names))
    assert not plan.placement.duplicates.any()
    assert np.isfinite(plan.peak).all()


def test_traffic_groups_come_from_a_trace():
    load, names = two_domains()
    trace = Trace(counts=load.astype(np.int64), labels={"domain": names})
    problem = Problem(trace, Topology(4), 20)
    assert problem.traffic_groups.tolist() == names.tolist()
    other = domain_problem(load.astype(np.int64), names)
    assert QUICK.plan(problem).placement == QUICK.plan(other).placement


def test_history_is_normalised_and_bounded():
    load, names = two_domains(steps=100)
    history = read_history(domain_problem(load * np.arange(1, 201)[:, None, None], names), None)
    assert len(history.load) <= MAX_WINDOWS
    assert history.load.sum(axis=-1) == pytest.approx(4)
    assert history.mix.sum(axis=-1) == pytest.approx(4)
    assert history.window_weight.sum() == pytest.approx(1)
    past, late = history.held_out()
    assert len(past.load) + len(late.load) == len(history.load)
    assert set(late.group) == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dispatch": "divine"}, "no dispatcher 'divine'"),
        ({"tail": 1.5}, "tail is 1.5; expected 0 to 1"),
        ({"tail": float("nan")}, "tail is nan"),
        ({"proposals": -1}, "proposals is -1"),
        ({"proposals": 2.5}, "proposals is 2.5"),
        ({"seed": -3}, "seed is -3"),
        ({"time_budget_seconds": float("nan")}, "time_budget_seconds is nan"),
        ({"num_threads": 0}, "num_threads is 0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(EquipoiseError, match=message):
        Robust(**options)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"math": 1}, "weight for traffic group 'math'; the load has chat, code"),
        ({"code": -1}, "weight of traffic group .code. is -1; expected 0 to"),
        ({"code": 0, "chat": 0}, "one above 0"),
        ({"code": float("inf")}, "weight of traffic group .code. is inf"),
    ],
)
def test_weights_that_are_refused(weights, message):
    with pytest.raises(EquipoiseError, match=message):
        Robust(traffic_weights=weights).plan(domain_problem(*two_domains()))


def test_traffic_groups_that_do_not_fit():
    with pytest.raises(EquipoiseError, match="one name for each of 2 steps"):
        Problem(np.ones((2, 1, 4)), Topology(2), 4, traffic_groups=["a"])


@pytest.mark.shared_data
@pytest.mark.parametrize(("dispatch", "at_least"), [("even", 0.17), ("minmax", 0.12)])
def test_gain_on_unseen_windows_of_real_routing(dispatch, at_least):
    with np.load(SHARED_DATA / "glm52" / "windows.npz") as archive:
        counts, domains = archive["counts"][:, :, ::15].astype(np.int64), archive["domains"]
    fit, held = counts[:, :7].reshape(49, -1, 256), counts[:, 7]
    problem = Problem(fit, Topology(32), 288, traffic_groups=domains.repeat(7))
    base = Greedy(allow_same_rank_copies=True).plan(problem)
    plan = Robust(dispatch=dispatch, proposals=600_000).plan(problem)
    before, after = (
        evaluate(p.placement, held, dispatch=dispatch).mean_imbalance for p in (base, plan)
    )
    assert after < before * (1 - at_least)


def later_windows(seed):
    """A window, and others in which every expert deviates by itself; 12 layers, 32 experts."""
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1, (12, 32)) * rng.lognormal(0, 0.4, (9, 12, 32))
    return load[0], load[1:]


def test_one_window_is_planned_as_greedy_does_where_nothing_tells_more():
    window, _ = later_windows(0)
    problem = Problem(window, Topology(8), 40)
    plan = Robust().plan(problem)
    assert plan.placement == Greedy().plan(problem).placement
    assert plan.status.startswith("Made from a single window")


def test_one_window_does_not_stand_for_all_that_come():
    """A plan that takes it for what will come is worse on others."""
    gains = []
    for seed in range(3):
        window, later = later_windows(seed)
        problem = Problem(window, Topology(8), 40)
        exact, careful = (
            replace(QUICK, dispatch="minmax", deviation=d, proposals=1 << 16).plan(problem)
            for d in (0.0, 0.3)
        )
        gains.append(
            evaluate(exact.placement, later, dispatch="minmax").mean_imbalance
            - evaluate(careful.placement, later, dispatch="minmax").mean_imbalance
        )
    assert min(gains) > 0


def test_a_deviation_below_nothing_is_refused():
    with pytest.raises(EquipoiseError, match="deviation is -1; expected 0 "):
        Robust(deviation=-1)
