"""Small models with random weights, of classes that vLLM can balance."""

from __future__ import annotations

import json
from pathlib import Path

VOCABULARY = 256
LAYERS, EXPERTS = 4, 32

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # tokens that differ clearly, and experts that are used unequally
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def make(name: str, folder: Path) -> Path:
    """A model with its weights and a tokenizer of one token a word, in a folder."""
    import torch
    import transformers

    configs = {
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **_SIZES, num_experts=EXPERTS, moe_intermediate_size=64, head_dim=32
        ),
        "mixtral": lambda: transformers.MixtralConfig(
            **_SIZES, num_local_experts=EXPERTS, head_dim=32
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs[name]())
    model.to(torch.float32).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w2"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1"})
    )
    return folder
