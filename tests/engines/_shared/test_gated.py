"""A plan is held back if it gains too little, and never if it is needed."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.engines._shared.gated import worth_its_moves
from equipoise.plan import Answer, Outcome, Situation

# Two ranks of two slots: 4 and 2 assignments before, 3 and 3 after, a quarter off the busiest.
HELD, BETTER = np.array([[0, 1, 2, 3]]), np.array([[0, 2, 1, 3]])
LOAD = np.array([[[2, 2, 1, 1]]])


def asked(**given):
    return Situation(load=LOAD, num_slots=4, num_ranks=2, slots=HELD, **given)


def answered(outcome=Outcome.REPAIRED):
    return Answer(slots=BETTER, moves=2, outcome=outcome, reason="2 of 4 slots change.")


@pytest.mark.parametrize("min_gain", [0.0, 0.25])
def test_a_plan_with_enough_gain_is_the_answer(min_gain):
    answer = answered()
    assert worth_its_moves(answer, asked(), min_gain) is answer


def test_a_plan_with_less_leaves_the_slots_and_says_so():
    answer = worth_its_moves(answered(), asked(), 0.26)
    assert (answer.slots == HELD).all()
    assert (answer.moves, answer.outcome) == (0, Outcome.KEPT)
    assert answer.reason == (
        "The slots stay: 2 changes would take 25.0% off the busiest ranks, and min_gain is 26.0%."
    )


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.REPAIRED])
def test_what_had_to_change_is_not_held_back(outcome):
    answer = answered(outcome)
    assert worth_its_moves(answer, asked(), 1.0) is answer


def test_nothing_is_held_back_while_a_rank_is_missing():
    answer = answered()
    assert worth_its_moves(answer, asked(alive=[True, False]), 1.0) is answer
    assert worth_its_moves(answer, asked(alive=[True, True]), 1.0) is not answer
