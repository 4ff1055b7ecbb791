"""Maps of a model whose configuration is known, which says what their files leave open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import MapReading, detect_map, examine_map
from equipoise.engines.transformers.config import ModelConfig
from equipoise.placement import Placement


def examine_map_of(path: Path, context: MapContext, model: ModelConfig | None) -> MapReading:
    """Read a map; experts and layers that neither the file nor the context says are the model's.

    Parameters
    ----------
    path
        The map.
    context
        What the file does not say.
    model
        The model; ``None`` if it is not known.

    Raises
    ------
    EquipoiseError
        What ``examine_map`` refuses; a map of other experts or layers than the model's.
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
    """The context with what the model adds: its experts, and its layers where rows have no ids."""
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
