"""The work of a model apart from its routed experts, for the time of a step."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.engines.transformers.config_keys import Keys, MissingKeyError, UnknownFactError
from equipoise.engines.transformers.model_types import SHARED_EXPERTS, SHARED_WIDTH
from equipoise.errors import EquipoiseError
from equipoise.simulate.own_work import OwnWork

_CACHE_NUMBER_BYTES = 2  # bfloat16, what attention kernels read by default


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """One layer's attention: its weights, and the work of a pair of tokens."""

    weights: int
    cache_numbers: int
    decode_pair_flops: int
    prefill_pair_flops: int


def own_work(
    keys: Keys, *, width: int, num_layers: int, num_moe_layers: int, weight_bytes: int
) -> OwnWork:
    """Return the work of attention, shared experts and dense layers, without embeddings.

    Layers of sliding or linear attention count as if they kept every token.

    Parameters
    ----------
    width
        Intermediate size of a routed expert.
    weight_bytes
        Bytes of one weight outside the routed experts.

    Raises
    ------
    UnknownFactError
        Keys are missing, or layers differ.
    """
    try:
        return _counted(keys, width, num_layers, num_moe_layers, weight_bytes)
    except MissingKeyError as error:
        raise UnknownFactError(f"{', '.join(error.names)} is missing") from error
    except EquipoiseError as error:  # which the experts, that this is about, do not need
        raise UnknownFactError("its layers differ in their parts other than the experts") from error


def _counted(
    keys: Keys, width: int, num_layers: int, num_moe_layers: int, weight_bytes: int
) -> OwnWork:
    hidden = keys.whole("hidden_size")
    attention = _latent(keys, hidden) if keys.has("kv_lora_rank") else _grouped(keys, hidden)
    dense_layers = num_layers - num_moe_layers
    dense = 3 * hidden * _dense_width(keys)
    shared = 3 * hidden * _shared_width(keys, width)
    weights = num_layers * attention.weights + dense_layers * dense + num_moe_layers * shared
    return OwnWork(
        num_moe_layers=num_moe_layers,
        weight_bytes=weights * weight_bytes,
        token_flops=2 * weights,
        kv_bytes_per_token=num_layers * attention.cache_numbers * _CACHE_NUMBER_BYTES,
        decode_pair_flops=num_layers * attention.decode_pair_flops,
        prefill_pair_flops=num_layers * attention.prefill_pair_flops,
        most_context_tokens=keys.whole("index_topk", low=1) if keys.has("index_topk") else None,
    )


def _grouped(keys: Keys, hidden: int) -> _Attention:
    """Return the attention of heads that share keys and values in groups."""
    heads = keys.whole("num_attention_heads", low=1)
    head_dim = keys.whole("head_dim", default=hidden // heads)
    kv_heads = keys.whole("num_key_value_heads", default=heads)
    flops = 4 * heads * head_dim
    return _Attention(
        weights=2 * hidden * (heads + kv_heads) * head_dim,
        cache_numbers=2 * kv_heads * head_dim,
        decode_pair_flops=flops,
        prefill_pair_flops=flops,
    )


def _latent(keys: Keys, hidden: int) -> _Attention:
    """Return latent attention (MLA): decode reads the compressed cache, prefill whole heads."""
    heads, rank = keys.whole("num_attention_heads", low=1), keys.whole("kv_lora_rank")
    rope, bare, values = map(keys.whole, ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    queries = keys.whole("q_lora_rank", default=0)
    query_weights = queries * (hidden + heads * (bare + rope))
    if not queries:
        query_weights = hidden * heads * (bare + rope)
    cached = rank + rope
    return _Attention(
        weights=query_weights
        + hidden * cached
        + rank * heads * (bare + values)
        + heads * values * hidden,
        cache_numbers=cached,
        decode_pair_flops=2 * heads * (cached + rank),
        prefill_pair_flops=2 * heads * (bare + rope + values),
    )


def _dense_width(keys: Keys) -> int:
    """Return the intermediate size of the layers without experts."""
    name = "intermediate_size_mlp" if keys.has("intermediate_size_mlp") else "intermediate_size"
    return keys.whole(name, default=0)


def _shared_width(keys: Keys, width: int) -> int:
    """Return the intermediate size of all shared experts of a layer together."""
    if keys.has(*SHARED_WIDTH):
        return keys.whole(*SHARED_WIDTH)
    return keys.of_all_layers(*SHARED_EXPERTS) * width if keys.has(*SHARED_EXPERTS) else 0
