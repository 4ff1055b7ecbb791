from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.formats import TraceOptions
from equipoise.errors import FormatError

GOLDEN = Path(__file__).parent / "golden"
IDS = np.array(
    [
        [[0, 1], [5, 4]],
        [[2, 3], [3, 2]],
        [[4, 5], [1, 0]],
        [[1, 0], [0, 2]],
        [[3, 5], [4, 1]],
    ]
)
"""Of every golden file: three tokens of a prompt and two of three that were generated."""
SHAPELESS = {"top_k": 2}


def read(name: str, **options: Any) -> eq.Trace:
    return eq.read_trace(GOLDEN / name, TraceOptions(**options))


def notes(trace: eq.Trace) -> str:
    return " ".join(trace.provenance.notes)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(FormatError) as error:
        eq.read_trace(path, TraceOptions(**options))
    return str(error.value)


def write(path: Path, *documents: Any) -> Path:
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path


@pytest.mark.parametrize(
    "name",
    [file.name for file in sorted(GOLDEN.glob("*")) if file.name != "vllm_0_30_0.json"],
)
def test_every_encoding_holds_the_same_routing(name):
    trace = read(name, **(SHAPELESS if name.startswith("sglang") else {}))
    np.testing.assert_array_equal(trace.tokens.ids, IDS)
    assert trace.labels["phase"].tolist() == ["prefill", "decode"]
    assert trace.tokens.offsets.tolist() == [0, 3, 5]
    assert trace.top_k == 2
    moe_only = name.startswith("trtllm")
    assert trace.layer_ids == ((0, 1) if moe_only else (1, 2))
    assert ("MoE layers only" in notes(trace)) == moe_only
    assert ("Layers 0 hold no choice" in notes(trace)) != moe_only


def test_an_answer_of_a_real_server():
    trace = read("vllm_0_30_0.json")
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (5, 32, 4)
    assert trace.tokens.offsets.tolist() == [0, 10, 15]
    assert trace.labels["request"].tolist() == ["cmpl-ad1f1cf269ac9057"] * 2
    assert trace.tokens.ids[0, 0].tolist() == [19, 13, 2, 11]


@pytest.mark.parametrize("name", ["sglang_generate.json", "sglang_openai.json"])
def test_numbers_without_a_shape_are_refused_with_the_option_that_tells_it(name):
    assert "give top_k, the model's num_experts_per_tok" in refusal(GOLDEN / name)
    assert "do not fit the 5 tokens" in refusal(GOLDEN / name, top_k=4)


def test_numbers_of_an_answer_that_counts_no_tokens_need_all_layers(tmp_path):
    answer = json.loads((GOLDEN / "sglang_generate.json").read_text())
    del answer["meta_info"]["prompt_tokens"]
    path = write(tmp_path / "a.json", answer)
    assert "layer_ids 0-60" in refusal(path, top_k=2)
    trace = eq.read_trace(path, TraceOptions(top_k=2, layer_ids=(0, 1, 2)))
    np.testing.assert_array_equal(trace.tokens.ids[:, 1:], IDS)
    assert "phase" not in trace.labels
    assert "a step is a request" in notes(trace)


def test_answers_without_routing_say_what_switches_it_on(tmp_path):
    answer = json.loads((GOLDEN / "vllm_completion_uint8.json").read_text())
    bare = json.loads(json.dumps(answer))
    bare["id"] = "cmpl-0"
    bare["choices"][0]["routed_experts"] = None
    said = refusal(write(tmp_path / "a.json", bare))
    assert "--enable-return-routed-experts" in said
    mixed = write(tmp_path / "b.jsonl", bare, answer)
    assert "1 of 2 answers hold no routed_experts" in notes(eq.read_trace(mixed))


def test_later_rows_of_a_prompt(tmp_path):
    answer = json.loads((GOLDEN / "vllm_completion_int32.json").read_text())
    answer["usage"]["prompt_tokens"] = 4  # the first of which was not asked for
    trace = eq.read_trace(write(tmp_path / "a.json", answer))
    assert trace.tokens.offsets.tolist() == [0, 3, 5]


def test_samples_of_one_prompt_are_requests_of_their_own(tmp_path):
    answer = json.loads((GOLDEN / "vllm_chat.json").read_text())
    answer["choices"].append({**answer["choices"][0], "index": 1})
    trace = eq.read_trace(write(tmp_path / "a.json", answer))
    assert trace.labels["request"].tolist() == ["chatcmpl-1#0"] * 2 + ["chatcmpl-1#1"] * 2
    np.testing.assert_array_equal(trace.tokens.ids, np.concatenate([IDS, IDS]))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("?", "not base64"),
        (base64.b64encode(b"12345").decode(), "neither an .npy file nor numbers of 32 bits"),
        (base64.b64encode(b"\x93NUMPY").decode(), "damaged"),
        (7, "a int; expected base64"),
        ([], "no expert ids"),
        ([[[1, 2]], [[3]]], "rows of different lengths"),
        ([[["a", 2]]], "other than whole numbers"),
        ([[1, 2], [3, 4]], "expected (tokens, layers, top_k)"),
        ([[[1 << 70, 2]]], "rows of different lengths"),
    ],
)
def test_values_that_are_no_routing(tmp_path, value, said):
    path = write(tmp_path / "a.json", {"choices": [{"routed_experts": value}]})
    assert said in refusal(path)


def test_requests_of_two_models_are_refused(tmp_path):
    one = {"choices": [{"routed_experts": [[[1, 2]], [[3, 4]]]}]}
    two = {"choices": [{"routed_experts": [[[1, 2, 3]], [[3, 4, 5]]]}]}
    said = refusal(write(tmp_path / "a.jsonl", one, two))
    assert "expected those of one model" in said


def test_a_cut_line_is_left_out_at_the_end_only(tmp_path):
    whole = (GOLDEN / "vllm_completion_uint8.json").read_text()
    path = tmp_path / "a.jsonl"
    path.write_text(whole + whole[:100])
    assert "The last line is cut off" in notes(eq.read_trace(path))
    path.write_text(whole + whole[:100] + "\n" + whole)
    assert "line 2" in refusal(path)


def test_windows_go_over_requests_but_not_over_phases(tmp_path, capsys):
    answers = []
    for number in range(4):
        answer = json.loads((GOLDEN / "vllm_completion_uint8.json").read_text())
        answers.append(answer | {"id": f"cmpl-{number}"})
    path = write(tmp_path / "a.jsonl", *answers)
    assert main(["report", f"{path}", "--window", "2", "--phase", "decode", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["before"]["num_steps"] == 2
    assert main(["report", f"{path}", "--window", "2"]) == 2
    assert "--window 2 sums nothing, since phase changes from step to step" in (
        capsys.readouterr().err
    )
