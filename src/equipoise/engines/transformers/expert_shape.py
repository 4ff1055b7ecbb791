"""The shape of a model's experts, in the form that the time model needs."""

from __future__ import annotations

from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import ExpertShape

_FORMATS = {
    "fp8": "fp8_block",
    "nvfp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
    "int4": "w4a16_mxfp4",
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
}
"""Weight formats of the time model by their names in configurations; int4 counts as mxfp4."""


def expert_shape(config: ModelConfig) -> ExpertShape:
    """Return the widths, the number of experts and the weight format of a model.

    Raises
    ------
    EquipoiseError
        The configuration leaves something open, or no times are known for its weight format.
    """
    needed = ("hidden_size", "expert_intermediate_size", "top_k", "weight_type")
    for name in needed:
        if getattr(config, name) is None:
            raise EquipoiseError(
                f"{config.source}: {name} is not known, since {config.unknown[name]}; times need "
                "it."
            )
    if config.weight_type not in _FORMATS:
        raise EquipoiseError(
            f"{config.source}: weights are {config.weight_type}, and times are known of "
            f"{', '.join(_FORMATS)}."
        )
    assert config.hidden_size is not None
    assert config.expert_intermediate_size is not None
    assert config.top_k is not None
    return ExpertShape(
        hidden_size=config.hidden_size,
        inter_size=config.expert_intermediate_size,
        num_experts=config.num_experts,
        top_k=config.top_k,
        dtype=_FORMATS[config.weight_type],
    )
