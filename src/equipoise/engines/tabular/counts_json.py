"""Counts that a small script dumped as JSON, if their meaning is certain.

A list of layers with one count an expert, or an object from layer to such counts; by itself, or
under a key such as ``counts``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import agreed_layer_ids, naming, numbers, refuse_map
from equipoise.engines.ascend import load as mindspeed
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.layer_lines import COUNTS, LAYERS
from equipoise.errors import EquipoiseError
from equipoise.json_text import head_keys, read_json
from equipoise.layer_ids import format_ids
from equipoise.trace import MAX_COUNT, Provenance, Trace

_LAYER = re.compile(r"(?:layers?[ _.-]?)?([0-9]{1,6})", re.IGNORECASE)
_EXPERT = re.compile(r"(?:experts?[ _.-]?)?([0-9]{1,5})", re.IGNORECASE)
_ROWS = re.compile(rb"\s*\[\s*\[\s*(?:\[\s*)?[\d.]")
_HEAD_BYTES = 1 << 12
_OTHERS = {*LAYERS, "record_type"}  # of records that are one of several in a file
_STATED = ("num_layers", "num_experts")


def matches(path: Path) -> bool:
    """Whether a file starts as a table of counts, or an object of layers or of such a table."""
    try:
        if not path.is_file() or mindspeed.matches(path):
            return False
        with path.open("rb") as file:
            if _ROWS.match(file.read(_HEAD_BYTES)):
                return True
        keys = head_keys(path)
    except OSError:
        return False
    return _are_layers(keys) or (len({*keys} & {*COUNTS}) == 1 and not {*keys} & _OTHERS)


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read one window of counts, or with three axes several.

    Raises
    ------
    FormatError
        The layers have different lengths, an entry is not a count, or the table holds expert ids.
    """
    with naming(path):
        root = read_json(path)
        table, notes = _table(root)
        layers, rows = _layers(table)
        if len({row.shape for row in rows}) > 1:
            raise EquipoiseError(_different_sizes(layers, rows))
        counts = np.stack(rows).astype(np.int64)
        if layers is None:
            refuse_map(counts)
        if counts.ndim == 3:
            notes.append(f"The first axis was read as {len(counts)} windows in time.")
        _check_stated(root, counts)
        progress(1, 1)
        return Trace(
            counts=counts,
            layer_ids=agreed_layer_ids(layers, options.layer_ids, counts.shape[-2]),
            provenance=Provenance("counts", str(path), tuple(notes)),
        )


def _are_layers(keys: list[str]) -> bool:
    return bool(keys) and all(_LAYER.fullmatch(key) for key in keys)


def _table(root: Any) -> tuple[Any, list[str]]:
    """Return the part of a document that holds the counts, and notes on the rest."""
    if not isinstance(root, dict) or _are_layers(list(root)):
        return root, []
    named = [name for name in COUNTS if name in root]
    if len(named) != 1:
        raise EquipoiseError(
            "Expected a list of layers with one count an expert, an object from layer to such "
            f"counts, or one of the keys {', '.join(COUNTS)} with either."
        )
    unknown = sorted(key[:40] for key in root.keys() - {*named, *_STATED})[:8]
    notes = [f"Keys not used: {', '.join(unknown)}."] if unknown else []
    return root[named[0]], notes


def _layers(table: Any) -> tuple[list[int] | None, list[NDArray[np.float64]]]:
    """Return the layer numbers, if stated, and each layer's counts, with or without windows."""
    if isinstance(table, dict) and _are_layers(list(table)):
        by_layer = _by_number(table, _LAYER, "layer")
        return list(by_layer), [_experts(row, layer) for layer, row in by_layer.items()]
    if not isinstance(table, list) or not table:
        raise EquipoiseError("Expected the counts of at least one layer.")
    if isinstance(table[0], list) and table[0] and isinstance(table[0][0], list):
        windows = [_layers(window)[1] if isinstance(window, list) else [] for window in table]
        sizes = {tuple(row.shape for row in rows) for rows in windows}
        if len(sizes) > 1 or len({*next(iter(sizes))}) != 1 or windows[0][0].ndim > 1:
            raise EquipoiseError("Expected windows of equally many layers and experts.")
        return None, [np.stack(rows) for rows in windows]
    return None, [_experts(row, row_number) for row_number, row in enumerate(table)]


def _experts(row: Any, layer: int) -> NDArray[np.float64]:
    """Return the counts of a layer, ``(E,)``; experts that an object leaves out count 0."""
    where = f"Layer {layer}"
    if isinstance(row, list):
        values = numbers(row, where)
    elif isinstance(row, dict) and all(_EXPERT.fullmatch(key) for key in row):
        by_expert = _by_number(row, _EXPERT, "expert")
        values = np.zeros(max(by_expert, default=-1) + 1)
        values[list(by_expert)] = numbers(list(by_expert.values()), where)
    else:
        raise EquipoiseError(f"{where} is neither a list nor an object of counts of experts.")
    if not len(values) or not ((values >= 0) & (values < MAX_COUNT) & (values % 1 == 0)).all():
        raise EquipoiseError(f"{where}: expected whole numbers from 0 to 2^48, one an expert.")
    return values


def _by_number(table: dict[str, Any], pattern: re.Pattern[str], what: str) -> dict[int, Any]:
    """Return the entries by the number in their keys, ascending."""
    found: dict[int, Any] = {}
    for key, value in table.items():
        match = pattern.fullmatch(key)
        assert match is not None  # all keys were looked at
        number = int(match[1])
        if number in found:
            raise EquipoiseError(f"The key {key[:40]!r} is the second one of {what} {number}.")
        found[number] = value
    return dict(sorted(found.items()))


def _different_sizes(layers: list[int] | None, rows: list[NDArray[np.float64]]) -> str:
    widest = max(len(row) for row in rows)
    numbers_of = layers or range(len(rows))
    few = [n for n, row in zip(numbers_of, rows, strict=True) if len(row) < widest]
    return (
        f"Layers {format_ids(few)[:80]} have fewer than {widest} experts: layers with different "
        "numbers of experts cannot be planned together. Keep layers of one size in a file."
    )


def _check_stated(root: Any, counts: NDArray[np.int64]) -> None:
    stated = [root.get(name) if isinstance(root, dict) else None for name in _STATED]
    for name, wanted, found in zip(_STATED, stated, counts.shape[-2:], strict=True):
        if wanted not in (None, found):
            raise EquipoiseError(f"The file states {name} {str(wanted)[:20]}, but has {found}.")


FORMAT = TraceFormat(
    name="counts",
    summary="counts dumped as JSON: a list of layers, or an object from layer to counts, also "
    "under a key counts (.json)",
    matches=matches,
    read=read,
    options=frozenset({"layer_ids"}),
)
