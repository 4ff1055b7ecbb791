"""Bytes of KV cache that a token takes, from a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.engines.transformers.config_keys import Keys, UnknownFactError
from equipoise.engines.transformers.model_types import ModelType


def kv_bytes_per_token(
    keys: Keys, model_type: ModelType, num_layers: int, number_bytes: int
) -> int:
    """Return the bytes of a token in the caches of all layers, before they are split over ranks.

    Layers of sliding or chunked attention count in full, though they free what leaves their window.

    Raises
    ------
    UnknownFactError
        The cache has no fixed size per token, or a different one in each engine.
    """
    if model_type.cache:
        raise UnknownFactError(model_type.cache)
    whole, in_window = model_type.layers_with_cache(keys, num_layers)
    return _numbers_per_token(keys) * (whole + in_window) * number_bytes


def _numbers_per_token(keys: Keys) -> int:
    """Return how many numbers a token leaves in one layer's cache."""
    if keys.has("kv_lora_rank"):  # latent attention: one vector for all heads
        return keys.whole("kv_lora_rank") + keys.whole("qk_rope_head_dim")
    heads = keys.whole("num_attention_heads", low=1)
    head_dim = keys.whole("head_dim", default=keys.whole("hidden_size") // heads)
    return 2 * keys.whole("num_key_value_heads", default=heads) * head_dim


def cache_number_bytes(quantisation: Mapping[str, Any] | None, plain: int) -> int:
    """Return the bytes of a number in the cache: as in the weights unless the checkpoint scales it.

    Raises
    ------
    UnknownFactError
        The scheme does not have 8 bits.
    """
    section = quantisation or {}
    scheme, algorithm = section.get("kv_cache_scheme"), section.get("kv_cache_quant_algo")
    if scheme is None and algorithm is None:
        return plain
    if algorithm == "FP8" or (isinstance(scheme, dict) and scheme.get("num_bits") == 8):
        return 1
    raise UnknownFactError(f"a KV cache of the scheme {str(algorithm or scheme)[:40]} is not known")
