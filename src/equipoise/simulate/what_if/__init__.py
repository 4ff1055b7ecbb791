"""Interactive answers to "what if": other traffic, ranks, copies or hardware.

    what_if = WhatIf(models)
    what_if.answer(Question(skew=1.0, step_tokens=4096, num_ranks=32)).headline

Answers come from the same planners, dispatchers and time models that the other commands use: EPLB's
greedy planner, which takes milliseconds, and LPLB's ring where it fits.
"""

from equipoise.simulate.what_if.answer import Answer
from equipoise.simulate.what_if.answering import WhatIf
from equipoise.simulate.what_if.case import NUM_BATCHES
from equipoise.simulate.what_if.question import DISPATCH, Question, ServedModel

__all__ = ["DISPATCH", "NUM_BATCHES", "Answer", "Question", "ServedModel", "WhatIf"]
