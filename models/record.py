"""Record the routing that ships with the package, with the same code as ``equipoise capture``.

Held-out text of every domain, which the model was not trained on, is cut into prompts; the model
answers them in batches, and each forward pass becomes one step of the recording.

    python models/record.py src/equipoise/data/balance-5m \
        src/equipoise/data/sample.trace.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import corpus
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from equipoise.engines.trace_io import write_trace
from equipoise.engines.transformers.capture import capture_prompts

BATCH_SIZE = 64
BATCHES = 3
PROMPT_TOKENS = 56
NEW_TOKENS = 48


def cut_prompts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """Pieces of ``PROMPT_TOKENS`` tokens at even distances over all texts, one prompt each."""
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    wanted = BATCH_SIZE * BATCHES
    starts = [i * (len(ids) - PROMPT_TOKENS) // (wanted - 1) for i in range(wanted)]
    return [tokenizer.decode(ids[start : start + PROMPT_TOKENS]) for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = {name: cut_prompts(tokenizer, domain.held) for name, domain in corpus.build().items()}
    trace = capture_prompts(
        arguments.model,
        prompts,
        max_new_tokens=NEW_TOKENS,
        batch_size=BATCH_SIZE,
        token_ids=True,
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_trace(trace, arguments.output)
    print(trace, f"{arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
