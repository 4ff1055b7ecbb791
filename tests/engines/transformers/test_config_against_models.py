"""Facts from configurations, compared with the models that transformers builds from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from equipoise.engines.transformers.config import read_model_config  # noqa: E402 (after the skip)
from equipoise.engines.transformers.model_types import (  # noqa: E402 (after the skip)
    EXPERTS,
    MODEL_TYPES,
)

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 97,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"first_k_dense_replace": 1},
    "dots1": {"first_k_dense_replace": 2, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_layer_start_index": 2, "moe_layer_interval": 2},
    "glm4_moe_lite": {"mlp_layer_types": ["dense", "dense", *["sparse"] * 6]},
    "hunyuan_v1_moe": {"moe_intermediate_size": 48, "head_dim": 16},
    "jamba": {"expert_layer_period": 3, "expert_layer_offset": 2},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "qwen2_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "qwen3_moe": {"mlp_only_layers": [0, 5]},
}
LATER = {"kimi_k2", "minimax_m1", "minimax_text_01", "qwen3_omni_moe_text"}
"""Types that transformers has no model of, or none of the language part alone."""


def config(name: str) -> Any:
    kind = transformers.CONFIG_MAPPING[name]
    counts = dict.fromkeys(EXPERTS, 16) | {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    values = {key: value for key, value in counts.items() if key in kind.__dataclass_fields__}
    return kind(**(SIZES | values | OWN.get(name, {})), dtype="bfloat16")


def expert_bytes(model: Any, num_experts: int) -> dict[int, float]:
    """Bytes of an expert by layer: every parameter with a row for each expert but the router."""
    sizes: dict[int, float] = {}
    for name, parameter in model.named_parameters():
        names = name.split(".")
        is_router = {"gate", "router", "gate_weight"} & {*names[:-1]}
        if parameter.ndim > 1 and parameter.shape[0] == num_experts and not is_router:
            layer = next(int(part) for part in names if part.isdigit())
            size = parameter.numel() * parameter.element_size() / num_experts
            sizes[layer] = sizes.get(layer, 0) + size
    return sizes


@pytest.mark.parametrize("name", sorted(MODEL_TYPES.keys() - LATER))
@pytest.mark.filterwarnings("ignore")
def test_layers_and_bytes_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    built = config(name)
    built.save_pretrained(tmp_path)
    facts = read_model_config(tmp_path)
    with torch.device("meta"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(built, dtype=torch.bfloat16)
        except ValueError:  # the language part of a model that also sees
            model = transformers.AutoModel.from_config(built, dtype=torch.bfloat16)
    sizes = expert_bytes(model, facts.num_experts)
    assert facts.moe_layer_ids == tuple(sizes)
    assert {facts.expert_bytes} == {*sizes.values()}
    assert facts.num_experts == 16
    assert facts.num_hidden_layers == 8
