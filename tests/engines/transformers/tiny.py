"""Small randomly initialised models of every layout the recorder knows."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 97
SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# name: configuration class, its own values, the decoder layers that are MoE, E, K
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, int]] = {
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 5, "num_experts_per_tok": 2},
        (0, 1, 2),
        5,
        2,
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**QWEN, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 2},
        (1,),
        6,
        2,
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**QWEN, "mlp_only_layers": [1]}, (0, 2), 6, 2),
    "olmoe": ("OlmoeConfig", {"num_experts": 7, "num_experts_per_tok": 4}, (0, 1, 2), 7, 4),
    "deepseek_v2": (
        "DeepseekV2Config",
        {**DEEPSEEK, "topk_method": "group_limited_greedy"},
        (1, 2),
        8,
        3,
    ),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK, (1, 2), 8, 3),
    "glm4_moe": (
        "Glm4MoeConfig",
        {k: v for k, v in DEEPSEEK.items() if not k.endswith(("rank", "head_dim"))},
        (1, 2),
        8,
        3,
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "head_dim": 8,
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        (0, 1, 2),
        6,
        3,
    ),
}


def build(name: str, seed: int = 0, **other: Any) -> Any:
    """A model of the family ``name``, ready to run, with other values in its configuration."""
    kind, values, *_ = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**SHARED, **values, **other})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # wide enough that tokens disagree about experts
                parameter.normal_(0.0, 0.3)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.5, 0.5)
    return model


def prompt(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random token ids ``(batch, length)``, none of them padding (0)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)
