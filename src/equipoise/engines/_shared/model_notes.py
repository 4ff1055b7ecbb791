"""Notes on a launch that follow from the model's configuration, the same for all engines."""

from __future__ import annotations

from collections.abc import Collection

from equipoise.engines.transformers.config import ModelConfig
from equipoise.placement import Placement


def architecture_notes(
    engine: str, config: ModelConfig | None, balanced: Collection[str], otherwise: str
) -> tuple[str, ...]:
    """Make a note if the engine does not balance the model's architecture, or if it is unknown.

    Parameters
    ----------
    engine
        Engine and release that was examined.
    config
        Configuration of the model, if it is known.
    balanced
        Architectures that the engine balances.
    otherwise
        End of a sentence that says what happens with other architectures.
    """
    if config is None or config.architecture is None:
        return (
            f"The model's architecture was not checked: {engine} balances those that "
            f"equipoise explain launch lists, and with any other {otherwise}.",
        )
    if config.architecture in balanced:
        return ()
    return (
        f"{config.architecture} is not among the architectures that {engine} balances (listed in "
        f"equipoise explain launch): {otherwise}.",
    )


def speculative_notes(
    config: ModelConfig | None, placement: Placement, missing: str, present: str
) -> tuple[str, ...]:
    """Make a note if the model has speculative layers.

    Parameters
    ----------
    config
        Configuration of the model, if it is known.
    placement
        Placement in the map.
    missing, present
        Sentences on what follows if the map has no rows for these layers, and if it has.
    """
    if config is None:
        return ()
    layers = config.speculative_layer_ids
    if layers is None:
        why = config.unknown["speculative_layer_ids"]
        return (f"Whether the model has speculative (MTP) layers is not known, since {why}.",)
    if not layers:
        return ()
    several = len(layers) > 1
    what = f"layers {layers[0]} to {layers[-1]}" if several else f"layer {layers[0]}"
    says = present if set(layers) <= set(placement.layer_ids) else missing
    return (f"The model has the speculative (MTP) {what}. {says}",)
