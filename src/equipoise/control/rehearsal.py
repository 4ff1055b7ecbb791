"""Loads to rehearse on: planning starts and compiles before there is anything to plan for."""

from __future__ import annotations

import numpy as np

from equipoise.placement import Placement
from equipoise.trace import Trace

_LEAST, _MOST = 20, 200  # assignments of an expert in a step: enough to be planned for


def rehearsal_window(placement: Placement, num_steps: int) -> Trace:
    """Loads of the size that a look at this placement gives, drawn with a fixed seed.

    Every expert of a layer has a load of its own in all steps, so that there is something to even
    out.
    """
    rng = np.random.default_rng(0)
    shape = placement.num_layers, placement.num_experts
    steady = rng.integers(_LEAST, _MOST, shape)
    counts = steady + rng.integers(0, _LEAST, (num_steps, *shape))
    return Trace(counts=counts, layer_ids=placement.layer_ids)
