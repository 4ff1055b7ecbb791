"""What redundant slots take of a model's memory, in words and as a document."""

from __future__ import annotations

from dataclasses import asdict

from equipoise.engines.transformers.config import ModelConfig


def model_document(config: ModelConfig | None) -> dict[str, object] | None:
    """The facts of a model's configuration, for programs."""
    return None if config is None else asdict(config) | {"slot_bytes": config.slot_bytes}


def slot_text(config: ModelConfig, expert_bytes: int | None, slots: int = 1) -> str:
    """What redundant slots on every rank take, and the KV cache that would fit there.

    Parameters
    ----------
    config
        The model.
    expert_bytes
        Bytes of one expert in one layer, which may be known where the configuration leaves them
        open.
    slots
        Slots of a layer that every rank has beyond the fewest.
    """
    if expert_bytes is None or config.moe_layer_ids is None:
        reasons = (config.unknown.get(name) for name in ("moe_layer_ids", "expert_bytes"))
        return f"What a redundant slot takes is not known, since {next(filter(None, reasons))}."
    layers = len(config.moe_layer_ids)
    size = slots * layers * expert_bytes
    what = "One redundant slot takes" if slots == 1 else f"{slots} redundant slots take"
    return (
        f"{what} {size / 1e9:.3f} GB of every rank's memory: "
        f"{_expert(config, expert_bytes)} in each of {layers} MoE layers. {_tokens(config, size)}"
        f"{_speculative(config, slots * expert_bytes)}"
    )


def _expert(config: ModelConfig, expert_bytes: int) -> str:
    text = f"{expert_bytes:,} bytes an expert"
    if config.weight_type is None:
        return text
    scales = f", {config.scale_bytes:,} of them scales" if config.scale_bytes else ""
    return f"{text} ({config.weight_type}{scales})"


def _tokens(config: ModelConfig, size: int) -> str:
    if not config.kv_bytes_per_token:
        why = config.unknown.get("kv_bytes_per_token", "no layer keeps keys and values")
        return f"How many tokens of KV cache would fit there is not known, since {why}."
    window = (
        f" {config.num_window_layers} of the layers keep only a window of the last tokens, so long "
        "contexts take less."
        if config.num_window_layers
        else ""
    )
    return (
        f"The KV cache of {size // config.kv_bytes_per_token:,} tokens would fit there, at "
        f"{config.kv_bytes_per_token:,} bytes a token with all heads on its rank.{window}"
    )


def _speculative(config: ModelConfig, layer_bytes: int) -> str:
    if not config.speculative_layer_ids:
        return ""
    number = len(config.speculative_layer_ids)
    return (
        f" An engine that balances the {'layer' if number == 1 else f'{number} layers'} of "
        f"speculative decoding as well takes {number * layer_bytes / 1e9:.3f} GB more."
    )
