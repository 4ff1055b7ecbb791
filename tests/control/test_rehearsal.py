from __future__ import annotations

import numpy as np
import pytest

from equipoise.control.advisor import plain_advisor
from equipoise.control.findings import Question
from equipoise.control.rehearsal import rehearsal_window
from equipoise.control.settings import Settings
from equipoise.dispatch import MinMax
from equipoise.placement import Placement
from equipoise.topology import Topology


@pytest.mark.parametrize("redundant", [0, 4])
def test_the_planner_makes_a_plan_for_it_as_for_real_loads(redundant):
    row = [expert % 16 for expert in range(16 + redundant)]
    current = Placement([row] * 2, num_ranks=4, num_experts=16, layer_ids=(3, 7))
    window = rehearsal_window(current, 32)
    assert window.counts.shape == (32, 2, 16)
    assert window.layer_ids == (3, 7)
    question = Question(number=1, current=current, previous=None, plan_above=-np.inf)
    advisor = plain_advisor(MinMax(), Settings(), Topology(4), current.num_slots)
    found = advisor(question, window)
    assert found.proposal not in (None, current)
    assert found.predicted is not None
