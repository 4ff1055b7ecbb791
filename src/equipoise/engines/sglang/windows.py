"""SGLang's ``stat`` and ``stat_approx`` dumps: windows of counts per logical expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines.formats import Progress, TraceOptions
from equipoise.engines.sglang.recorder import load, moe_layers
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, Trace

_STAT_NOTES = (
    "Counts are summed over the ranks of the engine; where ranks see the same tokens (tensor "
    "parallelism without attention DP) they are too large by a constant factor.",
    "The engine folded slots to experts with the map in force at the dump; steps recorded before a "
    "rebalance are credited to wrong experts.",
)


def read_windows(
    path: Path, files: Sequence[Path], options: TraceOptions, progress: Progress
) -> Trace:
    """The windows of all dumps, one after the other; equal dumps count once.

    Raises
    ------
    EquipoiseError
        No load, shapes that disagree, or an option that such a dump cannot serve.
    """
    if options.iterations is not None:
        raise EquipoiseError(
            "A stat dump does not number its steps, so iterations cannot choose among them."
        )
    notes = list(_STAT_NOTES)
    dumps: dict[Path, NDArray[Any]] = {}
    for done, file in enumerate(files):
        progress(done, len(files))
        counts = _window_counts(file, load(file)["logical_count"])
        kept = np.flatnonzero(counts.any(axis=(1, 2)))
        if not len(kept):
            notes.append(f"{file.name} holds no load and was left out.")
            continue
        notes += _ring_notes(file, kept, len(counts))
        dumps[file] = counts[kept]
    progress(len(files), len(files))
    distinct = _without_copies(dumps, notes)
    if not distinct:
        raise FormatError(f"{path} holds no load at all; was the recorder started before the dump?")
    counts = np.concatenate(list(distinct.values()))
    layers = moe_layers(np.logical_or.reduce(counts, axis=(0, 2)), options.layer_ids)
    labels = {}
    if len(distinct) > 1:
        notes.append(f"The windows of {len(distinct)} dumps follow each other, see the label dump.")
        labels["dump"] = np.repeat([f.name for f in distinct], [len(c) for c in distinct.values()])
    return Trace(
        counts=counts[:, layers.rows],
        layer_ids=layers.ids,
        labels=labels,
        provenance=Provenance("sglang", str(path), (*notes, *layers.notes)),
    )


def _window_counts(path: Path, value: Any) -> NDArray[Any]:
    """``logical_count`` as ``(T, L, E)``; a list of lists is measured before it is expanded."""
    counts = _from_lists(path, value) if isinstance(value, list) else value
    if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iuf":
        raise FormatError(f"{path}: logical_count is not a table of numbers.")
    if counts.ndim not in (2, 3) or not counts.size:
        raise FormatError(
            f"{path}: logical_count has shape {counts.shape}; expected (layers, experts) or "
            "(windows, layers, experts)."
        )
    return counts if counts.ndim == 3 else counts[None]


def _from_lists(path: Path, value: list[Any]) -> NDArray[Any]:
    shape: list[int] = []
    inner: Any = value
    while isinstance(inner, list) and len(shape) < 4:
        shape.append(len(inner))
        inner = inner[0] if inner else None
    # Each number takes a byte of the file, unless the file repeats lists by reference.
    if len(shape) > 3 or prod(shape) > path.stat().st_size:
        raise FormatError(f"{path}: logical_count is nested into an impossible shape {shape}.")
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{path}: logical_count has rows of different lengths.") from error


def _ring_notes(path: Path, kept: NDArray[np.int64], num_rows: int) -> list[str]:
    """What the recorder's ring buffer did to the rows.

    A reset empties the ring but not its write position. Rows are therefore surely in time order
    only if they fill one stretch and leave others empty.
    """
    notes = []
    if len(kept) < num_rows:
        notes.append(
            f"{path.name}: {num_rows - len(kept)} of {num_rows} windows are empty; left out."
        )
    one_stretch = kept[-1] - kept[0] + 1 == len(kept)
    if num_rows > 1 and not (one_stretch and len(kept) < num_rows):
        notes.append(
            f"{path.name}: the recorder writes a ring, so the order of its windows may not be the "
            "order in time (it is if the buffer was unbounded)."
        )
    return notes


def _without_copies(
    dumps: Mapping[Path, NDArray[Any]], notes: list[str]
) -> dict[Path, NDArray[Any]]:
    """One of each content: several processes of a deployment write the same sums."""
    distinct: dict[Path, NDArray[Any]] = {}
    for file, counts in dumps.items():
        same = next((f for f, c in distinct.items() if np.array_equal(c, counts)), None)
        if same is not None:
            notes.append(f"{file.name} has the content of {same.name}; counted once.")
            continue
        first = next(iter(distinct.items()), (file, counts))
        if first[1].shape[1:] != counts.shape[1:]:
            raise FormatError(
                f"{file} has (layers, experts) {counts.shape[1:]}, {first[0].name} has "
                f"{first[1].shape[1:]}; these are dumps of different models. Read one at a time."
            )
        distinct[file] = counts
    return distinct
