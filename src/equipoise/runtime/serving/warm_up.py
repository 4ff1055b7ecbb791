"""Running once, before serving, the code that is compiled when it first runs on a machine.

Compiling takes half a minute. During serving all processes would compile at the same time, each by
itself. The planner compiles during the first steps, in a process of its own, if it still has to.
"""

from __future__ import annotations

import numpy as np

from equipoise.control.advisor import plain_advisor
from equipoise.control.findings import Question
from equipoise.control.rehearsal import rehearsal_window
from equipoise.control.settings import Settings
from equipoise.dispatch import dispatcher
from equipoise.dispatch.tokens import assign_tokens
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.problem import Problem
from equipoise.topology import Topology


def rehearse(dispatch: str, topology: Topology) -> None:
    """Split a batch, assign its tokens, and plan for a synthetic load, as a server would."""
    R = topology.num_ranks
    E = 2 * R
    placement = Contiguous().plan(Problem(np.ones((1, E)), topology, E + R)).placement
    by_name = dispatcher(dispatch, topology)
    by_source = np.ones((1, R, E), dtype=np.int64)
    quota_RS = by_name.split(by_source, placement).source_quotas[0]
    assign_tokens(np.arange(E)[:, None], quota_RS[0], placement)
    question = Question(number=1, current=placement, previous=placement, plan_above=-np.inf)
    plain_advisor(by_name, Settings(), topology, E + R)(question, rehearsal_window(placement, 64))
