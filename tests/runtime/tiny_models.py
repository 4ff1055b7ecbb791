"""Tiny models of every type that is served, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.engines.transformers.tiny import build, prompt

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

# What the types can do beyond the plainest of them.
OTHER: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"decoder_sparse_step": 1, "mlp_only_layers": [0], "tie_word_embeddings": True},
    "olmoe": {"clip_qkv": 8.0},
    "deepseek_v2": {"routed_scaling_factor": 4.0, "n_shared_experts": 2},
    "deepseek_v3": {"rope_parameters": {**YARN, "mscale_all_dim": 1.0}, "n_shared_experts": 2},
    "gpt_oss": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 8,
        "rope_parameters": {**YARN, "truncate": False},
        "swiglu_limit": 1.5,
    },
}


def save(name: str, folder: Path, **options: Any) -> Any:
    """Save a model in which no tensor is all zeros or ones; the model."""
    model = build(name, **OTHER.get(name, {}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases, norms and sinks
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder, **options)
    return model


def answer(model: Any, ids: torch.Tensor, new_tokens: int) -> tuple[list[int], float]:
    """What transformers generates greedily, and the least lead of the best token."""
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(out.logits).topk(2).values
    return out.sequences[0, ids.shape[1] :].tolist(), float((best[..., 0] - best[..., 1]).min())


def asked(
    model: Any, count: int, new_tokens: int, lead: float
) -> tuple[tuple[tuple[int, ...], ...], list[list[int]]]:
    """Prompts of 5 to 30 tokens, and their answers, in which rounding cannot decide."""
    prompts: list[tuple[int, ...]] = []
    answers = []
    seed = 0
    while len(prompts) < count:
        seed += 1
        ids = prompt(1, 5 + seed % 26, seed)
        tokens, least = answer(model, ids, new_tokens)
        if least > lead:
            prompts.append(tuple(ids[0].tolist()))
            answers.append(tokens)
    return tuple(prompts), answers
