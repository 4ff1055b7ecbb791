"""The small model of the package, run by transformers in one process and by us in several."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from equipoise.engines.transformers.recorder import RoutingRecorder
from equipoise.placement import Placement
from equipoise.runtime.moe.model import ExpertParallelModel, load_model
from equipoise.sample import sample_model_path
from equipoise.trace import Trace

FOLDER = sample_model_path()
L, E = 5, 32
NEW_TOKENS = 5
TOLERANCE = 1e-4  # of logits; rounding alone makes 1e-5

# What each rank serves: batches of different sizes and lengths, and nobody.
PROMPTS: dict[int, tuple[tuple[str, ...], ...]] = {
    2: (("def read(self, size):\n", "import os\nimport"), ()),
    4: (
        ("def read(self, size):\n    return", "class", "Permission is hereby granted, free of"),
        ("The value of the product is",),
        (),
        ("[section]\nname = 3\n", "for i in range(10):\n    print(i, i * i)\n"),
    ),
}


def random_placement(ranks: int, redundant: int, seed: int = 0) -> Placement:
    """Experts anywhere, other in every layer; the redundant slots hold random ones."""
    rng = np.random.default_rng(seed)
    slots = [np.concatenate([np.arange(E), rng.integers(0, E, redundant)]) for _ in range(L)]
    return Placement([rng.permutation(s) for s in slots], num_ranks=ranks, num_experts=E)


def prompts_of(rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of a rank's prompts, padded on the left."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    rows = [tokenizer.encode(text).ids for text in PROMPTS[ranks][rank]]
    longest = max(map(len, rows), default=0)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    return ids, mask


@cache
def reference(rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor, Trace]:
    """What transformers generates for a rank's prompts, from which logits, by which experts."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    ids, mask = prompts_of(rank, ranks)
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(FOLDER, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    with RoutingRecorder(model) as recorder:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1), recorder.trace()


def load(group: Any, where: Placement, **options: Any) -> ExpertParallelModel:
    return load_model(FOLDER, where, group=group, **options)


def generate(model: ExpertParallelModel) -> tuple[torch.Tensor, torch.Tensor]:
    group = model.group
    ids, mask = prompts_of(dist.get_rank(group), dist.get_world_size(group))
    return model.generate(ids, mask, NEW_TOKENS)


def furthest_logit(model: ExpertParallelModel) -> float:
    """How far this rank's logits get from those of transformers; infinite for another token."""
    rank, ranks = dist.get_rank(model.group), dist.get_world_size(model.group)
    tokens, logits = generate(model)
    if not PROMPTS[ranks][rank]:
        assert tokens.shape == (0, NEW_TOKENS)
        return 0.0
    wanted, wanted_logits, _ = reference(rank, ranks)
    if not torch.equal(tokens, wanted):
        return float("inf")
    return (logits - wanted_logits).abs().max().item()
