"""MindSpeed-RL load files: ``{"<layer>": {"<expert>": tokens}}``; a missing expert counts 0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from equipoise.engines._shared.arrays import agreed_num_experts, naming, refuse_oversize
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import read_json
from equipoise.trace import Provenance, Trace

_Value = TypeVar("_Value")
_HEAD = re.compile(rb'\s*\{\s*"\d+"\s*:\s*\{\s*(\}|"\d+"\s*:\s*[\d.])')
_HEAD_BYTES = 1 << 12
_MAX_COUNT = 1 << 53  # beyond it a JSON number need not be exact


def matches(path: Path) -> bool:
    """Whether a JSON file starts as a map of layers to maps of experts to numbers."""
    try:
        with path.open("rb") as file:
            return _HEAD.match(file.read(_HEAD_BYTES)) is not None
    except OSError:
        return False


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read one aggregate of counts: a trace of one step.

    Raises
    ------
    FormatError
        Keys are not numbers, or counts are not whole; the message names layer and expert.
    """
    with naming(path):
        try:
            table = msgspec.convert(read_json(path), dict[str, dict[str, float]])
        except (msgspec.ValidationError, UnicodeEncodeError) as error:  # a lone surrogate
            raise FormatError(
                f'{path}: {error}. Expected {{"<layer>": {{"<expert>": tokens}}}}.'
            ) from error
        progress(1, 1)
        return _trace(path, table, options)


def _trace(path: Path, table: dict[str, dict[str, float]], options: TraceOptions) -> Trace:
    rows = _by_number(table, "the file")
    layers = sorted(rows)
    cells = {layer: _by_number(rows[layer], f"layer {layer}") for layer in layers}
    largest = max((expert for row in cells.values() for expert in row), default=-1)
    if largest < 0:
        raise EquipoiseError("No expert of any layer has a count; expected at least one.")
    E, notes = agreed_num_experts(largest, options.num_experts)
    refuse_oversize((len(layers), E), 8, "Counts (layers, experts)")
    counts = np.zeros((1, len(layers), E), dtype=np.int64)
    for i, layer in enumerate(layers):
        for expert, tokens in cells[layer].items():
            if not (0 <= tokens <= _MAX_COUNT and tokens.is_integer()):
                raise EquipoiseError(
                    f"Layer {layer}, expert {expert} has {tokens} tokens; "
                    "expected a whole number >= 0."
                )
            counts[0, i, expert] = int(tokens)
    return Trace(
        counts=counts,
        layer_ids=tuple(layers),
        provenance=Provenance("mindspeed", str(path), notes),
    )


def _by_number(table: dict[str, _Value], where: str) -> dict[int, _Value]:
    """Return the table with keys as numbers; raises ``EquipoiseError`` for bad or repeated ones."""
    numbered: dict[int, _Value] = {}
    for key, value in table.items():
        if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) in numbered:
            raise EquipoiseError(
                f"The key {key!r} of {where} is not a plain number, or appears twice; "
                "expected layer and expert numbers, each once."
            )
        numbered[int(key)] = value
    return numbered


FORMAT = TraceFormat(
    name="mindspeed",
    summary="MindSpeed-RL JSON: layer to expert to tokens, one aggregate",
    matches=matches,
    read=read,
    options=frozenset({"num_experts"}),
)
