"""The meaning of the keys of each model type: its MoE layers and the width of an expert.

A model type is listed here once its rules have been compared with the model that ``transformers``
builds, or with the code that the model's makers published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from equipoise.engines.transformers.config_keys import Keys, UnknownFactError

Layers = Callable[[Keys, int], tuple[int, ...]]
"""Function that returns the layers that meet a rule, out of a number of layers."""

EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_k",
    "moe_topk",
)
SHARED_EXPERTS = (
    "n_shared_experts",
    "num_shared_experts",
    "num_shared_expert",
    "moe_num_shared_experts",
)
SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
)
SPECULATIVE = (
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
)

_KEEP_EVERY_TOKEN = ("full_attention", "attention")
_KEEP_A_WINDOW = ("sliding_attention", "chunked_attention")
_KEEP_NO_TOKEN = ("linear_attention", "mamba", "moe", "mlp", "conv")


def _all_layers(_: Keys, num_layers: int) -> tuple[int, ...]:
    return tuple(range(num_layers))


def _after_dense(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """Return the layers after the first dense ones, or those of the list (DeepSeek, GLM, dots)."""
    if kinds := keys.words("mlp_layer_types", num_layers):
        return tuple(layer for layer, kind in enumerate(kinds) if kind != "dense")
    frequency = keys.get("moe_layer_freq")
    if isinstance(frequency, list):
        raise UnknownFactError("moe_layer_freq is a list, which models of this type do not have")
    step = keys.whole("moe_layer_freq", default=1, low=1)
    first = keys.whole("first_k_dense_replace")
    return tuple(layer for layer in range(num_layers) if layer >= first and layer % step == 0)


def _every_sparse_step(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """Return the last layer of every step, unless it is listed as dense (Qwen)."""
    step = keys.whole("decoder_sparse_step", default=1, low=1)
    dense = keys.ids("mlp_only_layers", num_layers)
    return tuple(layer for layer in range(step - 1, num_layers, step) if layer not in dense)


def _listed_or_interleaved(keys: Keys, num_layers: int) -> tuple[int, ...]:
    if keys.has("moe_layers"):
        return keys.ids("moe_layers", num_layers)
    step = keys.whole("interleave_moe_layer_step", low=1)
    return tuple(range(step - 1, num_layers, step))


def _from_start_to_end(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """Return the last layer of every interval in a range; its end -1 is the last layer (ERNIE)."""
    start = keys.whole("moe_layer_start_index")
    last = num_layers - 1
    end = last if keys.get("moe_layer_end_index") == -1 else keys.whole("moe_layer_end_index")
    step = keys.whole("moe_layer_interval", low=1)
    return tuple(layer for layer in range(start, min(end, last) + 1) if (layer + 1) % step == 0)


def _every_period(period: str, offset: str) -> Layers:
    def layers(keys: Keys, num_layers: int) -> tuple[int, ...]:
        step, first = keys.whole(period, low=1), keys.whole(offset)
        return tuple(layer for layer in range(num_layers) if layer % step == first)

    return layers


def _after_skipped(keys: Keys, num_layers: int) -> tuple[int, ...]:
    return tuple(range(keys.whole("moe_layer_num_skipped", default=0), num_layers))


def _attention_of_minimax(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """The older releases write 1 for attention and 0 for linear attention."""
    kinds = keys.get("attn_type_list")
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise UnknownFactError(
            "neither layer_types nor attn_type_list tells which layers keep tokens"
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == 1)


def _every_full_interval(keys: Keys, num_layers: int) -> tuple[int, ...]:
    step = keys.whole("full_attention_interval", low=1)
    return tuple(range(step - 1, num_layers, step))


def _needs_layer_types(keys: Keys, _: int) -> tuple[int, ...]:
    keys.need("layer_types")
    return ()


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """The rules by which the configuration of a model type is read.

    Parameters
    ----------
    moe_layers
        Function that returns the MoE layers.
    width
        Keys of a routed expert's intermediate size.
    biases
        True if an expert's projections have biases.
    dtype
        Type of unquantised numbers in the published models, if they do not state it.
    shared
        Shared experts of every MoE layer, if the model type alone decides it.
    attention_layers
        Function that returns the layers that cache every token, if ``layer_types`` is missing.
    cache
        Reason why the size of its KV cache is not computed; empty if it is.
    speculative
        Reason why the number of speculative layers is unknown if no key states it; empty if there
        are none then.
    """

    moe_layers: Layers
    width: tuple[str, ...] = ("moe_intermediate_size",)
    biases: bool = False
    dtype: str | None = None
    shared: int | None = None
    attention_layers: Layers = _all_layers
    cache: str = ""
    speculative: str = ""

    def layers_with_cache(self, keys: Keys, num_layers: int) -> tuple[int, int]:
        """Count the layers that cache every token, and those that cache a window of tokens.

        Raises
        ------
        UnknownFactError
            There is a kind of attention that is not known here.
        """
        name = "layers_block_type" if keys.has("layers_block_type") else "layer_types"
        kinds = keys.words(name, num_layers)
        if not kinds:
            return len(self.attention_layers(keys, num_layers)), 0
        known = (*_KEEP_EVERY_TOKEN, *_KEEP_A_WINDOW, *_KEEP_NO_TOKEN)
        if strange := sorted(set(kinds) - set(known)):
            raise UnknownFactError(
                f"what attention of the kind {strange[0][:40]} keeps is not known"
            )
        whole = sum(kind in _KEEP_EVERY_TOKEN for kind in kinds)
        return whole, sum(kind in _KEEP_A_WINDOW for kind in kinds)


_DEEPSEEK = ModelType(moe_layers=_after_dense)
_SPARSE = replace(
    _DEEPSEEK, cache="its sparse attention keeps index keys in a form that each engine chooses"
)
_QWEN = ModelType(moe_layers=_every_sparse_step)
_QWEN_NEXT = replace(
    _QWEN,
    attention_layers=_every_full_interval,
    speculative="models of this type come with a speculative layer that no key counts",
)
_MIXTRAL = ModelType(moe_layers=_all_layers, width=("intermediate_size",), shared=0)
_GRANITE = replace(_MIXTRAL, shared=None)
_MINIMAX = replace(_GRANITE, attention_layers=_attention_of_minimax)

MODEL_TYPES = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _SPARSE,
    "dots1": _DEEPSEEK,
    "ernie4_5_moe": ModelType(moe_layers=_from_start_to_end),
    "glm4_moe": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "glm4v_moe_text": _DEEPSEEK,
    "glm_moe_dsa": _SPARSE,
    "gpt_oss": replace(
        _MIXTRAL, biases=True, dtype="bfloat16", attention_layers=_needs_layer_types
    ),
    "granitemoe": _MIXTRAL,
    "granitemoehybrid": replace(_GRANITE, attention_layers=_needs_layer_types),
    "granitemoeshared": _GRANITE,
    "hunyuan_v1_moe": ModelType(
        moe_layers=_after_skipped, width=("moe_intermediate_size", "intermediate_size")
    ),
    "jamba": replace(
        _MIXTRAL,
        moe_layers=_every_period("expert_layer_period", "expert_layer_offset"),
        attention_layers=_every_period("attn_layer_period", "attn_layer_offset"),
    ),
    "kimi_k2": _DEEPSEEK,
    "llama4_text": replace(_MIXTRAL, moe_layers=_listed_or_interleaved, shared=1),
    "minimax": _MINIMAX,
    "minimax_m1": _MINIMAX,
    "minimax_m2": _MIXTRAL,
    "minimax_text_01": _MINIMAX,
    "mixtral": _MIXTRAL,
    "olmoe": _MIXTRAL,
    "phimoe": _MIXTRAL,
    "qwen2_moe": _QWEN,
    "qwen3_5_moe_text": replace(_QWEN_NEXT, moe_layers=_all_layers),
    "qwen3_moe": _QWEN,
    "qwen3_next": _QWEN_NEXT,
    "qwen3_omni_moe_text": _QWEN,
    "qwen3_vl_moe_text": _QWEN,
}
"""Rules by ``model_type``; models that see or hear have the type of their language model."""
