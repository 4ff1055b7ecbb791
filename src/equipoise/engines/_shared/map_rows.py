"""Conversion between the rows of a file and placements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.map_slots import shape_of
from equipoise.engines.formats import MapContext, RawMap
from equipoise.errors import EquipoiseError, argument
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement

MAX_CELLS = 1 << 27  # layers x ranks x experts of a placement's copy counts: 1 GiB
MAX_LAYERS = 1 << 12  # ten times more than the layers of any model


def default_row(num_slots: int, num_experts: int) -> NDArray[np.int64]:
    """Make the row of a layer without experts, ``(S,)``: slot ``s`` holds ``s % E``."""
    return np.arange(num_slots, dtype=np.int64) % num_experts


def rows_by_layer(placement: Placement, num_rows: int) -> NDArray[np.int64]:
    """Make one row per decoder layer, ``(num_rows, S)``; dense layers hold ``s % E``.

    Raises
    ------
    EquipoiseError
        A layer of the placement without a row, or rows that are too large for memory.
    """
    if num_rows * placement.num_slots > MAX_CELLS:
        raise EquipoiseError(
            f"{num_rows} decoder layers are more than any model has; "
            f"correct {argument('num_hidden_layers')}."
        )
    outside = [layer for layer in placement.layer_ids if layer >= num_rows]
    if outside:
        raise EquipoiseError(
            f"The placement has layer {format_ids(outside)}, the file has rows 0 to "
            f"{num_rows - 1}. Leave draft layers out, or correct {argument('num_hidden_layers')}."
        )
    rows = np.tile(default_row(placement.num_slots, placement.num_experts), (num_rows, 1))
    rows[list(placement.layer_ids)] = placement.slots
    return rows


def format_rows(rows: NDArray[np.int64]) -> str:
    """Write rows as a JSON list, one row per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows.tolist()) + "\n]"


def build(
    rows: Sequence[Sequence[Any]], layer_ids: Sequence[int], raw: RawMap, context: MapContext
) -> Placement:
    """Make the placement of rows that have passed the checks.

    Raises
    ------
    EquipoiseError
        An unknown number of ranks, or sizes that are too large for memory.
    """
    shape = shape_of(raw, context)
    if shape.num_ranks is None:
        raise EquipoiseError(
            "The file does not say over how many ranks its slots are spread; "
            f"give {argument('num_ranks')}."
        )
    if len(rows) * shape.num_ranks * shape.num_experts > MAX_CELLS:
        raise EquipoiseError(
            f"{len(rows)} layers, {shape.num_ranks} ranks and {shape.num_experts} experts are more "
            "than any deployment; are the numbers right?"
        )
    return Placement(
        np.array(rows, dtype=np.int64),
        num_ranks=shape.num_ranks,
        num_experts=shape.num_experts,
        layer_ids=layer_ids,
    )


def build_ordered(raw: RawMap, context: MapContext) -> Placement:
    """Make a placement by ``build`` from rows that are the MoE layers in order."""
    return build(raw.rows, context.layer_ids or range(len(raw.rows)), raw, context)
