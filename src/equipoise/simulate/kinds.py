"""Kinds of steps, domain and phase, of the steps with load."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.trace import Trace

_LABELS = ("domain", "phase")


def loaded_steps(trace: Trace) -> NDArray[np.bool_]:
    """Return whether each step has any load, ``(T,)``."""
    return np.asarray(trace.counts.any(axis=(1, 2)))


def kind_names(trace: Trace) -> NDArray[np.str_]:
    """Name the kind (domain and phase) of each step with load."""
    values = [trace.labels[name] for name in _LABELS if name in trace.labels]
    if not values:
        return np.full(np.count_nonzero(loaded_steps(trace)), "")
    rows = zip(*(column[loaded_steps(trace)].tolist() for column in values), strict=True)
    return np.array([repr(row) for row in rows])


def step_kinds(trace: Trace) -> NDArray[np.int64]:
    """Number the kinds (domain and phase) of the steps with load, ``(T,)``."""
    return np.unique(kind_names(trace), return_inverse=True)[1].astype(np.int64)
