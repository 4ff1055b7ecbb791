"""What would happen with other traffic, ranks, copies or hardware: answered while one watches.

    what_if = WhatIf(models)
    what_if.answer(Question(skew=1.0, step_tokens=4096, num_ranks=32)).headline

Every answer is computed by the planners, dispatchers and the cost model that the other commands
use: EPLB's greedy planner, since it takes milliseconds, and LPLB's ring where it fits.
"""

from equipoise.simulate.what_if.answer import Answer
from equipoise.simulate.what_if.answering import WhatIf
from equipoise.simulate.what_if.case import NUM_BATCHES
from equipoise.simulate.what_if.question import DISPATCH, Question, ServedModel

__all__ = ["DISPATCH", "NUM_BATCHES", "Answer", "Question", "ServedModel", "WhatIf"]
