"""Slots for the loads to come: a forecast, the copies it asks for, exchanges that are worth it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Outcome, Problem, Situation, evaluate, replan
from equipoise.plan.ahead import forecast, plan_ahead, with_copies_by_load
from equipoise.topology import Topology

L, E, R, S = 3, 12, 4, 16
START = np.tile(np.arange(S) % E, (L, 1))
rng = np.random.default_rng(0)
SKEWED = np.exp(rng.normal(0, 1, (L, E)))


def asked(**changes):
    given = {"load": SKEWED, "num_slots": S, "num_ranks": R, "slots": START}
    return Situation(**(given | changes))


def placed(slots):
    return Placement(np.asarray(slots), num_ranks=R, num_experts=E)


def copies(placement):
    return placement.copies_on_rank.sum(axis=1)


@st.composite
def placements(draw):
    """Slots of every layer with no expert twice on a rank."""
    seed = draw(st.integers(0, 2**20))
    load = np.exp(np.random.default_rng(seed).normal(0, draw(st.floats(0, 3)), (L, E)))
    return Greedy().plan(Problem(load[None], Topology(R), S)).placement


loads = st.integers(0, 2**20).map(
    lambda seed: np.random.default_rng(seed).integers(0, 100, (L, E)).astype(float)
)


def test_a_sum_is_its_own_forecast():
    assert (forecast(SKEWED) == SKEWED).all()


def test_steady_loads_are_expected_to_stay_as_they_are_on_average():
    windows = np.random.default_rng(1).poisson(1000 * SKEWED, (16, L, E))
    assert (forecast(windows) == windows.sum(axis=0)).all()


def test_of_drifting_loads_the_late_windows_count_more():
    windows = np.exp(np.cumsum(np.random.default_rng(2).normal(0, 0.3, (16, L, E)), axis=0)) * 1000
    share = forecast(windows) / forecast(windows).sum(axis=1, keepdims=True)
    last = windows[-1] / windows[-1].sum(axis=1, keepdims=True)
    mean = windows.sum(axis=0) / windows.sum(axis=(0, 2))[:, None]
    assert np.abs(share - last).sum() < np.abs(mean - last).sum() / 2


def test_windows_without_load_say_nothing():
    windows = np.random.default_rng(3).poisson(50 * SKEWED, (6, L, E)).astype(float)
    empty = np.zeros((2, L, E))
    assert (forecast(np.concatenate([empty, windows])) == forecast(windows)).all()
    assert not forecast(empty).any()


@pytest.mark.parametrize("shape", [(E,), (2, 2, L, E)])
def test_loads_of_another_shape_have_no_forecast(shape):
    with pytest.raises(EquipoiseError, match=r"expected \(L, E\) or \(T, L, E\)"):
        forecast(np.ones(shape))


@given(old=placements(), load=loads, most=st.none() | st.integers(0, 10))
def test_copies_move_towards_those_of_the_loads_at_a_move_each(old, load, most):
    new = with_copies_by_load(old, load, most_moves=most)
    wanted = copies(Greedy().plan(Problem(load[None], Topology(R), S)).placement)
    moves = (new.slots != old.slots).sum()
    far, near = (np.abs(copies(p) - wanted)[load.any(axis=1)].sum() for p in (old, new))
    assert far - near == 2 * moves
    assert most is None or moves <= most
    assert new.copies_on_rank.max() == 1
    heaviest = [(load / copies(p)).max(axis=1) for p in (old, new)]
    assert (heaviest[1] <= heaviest[0]).all()


@given(old=placements(), load=loads, share=st.sampled_from([0.0, 0.1, 0.5, None]))
def test_a_plan_keeps_every_expert_and_the_move_budget_and_never_makes_it_worse(old, load, share):
    most = None if share is None else int(share * old.slots.size)
    answer = plan_ahead(asked(load=load, slots=old.slots, max_moves=most), num_threads=1)
    new = placed(answer.slots)
    assert answer.moves == (new.slots != old.slots).sum()
    assert most is None or answer.moves <= most
    if load.any():
        before, after = (evaluate(p, load[None]).mean_imbalance for p in (old, new))
        assert after < before or not answer.moves


def test_a_move_that_has_to_gain_more_is_made_less_often():
    moves = [plan_ahead(asked(), move_gain=gain, num_threads=1).moves for gain in (0, 0.01, 0.1)]
    assert moves[0] > moves[1] > moves[2]


def test_the_copies_may_be_those_of_another_rule():
    load = np.where(np.arange(E) == 5, 5.0, 1.0) + np.zeros((L, 1))
    wanted = np.where(np.isin(np.arange(E), (0, 1, 2, 5)), 2, 1) + np.zeros((L, 1), dtype=int)
    usual, other = (
        plan_ahead(asked(load=load), copies=rule, num_threads=1)
        for rule in (None, lambda *sizes: wanted)
    )
    assert (copies(placed(usual.slots))[:, 5] == 3).all()
    assert (copies(placed(other.slots)) == wanted).all()


def test_nothing_moves_for_less_than_the_least_gain():
    free = plan_ahead(asked(), num_threads=1)
    before, after = (
        evaluate(placed(slots), SKEWED[None]).mean_imbalance for slots in (START, free.slots)
    )
    assert free.moves
    kept = plan_ahead(asked(), least_gain=before - after + 1e-6, num_threads=1)
    assert (kept.slots == START).all()
    assert kept.outcome is Outcome.KEPT
    assert kept.reason.startswith(f"No slot changes, though {free.moves} might")
    same = plan_ahead(asked(), least_gain=before - after - 1e-6, num_threads=1)
    assert (same.slots == free.slots).all()


def test_hot_experts_get_copies_that_a_search_from_the_slots_in_force_does_not_make():
    load = np.ones((L, E))
    load[:, 4:8] = 3.0  # the copies in force are of the experts 0 to 3
    answer = plan_ahead(asked(load=load), num_threads=1)
    assert (copies(placed(answer.slots))[:, 4:8] == 2).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": None},
        {"load": np.zeros((L, E))},
        {"slots": np.where(np.arange(S) == S - 1, -1, START)},
        {"slots": START[:, : S // 2 + S // 4]},
        {"alive": np.array([True, True, True, False]), "max_moves": 0},
    ],
)
def test_otherwise_it_plans_as_replan_does(changes):
    one, other = (plan(asked(**changes), num_threads=1) for plan in (plan_ahead, replan))
    assert (one.slots == other.slots).all()
    assert (one.moves, one.outcome) == (other.moves, other.outcome)


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": START[:2]},
        {"slots": START + E},
        {"load": -SKEWED},
        {"num_ranks": 3},
        {"max_moves": -1},
        {"max_moves": 1.5},
    ],
)
def test_what_does_not_fit_together_is_refused(changes):
    with pytest.raises(EquipoiseError):
        plan_ahead(asked(**changes), num_threads=1)
