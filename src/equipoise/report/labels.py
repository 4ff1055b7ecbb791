"""Labels of steps that name kinds of traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equipoise.trace import MAP_LABEL, Trace

_MOST_VALUES = 32  # a label with more values names steps, not kinds of traffic


def without_fine_labels(trace: Trace) -> tuple[Trace, list[str]]:
    """Remove labels with too many values from a trace; return a note about each."""
    notes = [
        f"The label {name} has {len(set(values.tolist()))} values and is not broken down."
        for name, values in trace.labels.items()
        if len(set(values.tolist())) > _MOST_VALUES
    ]
    kept = {n: v for n, v in trace.labels.items() if len(set(v.tolist())) <= _MOST_VALUES}
    return replace(trace, labels=kept), notes


def traffic_labels(trace: Trace) -> dict[str, NDArray[np.str_]]:
    """Return the labels that name kinds of traffic: all but that of the map."""
    return {name: values for name, values in trace.labels.items() if name != MAP_LABEL}


def label_groups(trace: Trace) -> NDArray[np.int64]:
    """Number the steps so that steps with equal labels have equal numbers, ``(T,)``."""
    if not trace.labels:
        return np.zeros(trace.num_steps, dtype=np.int64)
    table = np.stack([np.unique(v, return_inverse=True)[1] for v in trace.labels.values()], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
