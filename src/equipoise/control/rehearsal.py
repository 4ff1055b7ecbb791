"""Made-up loads for a rehearsal, so that the planner is started and compiled before it is used."""

from __future__ import annotations

import numpy as np

from equipoise.placement import Placement
from equipoise.trace import Trace

_LEAST, _MOST = 20, 200  # assignments of an expert in a step: enough for a plan


def rehearsal_window(placement: Placement, num_steps: int) -> Trace:
    """Draw loads of the size of a real window for this placement, with a fixed seed.

    Every expert has its own load, the same in all steps, so that the loads are out of balance.
    """
    rng = np.random.default_rng(0)
    shape = placement.num_layers, placement.num_experts
    steady = rng.integers(_LEAST, _MOST, shape)
    counts = steady + rng.integers(0, _LEAST, (num_steps, *shape))
    return Trace(counts=counts, layer_ids=placement.layer_ids)
