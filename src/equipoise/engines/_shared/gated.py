"""Whether a plan is worth its moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equipoise.checks import as_array, as_ids, as_loads
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Answer, Outcome, Situation, evaluate


def worth_its_moves(
    answer: Answer, situation: Situation, min_gain: float, *, dispatch: str = "even"
) -> Answer:
    """The answer, or the slots in force if it takes too little off the busiest ranks.

    The gain is that on the loads planned on, layers and windows summed. Slots that had to change
    since experts were missing are never held back, nor is any plan while ranks are missing.

    Parameters
    ----------
    answer
        What a planner found for the situation.
    min_gain
        Least share of the busiest ranks' load that has to go away, from 0 to 1.
    dispatch
        Dispatcher that runs.
    """
    moves_at_will = answer.outcome is Outcome.REPAIRED and everybody_serves(situation)
    if situation.slots is None or not moves_at_will:
        return answer
    held = as_ids(situation.slots, "The slots in force").astype(np.int64)
    load = as_loads(situation.load)
    try:
        before, after = (
            evaluate(
                Placement(slots, num_ranks=situation.num_ranks, num_experts=load.shape[-1]),
                load,
                dispatch=dispatch,
            ).peak.sum()
            for slots in (held, answer.slots)
        )
    except EquipoiseError:
        return answer  # it is no placement, as who is to serve it will find
    gain = 1 - after / before
    if gain >= min_gain:
        return answer
    return replace(
        answer,
        slots=held,
        moves=0,
        outcome=Outcome.KEPT,
        reason=f"The slots stay: {answer.moves} changes would take {gain:.1%} off the busiest "
        f"ranks, and min_gain is {min_gain:.1%}.",
    )


def everybody_serves(situation: Situation) -> bool:
    """Whether no rank is missing."""
    return situation.alive is None or bool(as_array(situation.alive, "alive").all())
