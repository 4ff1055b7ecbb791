"""A hook answers with slots that can be served, whatever it is given and whatever planners do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines._shared.hook import Hook, PlanStatus, warm_up
from equipoise.plan import Answer, Outcome, Situation, replan

L, E, R, S = 2, 6, 2, 8
OLD = np.tile([0, 1, 2, 3, 4, 5, 0, 1], (L, 1))
OTHER = np.tile([0, 1, 2, 3, 4, 5, 2, 3], (L, 1))
LOAD = np.arange(1, L * E + 1).reshape(L, E)
quick = partial(replan, proposals=64, num_threads=1)


def asked(**changes):
    return Situation(**({"load": LOAD, "num_slots": S, "num_ranks": R, "slots": OLD} | changes))


def answering(slots, reason="Because."):
    answer = Answer(slots=slots, moves=0, outcome=Outcome.REPAIRED, reason=reason)
    return Hook(lambda situation: answer)


def can_be_served(slots, alive=None):
    alive = np.ones(R, dtype=bool) if alive is None else np.asarray(alive)
    by_rank = slots.reshape(L, R, -1)
    return (by_rank[:, ~alive] == -1).all() and all(
        set(layer[alive].ravel().tolist()) == set(range(E)) for layer in by_rank
    )


def raising(error):
    def plan(situation):
        raise error

    return Hook(plan)


junk = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.integers(-9, 99),
    st.floats(),
    st.just([[1, 2], [3]]),
    st.just(object()),
    st.lists(st.lists(st.integers(-3, 9), max_size=S), max_size=3),
    st.just(np.full((L, E), np.nan)),
    st.just(np.zeros((L, E))),
    st.just(np.full((L, S), -1)),
    st.just(np.zeros((L, S), dtype=int)),
)


@given(st.dictionaries(st.sampled_from(sorted(Situation.__dataclass_fields__)), junk))
def test_no_situation_makes_it_raise(changes):
    decision = Hook(quick)(replace(asked(), **changes))
    assert decision.slots.dtype == np.int64
    assert decision.reason
    if decision.status is PlanStatus.TAKEN:
        return
    if not set(changes) & {"load", "num_slots", "num_ranks", "alive", "slots"}:
        assert (decision.slots == OLD).all()
        assert decision.moves == 0


@given(st.lists(st.floats(), min_size=L * E, max_size=L * E))
def test_no_loads_make_it_lose_the_slots_in_force(flat):
    decision = Hook(quick)(asked(load=np.reshape(flat, (L, E)), max_moves=0))
    assert (decision.slots == OLD).all()


@given(junk)
def test_no_answer_of_a_planner_is_served_unless_it_can_be(slots):
    decision = answering(slots)(asked())
    assert can_be_served(decision.slots)
    assert decision.status is PlanStatus.REFUSED
    assert decision.moves == 0


@given(st.lists(st.integers(-2, E), min_size=L * S, max_size=L * S), st.integers(0, L * S))
def test_slots_are_served_exactly_if_complete_and_near_enough(flat, max_moves):
    slots = np.reshape(flat, (L, S))
    decision = answering(slots)(asked(max_moves=max_moves))
    good = can_be_served(slots) and (slots != OLD).sum() <= max_moves and slots.min() >= 0
    assert (decision.status is PlanStatus.TAKEN) == good
    assert (decision.slots == (slots if good else OLD)).all()


@pytest.mark.parametrize(
    ("hook", "status", "words"),
    [
        (raising(ZeroDivisionError("by zero")), PlanStatus.FAILED, "ZeroDivisionError('by zero')"),
        (raising(SystemExit(1)), PlanStatus.FAILED, "SystemExit(1)"),
        (raising(MemoryError()), PlanStatus.FAILED, "MemoryError"),
        (Hook(lambda situation: None), PlanStatus.REFUSED, "it is None"),
        (Hook(lambda situation: OTHER), PlanStatus.REFUSED, "array"),
        (answering(OTHER[:, :-1]), PlanStatus.REFUSED, "shape (2, 7), not (2, 8)"),
        (answering(OTHER + 1), PlanStatus.REFUSED, "outside 0 to 5"),
        (answering(OTHER.clip(max=4)), PlanStatus.REFUSED, "layer 0 has no slot for expert 5"),
        (answering(OTHER.astype(float)), PlanStatus.REFUSED, "expected integers"),
    ],
)
def test_a_failing_planner_leaves_the_slots_and_says_why(hook, status, words):
    decision = hook(asked())
    assert (decision.slots == OLD).all()
    assert (decision.status, decision.moves) == (status, 0)
    assert words in decision.reason
    assert decision.reason.endswith("The slots stay as they are.")


def test_good_slots_are_taken_and_their_moves_counted():
    decision = answering(OTHER)(asked())
    assert (decision.slots == OTHER).all()
    assert decision.slots is not OTHER
    assert (decision.status, decision.moves) == (PlanStatus.TAKEN, 4)
    assert decision.reason == "Because."


def test_more_moves_than_allowed_are_refused():
    assert answering(OTHER)(asked(max_moves=4)).status is PlanStatus.TAKEN
    decision = answering(OTHER)(asked(max_moves=3))
    assert decision.status is PlanStatus.REFUSED
    assert "4 slots change, 3 may" in decision.reason


def test_what_missing_experts_need_is_always_allowed():
    old = OLD.copy()
    old[:, 5] = 0  # expert 5 is nowhere
    slots = OLD.copy()
    slots[:, 7] = 2
    assert answering(OLD)(asked(slots=old, max_moves=0)).status is PlanStatus.TAKEN
    assert answering(slots)(asked(slots=old, max_moves=0)).status is PlanStatus.REFUSED


def test_experts_on_a_rank_that_is_dead_are_refused():
    alive = [True, False]
    slots = np.tile([0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1, -1], (L, 1))
    situation = asked(num_slots=12, slots=slots, alive=alive)
    assert answering(slots)(situation).status is PlanStatus.TAKEN
    slots = slots.copy()
    slots[0, 7] = 0
    assert "not alive" in answering(slots)(situation).reason


@pytest.mark.parametrize(
    "slots", [None, OLD[:, :4], np.full((L, S), 9), np.zeros((L, S), int), "?"]
)
def test_without_slots_in_force_experts_are_laid_out_in_order(slots):
    decision = raising(ValueError())(asked(slots=slots))
    assert (decision.slots == OLD).all()
    assert decision.reason.endswith("Experts are laid out in order.")


def test_slots_of_ranks_that_died_are_not_kept():
    slots = np.tile([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], (L, 1))
    decision = raising(ValueError())(asked(num_slots=12, slots=slots, alive=[False, True]))
    assert (decision.slots == np.where(np.arange(12) < 6, -1, slots)).all()
    assert can_be_served(decision.slots, [False, True])


def test_slots_are_kept_where_loads_cannot_be_read():
    decision = Hook(quick)(asked(load="?"))
    assert (decision.slots == OLD).all()
    assert decision.status is PlanStatus.UNFIT


def test_a_load_that_fits_nothing_is_unfit():
    decision = Hook(quick)(asked(load=-LOAD))
    assert decision.status is PlanStatus.UNFIT
    assert "finite numbers >= 0" in decision.reason


def test_without_load_the_slots_stay():
    decision = Hook(quick)(asked(load=0 * LOAD))
    assert (decision.status, decision.moves) == (PlanStatus.TAKEN, 0)
    assert (decision.slots == OLD).all()


def test_a_late_plan_is_left_behind_and_the_next_waits_for_its_end():
    go_on = Event()

    def hang(situation):
        go_on.wait()
        return quick(situation)

    hook = Hook(hang, grace_seconds=0.0)
    situation = asked(time_budget_seconds=0.01)
    first, second = hook(situation), hook(situation)
    assert [first.status, second.status] == [PlanStatus.LATE, PlanStatus.LATE]
    assert "no plan after 0.01 seconds" in first.reason
    assert "earlier plan" in second.reason
    assert (first.slots == OLD).all()
    go_on.set()
    hook._run.join()
    hook = Hook(hang)
    assert hook(situation).status is PlanStatus.TAKEN


def test_a_planner_is_asked_again_after_it_was_late():
    go_on = Event()
    hook = Hook(lambda situation: quick(situation) if go_on.wait() else None, grace_seconds=0.0)
    assert hook(asked(time_budget_seconds=0.01)).status is PlanStatus.LATE
    go_on.set()
    hook._run.join()
    assert hook(asked()).status is PlanStatus.TAKEN


def test_warming_up_plans_for_the_shapes_that_were_given():
    seen = []

    def plan(situation):
        seen.append(situation)
        return quick(situation)

    decision = warm_up(Hook(plan), num_experts=E, num_slots=S, num_ranks=R)
    assert decision.status is PlanStatus.TAKEN
    assert (np.shape(seen[0].load), np.shape(seen[0].slots)) == ((1, E), (1, S))


def test_the_planner_by_default_is_replan():
    decision = Hook()(asked(max_moves=2))
    assert (decision.slots == replan(asked(max_moves=2)).slots).all()
