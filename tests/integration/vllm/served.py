"""A server of vLLM with random weights, on two ranks of a CPU, and what it answers."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.vllm.served_models import VOCABULARY

ROOT = Path(__file__).parents[3]
START_SECONDS = 300
INTERVAL = 6
"""Steps between two rearrangements."""

PROMPTS, ROUNDS, TOKENS = 8, 6, 64

ENTRY_POINT = (
    "[vllm.general_plugins]\nstand_ins = tests.integration.vllm.served_stand_ins:register\n"
)
BALANCING = {
    "num_redundant_experts": 8,
    "window_size": INTERVAL,
    "step_interval": INTERVAL,
}


@dataclass(frozen=True)
class Answers:
    """What a server said.

    Parameters
    ----------
    tokens
        Ids of the tokens, by round and prompt.
    log
        Lines of its log.
    metrics
        Its metrics, at the end.
    version
        Version of vLLM that it says it is.
    """

    tokens: list[list[list[int]]]
    log: list[str]
    metrics: list[str]
    version: str

    def lines(self, words: str) -> list[str]:
        """Lines of the log that have these words."""
        return [line for line in self.log if words in line]


def ask_a_server(
    model: Path, folder: Path, *, balance: str | None, options: str | None = None
) -> Answers:
    """Serve a model, complete all prompts several times, and end the server.

    Parameters
    ----------
    folder
        Folder for its log and the entry point of the stand-ins.
    balance
        How experts move, ``"sync"`` or ``"async"``; ``None``: they do not.
    options
        Value of ``EQUIPOISE_VLLM``; ``None``: not set.
    """
    with _server(model, folder, balance=balance, options=options) as url:
        chance = random.Random(0)
        prompts = [
            [chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(8, 40))]
            for _ in range(PROMPTS)
        ]
        tokens = []
        for _ in range(ROUNDS):
            with ThreadPoolExecutor(PROMPTS) as pool:
                tokens.append(list(pool.map(lambda ids: _complete(url, model, ids), prompts)))
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            metrics = answer.read().decode().splitlines()
        with urllib.request.urlopen(f"{url}/version", timeout=60) as answer:
            version = json.load(answer)["version"]
    return Answers(tokens, (folder / "log").read_text().splitlines(), metrics, version)


def _complete(url: str, model: Path, prompt: list[int]) -> list[int]:
    asked = {
        "model": str(model),
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        choice: dict[str, Any] = json.load(answer)["choices"][0]
    return choice["token_ids"]


@contextmanager
def _server(model: Path, folder: Path, *, balance: str | None, options: str | None):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entry = folder / "stand_ins-0.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-ins\nVersion: 0\n")
    (entry / "entry_points.txt").write_text(ENTRY_POINT)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *("--tensor-parallel-size", "2", "--enable-expert-parallel", "--enforce-eager"),
        *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "16"),
    ]
    if balance is not None:
        config = BALANCING | {"use_async": balance == "async"}
        command += ["--enable-eplb", "--eplb-config", json.dumps(config)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=_environment(folder, options), stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, process, folder / "log")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _environment(folder: Path, options: str | None) -> dict[str, str]:
    names = ("PATH", "HOME", "TMPDIR", "VLLM_TARGET_DEVICE")
    known = {name: os.environ[name] for name in names if name in os.environ}
    paths = [str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        known
        | ({} if options is None else {"EQUIPOISE_VLLM": options})
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than serving
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        }
    )


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"There is no server:\n{log.read_text()[-5000:]}")
