"""Maps of a model with a known configuration, which completes what the files do not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import MapReading, detect_map, examine_map
from equipoise.engines.transformers.config import ModelConfig
from equipoise.placement import Placement


def examine_map_of(path: Path, context: MapContext, model: ModelConfig | None) -> MapReading:
    """Read a map, and take missing numbers of experts and layers from the model.

    Parameters
    ----------
    path
        Path of the map.
    context
        Facts that the file does not contain.
    model
        Configuration of the model; ``None`` if it is unknown.

    Raises
    ------
    EquipoiseError
        Whatever ``examine_map`` refuses, or a map with other experts or layers than the model.
    """
    reading = examine_map(path, context)
    if model is None:
        return reading
    model.check_fits(f"{path}", reading.placement.num_experts, ())
    told = _told(path, context, reading.placement, model)
    reading = reading if told == context else examine_map(path, told)
    model.check_fits(f"{path}", reading.placement.num_experts, reading.placement.layer_ids)
    return reading


def _told(path: Path, context: MapContext, found: Placement, model: ModelConfig) -> MapContext:
    """Complete the context with the model's experts, and its layers if rows have no numbers."""
    decoder_rows = detect_map(path).decoder_rows
    numbers = {len(model.moe_layer_ids or ()), model.num_hidden_layers if decoder_rows else 0}
    has_no_ids = found.layer_ids == tuple(range(found.num_layers)) and found.num_layers in numbers
    return replace(
        context,
        num_experts=context.num_experts or model.num_experts,
        layer_ids=context.layer_ids or (model.moe_layer_ids if has_no_ids else found.layer_ids),
        num_hidden_layers=context.num_hidden_layers
        or (model.num_hidden_layers if decoder_rows else None),
    )
