"""ADRS ``expert-load.json``: a list of steps with the logical experts' loads of every layer.

Such files have hundreds of megabytes, so they are read as a stream, one step at a time.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import agreed_layer_ids, compact, naming, numbers
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError
from equipoise.json_text import head_keys, stream_items
from equipoise.trace import Provenance, Trace

_HISTORY = "load_history"
_LOAD = "logical_expert_load"
_LARGEST_COUNT = 2.0**53  # beyond it a JSON number need not be exact


def matches(path: Path) -> bool:
    """Whether a file starts as a JSON object with ``load_history`` among its first keys."""
    try:
        return _HISTORY in head_keys(path)
    except OSError:
        return False


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a load history; steps are numbered from 0 in the order of the file.

    Raises
    ------
    FormatError
        The JSON is damaged, or a step differs in shape or is not whole numbers; the message names
        step and layer.
    """
    start, stop = options.iterations or (0, None)
    if start < 0 or (stop is not None and stop <= start):
        raise EquipoiseError(
            f"Iterations [{start}, {stop}) are empty or negative; steps count from 0."
        )
    steps: list[NDArray[np.integer]] = []
    with naming(path), path.open("rb") as file:
        size = path.stat().st_size
        history = stream_items(file, _HISTORY, str(path))
        for step, item in enumerate(islice(history, stop)):
            progress(file.tell(), size)
            if step >= start:
                steps.append(_loads(step, item, steps[0].shape if steps else None))
        progress(size, size)
        if not steps:
            raise EquipoiseError(
                f"No step was found in {_HISTORY}"
                + (f" within [{start}, {stop})." if options.iterations else "; expected a list.")
            )
        return Trace(
            counts=np.stack(steps),
            layer_ids=agreed_layer_ids(None, options.layer_ids, len(steps[0])),
            step_ids=np.arange(start, start + len(steps)),
            provenance=Provenance("adrs", str(path)),
        )


def _loads(step: int, item: Any, shape: tuple[int, ...] | None) -> NDArray[np.integer]:
    """Return the loads of a step, ``(L, E)``, in the smallest type that holds them."""
    rows = item.get(_LOAD) if isinstance(item, dict) else None
    if not isinstance(rows, list) or not rows:
        raise EquipoiseError(
            f"Step {step} has no {_LOAD}; expected a list of loads for each layer."
        )
    if shape is not None and len(rows) != shape[0]:
        raise EquipoiseError(
            f"Step {step} has {len(rows)} layers; the steps before have {shape[0]}."
        )
    first = rows[0]
    width = shape[1] if shape is not None else len(first) if isinstance(first, list) else 0
    return compact(np.stack([_layer(step, i, row, width) for i, row in enumerate(rows)]))


def _layer(step: int, layer: int, row: Any, width: int) -> NDArray[np.integer]:
    where = f"Step {step}, layer row {layer}"
    if not isinstance(row, list) or len(row) != width or not row:
        found = f"{len(row)} loads" if isinstance(row, list) else f"a {type(row).__name__}"
        raise EquipoiseError(f"{where} has {found}; expected {width}, one an expert.")
    values = numbers(row, where)
    bad = np.flatnonzero(~((values >= 0) & (values < _LARGEST_COUNT) & (values == np.rint(values))))
    if len(bad):
        raise EquipoiseError(
            f"{where}, expert {bad[0]} has load {row[bad[0]]}; expected a whole number >= 0."
        )
    return values.astype(np.int64)


FORMAT = TraceFormat(
    name="adrs",
    summary="ADRS expert-load.json: load_history with the logical expert loads of each step",
    matches=matches,
    read=read,
    options=frozenset({"layer_ids", "iterations"}),
)
