from __future__ import annotations

import socket
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.replay.server import capture_recorder, capture_server
from equipoise.errors import EquipoiseError
from tests.engines.replay.fake_engines import (
    EXPERTS,
    TOP_K,
    routing,
    serving,
    sglang,
    tokens_of,
    vllm,
)

PROMPTS = {"code": ["def f ( x )", "import os"], "text": ["one two three four", "five six"]}
NEW = 4


def expected(prompts: list[str]) -> np.ndarray:
    """The tokens of requests that run one at a time, layers 1 and 2."""
    return np.concatenate([routing(prompt, NEW)[:, 1:] for prompt in prompts])


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(EquipoiseError) as error:
        capture_server(url, ["one two"], **options)
    return str(error.value)


@pytest.mark.parametrize(("engine", "told"), [(vllm, {}), (sglang, {"top_k": TOP_K})])
def test_a_server_is_recorded_token_by_token(engine, told):
    with serving(engine) as (url, _):
        trace = capture_server(
            url, PROMPTS, max_new_tokens=NEW, batch_size=1, token_ids=True, **told
        )
    np.testing.assert_array_equal(trace.tokens.ids, expected(PROMPTS["code"] + PROMPTS["text"]))
    assert trace.layer_ids == (1, 2)
    phases = ["prefill", *["decode"] * (NEW - 1)]
    assert trace.labels["phase"].tolist() == phases * 4
    assert trace.labels["domain"].tolist() == ["code"] * 8 + ["text"] * 8


def test_requests_that_run_together_share_their_decode_steps():
    with serving(vllm) as (url, asked):
        trace = capture_server(url, PROMPTS["text"], max_new_tokens=NEW, batch_size=2)
    assert asked.count("/v1/completions") == 2
    assert trace.tokens is None
    tokens = trace.counts.sum(axis=2)[:, 0] // TOP_K
    assert tokens.tolist() == [*map(tokens_of, PROMPTS["text"]), 2, 2, 2]


def test_the_command_writes_a_recording(tmp_path, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "run.safetensors"
    prompts.write_text("\n".join(PROMPTS["text"]))
    with serving(vllm) as (url, _):
        line = ["capture", "--url", url, "--prompts", f"{prompts}", "-o", f"{output}"]
        assert main([*line, "--max-new-tokens", f"{NEW}", "--batch-size", "1"]) == 0
    trace = eq.read_trace(output)
    counted = np.bincount(expected(PROMPTS["text"])[:, 0].ravel(), minlength=EXPERTS)
    assert trace.total[0].tolist() == counted[: trace.num_experts].tolist()
    assert trace.provenance.format == "server"
    assert "run.safetensors: Trace(8 steps, 2 layers" in capsys.readouterr().out


def test_a_server_that_does_not_return_routing_says_how_to_switch_it_on():
    with serving(partial(vllm, routed=False)) as (url, _):
        assert "--enable-return-routed-experts" in refusal(url)


def test_sglang_needs_to_be_told_top_k():
    with serving(sglang) as (url, _):
        assert "give top_k" in refusal(url)


def test_answers_that_are_errors_are_quoted():
    with serving(lambda path, body: (500, {"error": {"message": "out of\nmemory"}})) as (url, _):
        assert f"{url}/model_info answers 500: out of memory." in refusal(url)
    with serving(lambda path, body: (404, "no")) as (url, _):
        assert "not a server of vLLM or SGLang" in refusal(url)
    with serving(lambda path, body: (200, "hello")) as (url, _):
        assert "is not JSON" in refusal(url)
    with serving(lambda path, body: (200 if path == "/v1/models" else 404, {})) as (url, _):
        assert "names no model" in refusal(url)


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", "http://a:b"])
def test_addresses_that_are_none(url):
    assert "expected one such as http://127.0.0.1:8000" in refusal(url)


def test_nobody_there_and_nobody_answering():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "cannot be reached" in refusal(url)
        silent.listen()
        assert "0.2 s" in refusal(url, timeout_seconds=0.2)


def test_a_connection_that_ends_early():
    with socket.socket() as rude:
        rude.bind(("127.0.0.1", 0))
        rude.listen()
        closing = threading.Thread(target=lambda: rude.accept()[0].close())
        closing.start()
        said = refusal(f"http://127.0.0.1:{rude.getsockname()[1]}")
        closing.join()
    assert "cannot be reached" in said


def test_the_recorder_of_sglang_is_driven_and_its_dump_read(tmp_path):
    (tmp_path / "expert_distribution_recorder_1.5.pt").write_bytes(b"of an earlier run")
    with serving(partial(sglang, dumps=tmp_path)) as (url, asked):
        trace = capture_recorder(url, PROMPTS, tmp_path, max_new_tokens=NEW)
    assert trace.counts.shape == (2, 2, EXPERTS)
    assert trace.provenance.source == f"{tmp_path}"
    paths = [path for path in asked if "record" in path]
    assert [path.split("_")[0] for path in paths] == ["/start", "/stop", "/dump"]
    assert asked.index(paths[0]) < asked.index("/generate") < asked.index(paths[1])


def test_a_recorder_that_is_off_or_writes_elsewhere(tmp_path):
    with serving(partial(sglang, mode=None)) as (url, asked):
        with pytest.raises(EquipoiseError, match="--expert-distribution-recorder-mode stat"):
            capture_recorder(url, PROMPTS, tmp_path)
        assert not any("record" in path for path in asked)
    with (
        serving(sglang) as (url, _),
        pytest.raises(EquipoiseError, match="SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"),
    ):
        capture_recorder(url, PROMPTS, tmp_path)
    with pytest.raises(EquipoiseError, match="is not a folder"):
        capture_recorder("http://127.0.0.1:9", PROMPTS, tmp_path / "none")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "Give either the folder of a model, or --url"),
        ("model --url http://a:1", "Give either the folder of a model, or --url"),
        ("model --top-k 4", "--top-k goes with --url"),
        ("model --timeout 4", "--timeout goes with --url"),
        ("--url http://a:1 --iterations 1-2", "--iterations goes with a model"),
        ("--url http://a:1 --recorder-dir . --top-k 2", "--top-k goes with answers"),
        ("--url http://a:1 --recorder-dir . --token-ids", "--token-ids goes with answers"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("hello")
    assert main(["capture", *line.split(), "--prompts", "prompts.txt", "-o", "x.safetensors"]) == 2
    assert said in capsys.readouterr().err
