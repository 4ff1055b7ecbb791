"""The built-in public models, for what-if answers."""

from __future__ import annotations

from equipoise.engines.transformers.config import ModelConfig, model_names, read_model_config
from equipoise.simulate.what_if import ServedModel


def served_models() -> dict[str, ServedModel]:
    """Return all built-in models by name."""
    return {name: _served(name, read_model_config(name)) for name in model_names()}


def _served(name: str, config: ModelConfig) -> ServedModel:
    assert config.moe_layer_ids is not None  # true for all built-in models
    return ServedModel(
        name=name,
        shape=config.expert_shape,
        num_layers=len(config.moe_layer_ids),
        own_work=config.own_work,
    )
