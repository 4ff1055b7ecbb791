"""Train a small mixture-of-experts language model on what every Python installation holds.

    python models/train.py --out src/equipoise/data/balance-5m

Two processor cores do it in well under an hour.  The model is saved every few minutes, so a run
that is cut off leaves weights that load.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import corpus
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from specialisation import encode, measure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2MoeConfig, Qwen2MoeForCausalLM

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"
MAX_POSITIONS = 1024
WINDOW = 256  # tokens of one training sequence
TOKENIZER_BYTES = 400_000  # of each domain, for the vocabulary to serve all of them
WARMUP_STEPS = 100
BALANCE_FIRST, BALANCE_LAST = 2e-2, 2e-3
SAVE_SECONDS = 240


def train_tokenizer(domains: dict[str, corpus.Domain], seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is its own token, for arithmetic's sake."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(seed)
    tokenizer.train_from_iterator(
        (text for one in domains.values() for text in _some(one.train, rng)), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def _some(documents: list[str], rng: np.random.Generator) -> Iterator[str]:
    """Documents in a random order until there are ``TOKENIZER_BYTES``."""
    left = TOKENIZER_BYTES
    for i in rng.permutation(len(documents)):
        yield documents[i][:left]
        left -= len(documents[i])
        if left <= 0:
            return


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2MoeForCausalLM:
    config = Qwen2MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        moe_intermediate_size=56,
        shared_expert_intermediate_size=160,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2MoeForCausalLM._from_config(config, experts_implementation="grouped_mm")


def batches(
    ids_of_domains: list[NDArray[np.int64]], counts: list[int], rng: np.random.Generator
) -> Iterator[Tensor]:
    """Token ids ``(sum(counts), WINDOW + 1)``: rows of each domain by its count."""
    streams = [windows(ids, rng) for ids in ids_of_domains]
    while True:
        rows = [
            next(stream)
            for stream, count in zip(streams, counts, strict=True)
            for _ in range(count)
        ]
        yield torch.from_numpy(np.stack(rows))


def windows(ids: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Every window of the text in a random order, cut elsewhere each time round."""
    while True:
        start = rng.integers(WINDOW)
        count = (len(ids) - start - 1) // WINDOW
        for i in rng.permutation(count):
            first = start + i * WINDOW
            yield ids[first : first + WINDOW + 1]


def balance_loss(router_logits: tuple[Tensor, ...], top_k: int) -> Tensor:
    """Switch Transformer's auxiliary loss of each layer, averaged; 1 when the load is even.

    It is taken over a batch that holds every domain, so it asks for experts that are all used,
    not for domains that use them in the same way.
    """
    losses = []
    for logits_DE in router_logits:
        probability_E = logits_DE.float().softmax(dim=-1).mean(dim=0)
        chosen = logits_DE.topk(top_k).indices.flatten()
        share_E = chosen.bincount(minlength=logits_DE.shape[-1]) / len(chosen)
        losses.append(len(share_E) * (share_E * probability_E).sum())
    return torch.stack(losses).mean()


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_step(
    model: Qwen2MoeForCausalLM, optimizer: torch.optim.Optimizer, batch: Tensor, balance: float
) -> tuple[float, float]:
    """One update; the language loss (nats per token) and the balance loss."""
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model(input_ids=batch[:, :-1], use_cache=False, output_router_logits=True)
        logits = model.lm_head(out.last_hidden_state)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    uneven = balance_loss(out.router_logits, model.config.num_experts_per_tok)
    (loss + balance * uneven).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), uneven.item()


def train(
    model: Qwen2MoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    domains: dict[str, corpus.Domain],
    arguments: argparse.Namespace,
) -> int:
    """Train until the steps or the minutes are used up, whichever is first; the steps taken."""
    # A resumed run reads in another order, not the first windows again.
    rng = np.random.default_rng([arguments.seed, arguments.resume])
    ids_of_domains = [encode(tokenizer, one.train).numpy() for one in domains.values()]
    stream = batches(ids_of_domains, arguments.sequences, rng)
    optimizer = optimizer_of(model)
    if arguments.compile:
        model.model.compile()
    started = saved = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / WARMUP_STEPS)
            group["lr"] = arguments.learning_rate * warm * (1 - progress)
        balance = BALANCE_FIRST + (BALANCE_LAST - BALANCE_FIRST) * progress
        loss, uneven = train_step(model, optimizer, next(stream), balance)
        step += 1
        seconds = time.monotonic() - started
        progress = max(step / arguments.steps, seconds / 60 / arguments.minutes)
        if step % 50 == 0:
            tokens = step * sum(arguments.sequences) * WINDOW
            print(
                f"step {step}  {seconds:.0f} s  {tokens / seconds:.0f} tokens/s"
                f"  loss {loss:.3f}  balance {uneven:.3f}",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_SECONDS:
            save(model, arguments.out)
            saved = time.monotonic()
    return step


def save(model: Qwen2MoeForCausalLM, folder: Path) -> None:
    """Write the weights as bfloat16, next to a model that goes on training in float32."""
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    half = Qwen2MoeForCausalLM._from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(state)
    half.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=60, help="stop by then, whatever the step")
    parser.add_argument(
        "--sequences",
        type=int,
        nargs=6,
        default=[5, 5, 1, 2, 2, 1],
        help="of code, docs, legal, tables, maths and config in a batch",
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at its peak")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out")
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    domains = corpus.build(arguments.seed)
    if arguments.resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.out)
        model = Qwen2MoeForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(domains, arguments.seed)
        tokenizer.save_pretrained(arguments.out)
        model = new_model(tokenizer)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters:,} parameters", flush=True)

    started = time.monotonic()
    steps = train(model, tokenizer, domains, arguments)
    seconds = time.monotonic() - started
    save(model, arguments.out)
    saved = Qwen2MoeForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).eval()
    record = {
        "resumed": arguments.resume,
        "parameters": num_parameters,
        "steps": steps,
        "tokens": steps * sum(arguments.sequences) * WINDOW,
        "seconds": round(seconds),
        "threads": arguments.threads,
        "compiled": arguments.compile,
        "sequences": arguments.sequences,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "held_out_bits_per_byte": {
            name: round(measure(saved, tokenizer, one.held).bits_per_byte, 4)
            for name, one in domains.items()
        },
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
