"""``equipoise checklist``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.simulate.checklist import CLOSING, TOPICS
from equipoise.simulate.routers import lognormal, sample_trace, steady

MODEL = Path(__file__).parents[1] / "engines" / "transformers" / "configs" / "olmoe-1b-7b.json"
DEPLOYMENT = ("--ranks", "8", "--model", str(MODEL), "--hardware", "h100")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    steps = steady(lognormal(64, num_layers=16, seed=0), num_steps=4)
    trace = sample_trace(steps, num_tokens=512, top_k=8, seed=0)
    path = tmp_path_factory.mktemp("checklist") / "run.safetensors"
    eq.write_trace(trace, path, format="equipoise")
    return str(path)


def run(capsys, *arguments):
    assert main(["checklist", *arguments]) == 0
    return capsys.readouterr().out


def test_the_recording_that_ships_with_its_own_model(capsys):
    line = "sample --ranks 8 --model sample --hardware h100 --phase decode"
    assert "8. load balancing: " in run(capsys, *line.split())


def test_decisions_in_their_order_with_the_options_of_the_engine(recording, capsys):
    out = run(capsys, recording, *DEPLOYMENT, "--for", "vllm")
    places = [out.index(f"\n{n}. {topic}: ") for n, topic in enumerate(TOPICS, 1)]
    assert places == sorted(places)
    assert "vLLM: --max-num-batched-tokens" in out
    assert "SGLang" not in out
    assert out.endswith(f"{CLOSING}\n")


def test_all_engines_unless_one_is_named(recording, capsys):
    document = json.loads(run(capsys, recording, *DEPLOYMENT, "--json"))
    assert [item["topic"] for item in document["items"]] == list(TOPICS)
    for item in document["items"]:
        assert list(item["options"]) == ["vllm", "sglang", "trtllm"]
    assert document["step_tokens"] == 512


def test_tensorrt_llm_is_timed_by_its_own_kernels(recording, capsys):
    out = run(capsys, recording, *DEPLOYMENT, "--for", "trtllm")
    assert "wideep_compute_cutlass" in out
    assert "deepepmoe" not in out


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_verdict_on_balancing_is_the_forecasts(phase, capsys):
    told = ("sample", "--ranks", "8", "--model", "sample", "--hardware", "h100", "--phase", phase)
    checked = json.loads(run(capsys, *told, "--for", "vllm", "--json"))["items"][-1]
    assert main(["forecast", *told, "--for", "vllm", "--planner", "greedy", "--json"]) == 0
    (foreseen,) = json.loads(capsys.readouterr().out)
    idle, best = foreseen["today"][0], foreseen["best"]
    numbers = checked["numbers"]
    assert numbers["idle_share"] == idle["share"]
    assert numbers["chance_share"] == idle["chance"]
    assert (numbers["redundant_slots"], numbers["gain"]) == (best["redundant"], best["gain"])
    assert foreseen["text"] in checked["means"]
    assert (checked["verdict"] == "change") == (foreseen["verdict"] == "recommend")


def test_a_drawn_size_is_the_forecasts_too(recording, capsys):
    sized = json.loads(run(capsys, recording, *DEPLOYMENT, "--step-tokens", "20000", "--json"))
    serve = "decode" if "decode: " in sized["items"][-1]["means"] else "prefill"
    told = (recording, *DEPLOYMENT, "--planner", "greedy", "--batch-tokens", "20000")
    assert main(["forecast", *told, "--serve", serve, "--json"]) == 0
    (foreseen,) = json.loads(capsys.readouterr().out)
    assert sized["items"][-1]["numbers"]["idle_share"] == foreseen["today"][0]["share"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--for", "ascend"), "No options of 'ascend' are known"),
        (("--link", "wet-string"), "There is no link profile 'wet-string'"),
        (("--step-tokens", "0"), "--step-tokens"),
    ],
)
def test_what_is_refused(recording, options, message, capsys):
    assert main(["checklist", recording, *DEPLOYMENT, *options]) == 2
    assert message in capsys.readouterr().err
