"""The labels of steps, as far as they name kinds of traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equipoise.trace import Trace

_MOST_VALUES = 32  # of a label, beyond which it names steps rather than kinds of traffic


def without_fine_labels(trace: Trace) -> tuple[Trace, list[str]]:
    """The trace without labels of too many values, and a note about each."""
    notes = [
        f"The label {name} has {len(set(values.tolist()))} values and is not broken down."
        for name, values in trace.labels.items()
        if len(set(values.tolist())) > _MOST_VALUES
    ]
    kept = {n: v for n, v in trace.labels.items() if len(set(v.tolist())) <= _MOST_VALUES}
    return replace(trace, labels=kept), notes


def label_groups(trace: Trace) -> NDArray[np.int64]:
    """A number for each step, equal where all labels are, ``(T,)``."""
    if not trace.labels:
        return np.zeros(trace.num_steps, dtype=np.int64)
    table = np.stack([np.unique(v, return_inverse=True)[1] for v in trace.labels.values()], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
