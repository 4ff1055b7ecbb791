from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.engines.formats import TraceOptions
from equipoise.errors import FormatError

META = {"type": "meta", "model_id": "org/model", "top_k": 2, "layers_logged": [5], "seed": 1}


def route(token: int, ids: list[int], layer: int = 5, request: str = "r1") -> dict[str, Any]:
    return {
        "type": "route", "req_id": request, "token_idx": token, "layer": layer,
        "topk_ids": ids, "topk_weights": [0.5, 0.5],
    }  # fmt: skip


def read(path: Path, *lines: dict[str, Any], **options: Any) -> eq.Trace:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return eq.read_trace(path, TraceOptions(**options))


def notes(trace: eq.Trace) -> str:
    return " ".join(trace.provenance.notes)


def test_passes_are_steps_and_the_warm_up_is_left_out(tmp_path):
    dummies = [route(token, [6, 7]) for token in range(32)]
    prompt = [route(token, [token, 4]) for token in range(3)]
    lines = [META, *dummies, *prompt, route(0, [1, 2]), META, route(0, [3, 2])]
    trace = read(tmp_path / "routes.jsonl", *lines, num_experts=8)
    assert trace.provenance.format == "vllm-route-log"
    assert (trace.layer_ids, trace.num_experts, trace.top_k) == ((5,), 8, 2)
    assert trace.tokens.offsets.tolist() == [0, 3, 4, 5]
    assert trace.tokens.ids[:, 0].tolist() == [[0, 4], [1, 4], [2, 4], [1, 2], [3, 2]]
    said = notes(trace)
    assert "The first 32 tokens have the same choices" in said
    assert "org/model" in said
    assert "One layer was logged, 5" in said
    assert "start again 2 times" in said


def test_requests_are_told_apart_and_the_first_line_may_state_experts(tmp_path):
    lines = [{**META, "num_experts": 16, "top_k": 4}, {"type": "stop"}]
    lines += [route(t, [t, 9], layer, name) for name in "ab" for layer in (2, 3) for t in (0, 1)]
    trace = read(tmp_path / "routes.jsonl", *lines)
    assert (trace.layer_ids, trace.num_experts) == ((2, 3), 16)
    assert trace.labels["request"].tolist() == ["a", "b"]
    assert "top_k 4; tokens have 2" in notes(trace)
    assert "1 lines of type 'stop' were skipped" in notes(trace)
    np.testing.assert_array_equal(trace.counts.sum(axis=2), [[4, 4], [4, 4]])


def test_lines_that_are_no_route(tmp_path):
    cut = {name: value for name, value in route(1, [1, 2]).items() if name != "layer"}
    with pytest.raises(FormatError, match="line 2: a route without layer"):
        read(tmp_path / "a.jsonl", META, cut, route(2, [1, 2]))
    with pytest.raises(FormatError, match="line 2: layer is 'x'"):
        read(tmp_path / "a.jsonl", META, route(1, [1, 2]) | {"layer": "x"}, route(2, [1, 2]))
    with pytest.raises(FormatError, match="no row of choices"):
        read(tmp_path / "a.jsonl", META)
