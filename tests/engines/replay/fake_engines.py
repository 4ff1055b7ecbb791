"""Small HTTP servers that answer as vLLM and SGLang do, with routing that follows the prompt."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.engines._shared import torch_archive

LAYERS, EXPERTS, TOP_K = 3, 8, 2  # layer 0 is dense

Answer = Callable[[str, Any], tuple[int, Any]]
"""From a path and its document: the status and document of the answer."""


def tokens_of(prompt: str) -> int:
    """A token a word."""
    return len(prompt.split())


def routing(prompt: str, new_tokens: int) -> np.ndarray:
    """The experts of all tokens but the last, ``(tokens, LAYERS, TOP_K)``."""
    random = np.random.default_rng(list(prompt.encode()))
    rows = tokens_of(prompt) + new_tokens - 1
    ids = random.random((rows, LAYERS, EXPERTS)).argsort(axis=2)[:, :, :TOP_K]
    ids[:, 0] = 0
    return ids


def vllm(path: str, body: Any, *, routed: bool = True) -> tuple[int, Any]:
    """Answer as vLLM does, with or without routing switched on."""
    if path == "/v1/models":
        return 200, {"object": "list", "data": [{"id": "small"}]}
    if path != "/v1/completions":
        return 404, {"detail": "Not Found"}
    if body["model"] != "small" or body["temperature"] != 0:
        return 400, {"error": {"message": "no such model", "code": 400}}
    file = io.BytesIO()
    np.save(file, routing(body["prompt"], body["max_tokens"]).astype(np.uint8))
    encoded = base64.b64encode(file.getvalue()).decode()
    usage = {"prompt_tokens": tokens_of(body["prompt"]), "completion_tokens": body["max_tokens"]}
    choice = {"index": 0, "text": "", "routed_experts": encoded if routed else None}
    return 200, {"id": body["prompt"], "choices": [choice], "usage": usage}


def sglang(
    path: str, body: Any, *, dumps: Path | None = None, mode: str | None = "stat"
) -> tuple[int, Any]:
    """Answer as SGLang does; its recorder writes to a folder."""
    if path == "/model_info":
        return 200, {"model_path": "small"}
    if path == "/server_info":
        return 200, {"expert_distribution_recorder_mode": mode}
    if path == "/generate":
        prompt, new = body["text"], body["sampling_params"]["max_new_tokens"]
        meta = {"prompt_tokens": tokens_of(prompt), "completion_tokens": new}
        if body.get("return_routed_experts"):
            data = routing(prompt, new).astype("<i4").tobytes()
            meta["routed_experts"] = base64.b64encode(data).decode()
        return 200, {"text": "", "meta_info": {"id": prompt, **meta}}
    if path == "/dump_expert_distribution_record" and dumps is not None:
        counts = np.zeros((2, LAYERS, EXPERTS), dtype=np.int32)
        counts[:, 1:] = 5
        name = f"expert_distribution_recorder_{time.time()}.pt"
        torch_archive.save(dumps / name, {"rank": 0, "logical_count": counts})
    return 200, "done\n"


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Run a server; its address, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Any) -> None:
            asked.append(self.path)
            status, document = answer(self.path, body)
            text = document if isinstance(document, str) else json.dumps(document)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
