from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import Even
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Problem, Repair, Robust, resize
from equipoise.plan.replan import Outcome, Situation, replan
from equipoise.topology import Topology

QUICK = {"proposals": 1 << 10, "num_threads": 1}
L, E, R, S = 2, 12, 4, 16


def loads(seed, steps=None):
    shape = (L, E) if steps is None else (steps, L, E)
    return np.random.default_rng(seed).lognormal(0, 1, shape)


def in_force(seed=7, num_ranks=R):
    return Greedy().plan(Problem(loads(seed), Topology(num_ranks), 4 * num_ranks)).placement


def asked(**changes):
    given = {"load": loads(1), "num_slots": S, "num_ranks": R, "slots": in_force().slots}
    return Situation(**(given | changes))


@st.composite
def situations(draw):
    """Any loads; slots with holes, of ranks that came or went; ranks that are dead."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    old = in_force(draw(st.integers(0, 9)), draw(st.sampled_from([3, 4, 6]))).slots.copy()
    old[rng.random(old.shape) < draw(st.sampled_from([0, 0.2, 1]))] = -1
    alive = np.ones(R, dtype=bool)
    if draw(st.booleans()):
        alive[draw(st.integers(0, R - 1))] = False
    return asked(
        load=rng.lognormal(0, 1, (draw(st.integers(1, 3)), L, E)) * draw(st.sampled_from([0, 1])),
        slots=draw(st.sampled_from([None, old])),
        num_nodes=draw(st.sampled_from([1, 2, 3])),
        alive=draw(st.sampled_from([None, alive])),
        max_moves=draw(st.sampled_from([None, 0, 3])),
        time_budget_seconds=draw(st.sampled_from([None, 0.0, 5.0])),
    )


@given(situations())
def test_every_expert_has_a_slot_on_a_rank_that_is_alive(situation):
    answer = replan(situation, **QUICK)
    alive = np.ones(R, dtype=bool) if situation.alive is None else situation.alive
    by_rank = answer.slots.reshape(L, R, -1)
    assert (by_rank[:, ~alive] == -1).all()
    for layer in by_rank[:, alive]:
        assert set(layer.ravel().tolist()) == set(range(E))
        assert all(len(set(rank.tolist())) == len(rank) for rank in layer)


@given(situations())
def test_moves_are_counted_and_limited(situation):
    answer = replan(situation, **QUICK)
    if situation.slots is None:
        assert answer.outcome is Outcome.PLANNED
        return
    before = np.full((L, R, S // R), -1)
    old = np.reshape(situation.slots, (L, -1, S // R))
    before[:, : min(R, old.shape[1])] = old[:, :R]
    after = answer.slots.reshape(before.shape)
    assert answer.moves == ((after != before) & (after >= 0)).sum()
    if situation.max_moves is not None and answer.outcome is not Outcome.REFITTED:
        assert answer.moves <= situation.max_moves


@given(situations())
def test_slots_that_hold_something_change_only_to_balance(situation):
    """With no moves allowed, only slots in the way of missing experts change."""
    if situation.slots is None:
        return
    situation = asked(load=situation.load, slots=situation.slots, max_moves=0)
    held = np.full((L, R, S // R), -1)
    old = np.reshape(situation.slots, (L, -1, S // R))
    held[:, : min(R, old.shape[1])] = old[:, :R]
    lacking = sum(E - len(set(layer[layer >= 0].tolist())) for layer in held)
    answer = replan(situation, **QUICK)
    changed = (answer.slots.reshape(held.shape) != held) & (held >= 0)
    assert changed.sum() <= lacking


def test_slots_in_force_are_repaired_as_repair_does():
    answer = replan(asked(load=loads(1, steps=3)), dispatch="minmax", **QUICK)
    problem = Problem(loads(1, steps=3), Topology(R, R), S)
    plan = Repair(current=in_force(), dispatch="minmax", **QUICK).plan(problem)
    assert (answer.slots == plan.placement.slots).all()
    assert answer.outcome is Outcome.REPAIRED
    assert answer.reason == plan.note


def test_repaired_slots_are_better_for_the_load():
    answer = replan(asked(), **QUICK)
    after = Placement(answer.slots, num_ranks=R, num_experts=E)
    before, after = (Even().peaks(loads(1)[None], p).sum() for p in (in_force(), after))
    assert after < before


def test_no_slots_and_one_window_are_planned_as_greedy_does():
    answer = replan(asked(slots=None))
    expected = Greedy().plan(Problem(loads(1), Topology(R), S)).placement
    assert (answer.slots == expected.slots).all()
    assert (answer.outcome, answer.moves) == (Outcome.PLANNED, expected.slots.size)


def test_no_slots_and_several_windows_are_planned_as_robust_does():
    answer = replan(asked(slots=None, load=loads(1, steps=4)), **QUICK)
    problem = Problem(loads(1, steps=4), Topology(R, R), S)
    assert (answer.slots == Robust(**QUICK).plan(problem).placement.slots).all()


def test_without_traffic_what_is_in_force_stays():
    answer = replan(asked(load=np.zeros((L, E))))
    assert (answer.slots == in_force().slots).all()
    assert (answer.outcome, answer.moves) == (Outcome.KEPT, 0)
    assert "no traffic" in answer.reason


def test_without_traffic_and_slots_experts_lie_in_order():
    answer = replan(asked(load=np.zeros((L, E)), slots=None))
    expected = Contiguous().plan(Problem(np.ones((L, E)), Topology(R), S)).placement
    assert (answer.slots == expected.slots).all()


@pytest.mark.parametrize("before", [3, 6])
def test_ranks_that_came_or_went_change_what_resize_changes(before):
    old = in_force(num_ranks=before)
    answer = replan(asked(slots=old.slots, max_moves=0), **QUICK)
    problem = Problem(loads(1), Topology(before), 4 * before)
    assert (answer.slots == resize(old, problem, R).placement.slots).all()
    assert answer.outcome is Outcome.REFITTED
    assert answer.reason.startswith("Experts or ranks were missing: ")


def test_a_dead_rank_changes_nothing_where_copies_are_left():
    slots = np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    situation = Situation(
        load=np.ones((1, 6)), num_slots=12, num_ranks=4, num_nodes=2, slots=slots,
        alive=[False, True, True, True], max_moves=0,
    )  # fmt: skip
    answer = replan(situation, **QUICK)
    assert answer.slots.tolist() == [[-1, -1, -1, 3, 4, 5, 0, 1, 2, 3, 4, 5]]
    assert (answer.moves, answer.outcome) == (0, Outcome.KEPT)


def test_loads_and_slots_given_are_not_changed():
    load, slots = loads(1), in_force().slots.copy()
    replan(asked(load=load, slots=slots), **QUICK)
    assert (load == loads(1)).all()
    assert (slots == in_force().slots).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": np.zeros((1, S), int)}, r"shape \(1, 16\); expected 2 layers and 4 slots"),
        ({"slots": np.zeros((L, 15), int)}, r"shape \(2, 15\); expected 2 layers and 4 slots"),
        ({"slots": np.full((L, S), 12)}, "hold experts 12 to 12; expected ids from 0 to 11"),
        ({"slots": np.full((L, S), -2)}, "hold experts -2 to -2"),
        ({"num_slots": 15}, "15 slots do not divide over 4 ranks"),
        ({"num_ranks": 0}, "num_ranks"),
        (
            {"alive": [True]},
            r"alive has shape \(1,\) of bool; expected true or false for each of 4",
        ),
        ({"alive": ["yes"] * 4}, "alive have type"),
        ({"alive": [False] * 4}, "No rank is alive"),
        ({"alive": [True, True, False, False]}, "8 slots"),
        ({"load": np.full((L, E), -1.0)}, "expected finite numbers >= 0"),
        ({"max_moves": -1}, "max_moves"),
        ({"time_budget_seconds": -1.0}, "time_budget_seconds"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(EquipoiseError, match=message):
        replan(asked(**changes), **QUICK)
