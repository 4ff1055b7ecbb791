"""SGLang's ``stat`` and ``stat_approx`` dumps: windows of counts per logical expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.engines.formats import Progress, TraceOptions
from equipoise.engines.sglang.recorder import load, moe_layers
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.trace import Provenance, Trace

_LAYOUT = "logical_count_layout"
_FIRST_AXIS: dict[str, Literal["step", "rank"]] = {
    "rank_layer_expert": "rank",
}
_KNOWN_KEYS = {"rank", "logical_count", "average_utilization_rate_over_window", _LAYOUT}
_STAT_NOTES = (
    "Counts are summed over the ranks of the engine; where ranks see the same tokens (tensor "
    "parallelism without attention DP) they are too large by a constant factor.",
    "The engine folded slots to experts with the map in force at the dump; steps recorded before a "
    "rebalance are counted for the wrong experts.",
)


def read_windows(
    path: Path, files: Sequence[Path], options: TraceOptions, progress: Progress
) -> Trace:
    """Read the windows of all dumps, one after the other; equal dumps count once.

    Raises
    ------
    EquipoiseError
        No load, shapes that disagree, or an option that such a dump cannot serve.
    """
    if options.iterations is not None:
        raise EquipoiseError(
            "A stat dump does not number its steps, so iterations cannot be selected."
        )
    notes: list[str] = []
    dumps: dict[Path, NDArray[Any]] = {}  # (T, R, L, E) each; R is 1 where ranks were summed
    for done, file in enumerate(files):
        progress(done, len(files))
        counts = _windows(file, load(file), options, notes)
        kept = np.flatnonzero(counts.any(axis=(1, 2, 3)))
        if not len(kept):
            notes.append(f"{file.name} holds no load and was left out.")
            continue
        notes += _ring_notes(file, kept, len(counts))
        dumps[file] = counts[kept]
    progress(len(files), len(files))
    distinct = _without_copies(dumps, notes)
    if not distinct:
        raise FormatError(f"{path} holds no load at all; was the recorder started before the dump?")
    cube = np.concatenate(list(distinct.values()))
    layers = moe_layers(np.logical_or.reduce(cube, axis=(0, 1, 3)), options.layer_ids)
    cube = cube[:, :, layers.rows]
    notes[:0] = _STAT_NOTES if cube.shape[1] == 1 else _STAT_NOTES[1:]
    labels = {}
    if len(distinct) > 1:
        notes.append(f"The windows of {len(distinct)} dumps follow each other, see the label dump.")
        labels["dump"] = np.repeat([f.name for f in distinct], [len(c) for c in distinct.values()])
    return Trace(
        counts=cube.sum(axis=1),
        layer_ids=layers.ids,
        source_counts=cube if cube.shape[1] > 1 else None,
        labels=labels,
        provenance=Provenance("sglang", str(path), (*notes, *layers.notes)),
    )


def _windows(
    path: Path, root: dict[str, Any], options: TraceOptions, notes: list[str]
) -> NDArray[Any]:
    """Return the counts of a dump by window and source rank, ``(T, R, L, E)``."""
    unknown = sorted(root.keys() - _KNOWN_KEYS)
    if unknown:
        notes.append(f"{path.name}: keys not used: {', '.join(key[:40] for key in unknown[:8])}.")
    counts = _window_counts(path, root["logical_count"])
    layout = root.get(_LAYOUT)
    if layout not in (None, *_FIRST_AXIS) and options.first_axis is None:
        raise FormatError(
            f"{path} states the layout {str(layout)[:40]!r}, which is not known here; "
            "give first_axis, step or rank."
        )
    axis = options.first_axis or _FIRST_AXIS.get(str(layout), "step")
    if layout in _FIRST_AXIS and axis != _FIRST_AXIS[layout]:
        notes.append(f"{path.name} states the layout {layout}; its first axis was read as {axis}.")
    if axis == "rank":
        notes.append(f"{path.name}: the first axis was read as {len(counts)} source ranks.")
        return counts[None]
    if layout is None and options.first_axis is None and len(counts) > 1:
        notes.append(
            Message(
                f"{path.name}: the first axis was read as {len(counts)} windows in time; if it is "
                f"ranks, give {argument('first_axis')} rank."
            )
        )
    return counts[:, None]


def _window_counts(path: Path, value: Any) -> NDArray[Any]:
    """Return ``logical_count`` as ``(T, L, E)``; lists are measured before they are expanded."""
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
    flat = value
    for size in shape[1:]:
        if any(not isinstance(row, list) or len(row) != size for row in flat):
            raise FormatError(f"{path}: logical_count has rows of different lengths.")
        flat = list(chain.from_iterable(flat))
    if not set(map(type, flat)) <= {int, float}:  # NumPy would give each text the longest's room
        raise FormatError(f"{path}: logical_count is not a table of numbers.")
    try:
        return np.array(flat).reshape(shape)
    except OverflowError as error:
        raise FormatError(f"{path}: logical_count is not a table of numbers.") from error


def _ring_notes(path: Path, kept: NDArray[np.int64], num_rows: int) -> list[str]:
    """Return notes on the effects of the recorder's ring buffer on the rows.

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
    """Drop dumps with equal content: several processes of a deployment write the same sums."""
    distinct: dict[Path, NDArray[Any]] = {}
    for file, counts in dumps.items():
        same = next((f for f, c in distinct.items() if np.array_equal(c, counts)), None)
        if same is not None:
            notes.append(f"{file.name} has the content of {same.name}; counted once.")
            continue
        first = next(iter(distinct.items()), (file, counts))
        if first[1].shape[1:] != counts.shape[1:]:
            raise FormatError(
                f"{file} has (ranks, layers, experts) {counts.shape[1:]}, {first[0].name} has "
                f"{first[1].shape[1:]}; these are dumps of different models. Read one at a time."
            )
        distinct[file] = counts
    return distinct
