"""``equipoise forecast`` end to end, in process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.launch_flags import launch
from equipoise.plan.planners.eplb import Greedy
from equipoise.sample import sample_trace_path
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.forecast import Moving, forecast
from equipoise.simulate.profiles import prior
from equipoise.simulate.routers import lognormal, sample_trace, steady

LAYERS = (2, 3, 4)
COST = "h100-deepep-ep8"
QUICK = ("--ranks", 4, "--planner", "greedy", "--rank-cost", COST)
PRICES = ("--stall-seconds", 0.01, "--interference", 0.1, "--delay-steps", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Forty steps of a skewed router, far above the knee: 16 experts, top-2."""
    popularity = lognormal(16, num_layers=3, seed=1)
    trace = sample_trace(steady(popularity, num_steps=40), num_tokens=20_000, top_k=2, seed=2)
    trace = eq.Trace(counts=trace.counts, layer_ids=LAYERS, top_k=2)
    path = tmp_path_factory.mktemp("recording") / "run.trace.safetensors"
    eq.write_trace(trace, path)
    return path


def expected(run: Path, **values: object):
    return forecast(
        eq.read_trace(run),
        eq.Topology(4),
        UncertainCost.published(COST),
        **{"planner": lambda dispatch: Greedy()} | values,
    )


def test_the_document_says_what_the_library_says(run, document):
    (answer,) = document("forecast", run, *QUICK, "--expert-bytes", 1000)
    result = expected(run, slot_bytes=3000)
    assert answer["verdict"] == result.verdict.kind == "recommend"
    assert answer["text"] == result.verdict.text
    assert (answer["planned_steps"], answer["unseen_steps"]) == (32, 8)
    assert answer["today"][0]["share"] == result.today[0].share
    assert answer["best"] in answer["options"]
    for row, option in zip(answer["options"], result.options, strict=True):
        assert row["interval"] == list(option.interval)
        assert row["bytes_per_rank"] == option.bytes_per_rank
        for name in ("redundant", "dispatch", "step_seconds", "gain", "throughput", "needed"):
            assert row[name] == getattr(option, name)


def test_the_verdict_stands_first_and_last(run, text):
    out = text("forecast", run, *QUICK, "--redundant", "0,4", "--dispatch", "even")
    lines = [line for line in out.splitlines() if line]
    result = expected(run, redundant=[0, 4], dispatch=["even"])
    verdict = f"{COST}: {result.verdict.text}"
    assert (lines[1], lines[-1]) == (verdict, verdict)
    assert "Today ranks wait" in lines[2]
    assert "against no balancing; expert computation alone." in out
    other = text("forecast", run, *QUICK, "--dispatch", "even", "--other-seconds", 0.5)
    assert "500 ms of other work in every step" in other
    assert "recommend" not in other


def test_every_cost_has_its_verdict(run, document, text):
    costs = ("h100-deepep-ep8", "gb200-cutlass-ep8")
    answers = document("forecast", run, *QUICK[:4], "--rank-cost", ",".join(costs))
    assert [answer["model"] for answer in answers] == list(costs)
    options = ("--ranks", 8, "--planner", "greedy", "--dispatch", "even", "--redundant", 0)
    assert [a["model"] for a in document("forecast", run, *options)] == list(costs)
    out = text("forecast", run, *options)
    assert [out.count(f"{cost}: ") for cost in costs] == [2, 2]


def test_an_engine_gets_what_it_can_run_and_its_flags(run, document, text):
    (answer,) = document("forecast", run, *QUICK, "--for", "vllm")
    assert answer["best"]["dispatch"] == "vllm"
    assert {o["dispatch"] for o in answer["options"]} == {"even", "minmax", "vllm"}
    result = expected(run, dispatch=["even", "minmax", "vllm"], engine_dispatch="vllm")
    flags = launch(result.best.placement, "vllm", "MAP")
    assert answer["launch"]["command"] == list(flags.command)
    out = text("forecast", run, *QUICK, "--for", "vllm")
    assert f'"num_redundant_experts": {result.best.redundant}' in out
    assert "minmax, not by this engine" in out
    assert document("forecast", run, *QUICK, "--other-seconds", 9, "--for", "vllm")[0][
        "launch"
    ] is (None)
    own = document("forecast", run, *QUICK, "--for", "equipoise")[0]
    assert own["launch"] is None
    assert {o["can_run"] for o in own["options"]} == {True}


def test_the_map_in_force(run, document, text, tmp_path):
    current = eq.Placement(
        np.tile(np.arange(16), (3, 1)), num_ranks=4, num_experts=16, layer_ids=LAYERS
    )
    path = tmp_path / "map.json"
    eq.write_map(current, path, format="equipoise")
    options = (*QUICK, "--redundant", 0, "--dispatch", "even", "--from", path)
    priced = (*options, *PRICES, "--dwell-steps", 10_000, "--expert-bytes", 1000)
    (answer,) = document("forecast", run, *priced)
    moving = Moving(
        expert_bytes=1000, dwell_steps=10_000, stall_seconds=0.01, interference=0.1, delay_steps=2
    )
    result = expected(run, redundant=[0], dispatch=["even"], current=current, moving=moving)
    assert answer["against"] == "the map in force"
    assert answer["decision"]["break_even_steps"] == result.decision.break_even_steps
    assert answer["decision"]["text"] == result.decision.text
    assert result.decision.text in text("forecast", run, *priced)
    assert document("forecast", run, *options)[0]["decision"] is None


def test_the_model_prices_the_slots(run, document, text, tmp_path):
    facts = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 5,
        "first_k_dense_replace": 2,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "hidden_size": 8,
        "moe_intermediate_size": 8,
        "torch_dtype": "bfloat16",
        "kv_lora_rank": 4,
        "qk_rope_head_dim": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    options = ("--redundant", 4, "--dispatch", "even")
    (answer,) = document("forecast", run, *QUICK, *options, "--model", tmp_path)
    size = 3 * 3 * 8 * 8 * 2  # layers, matrices, rows, columns, bytes
    kv = 5 * (4 + 2) * 2
    assert answer["best"]["bytes_per_rank"] == size
    assert answer["best"]["kv_tokens"] == size // kv
    out = text("forecast", run, *QUICK, *options, "--model", tmp_path)
    assert "GB a rank" in out
    assert f"{size // kv}" in out.split("KV tokens")[1]
    priced = text("forecast", run, *QUICK, *options, "--expert-bytes", 10**9)
    assert "3.000" in priced.split("GB a rank")[1]
    assert "KV tokens" not in priced


@pytest.mark.parametrize("dispatch", [(), ("--dispatch", "even")])
def test_decode_steps_of_the_sample_are_left_alone(document, dispatch):
    """Below the knee a copy is one more expert to read: even on the tokens that it balances."""
    options = ("--phase", "decode", "--redundant", 8, *dispatch, "--planner", "greedy")
    (answer,) = document(
        "forecast", sample_trace_path(), "--ranks", 8, "--rank-cost", COST, *options
    )
    assert answer["verdict"] == "not now"
    assert answer["best"]["gain"] < 0
    assert answer["today"][0]["steps"] == "decode"


def test_few_steps_are_no_evidence(recording, document):
    """Ten steps, two of them held out."""
    (answer,) = document("forecast", recording, *QUICK)
    assert answer["verdict"] == "insufficient evidence"
    assert answer["unseen_steps"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dispatch", "even,best"), "There is no dispatcher 'best'"),
        (("--redundant", "1,x"), "--redundant is '1,x'"),
        (("--redundant", "1000"), "--redundant is 1000"),
        (("--use-async",), "--use-async: only with --for"),
        (("--dwell-steps", "3"), "--dwell-steps: only with --from"),
        (("--step-assignments", "1e15"), "--step-assignments is 1000000000000000"),
    ],
)
def test_what_cannot_be_is_refused(run, options, said, capsys):
    assert main(["forecast", str(run), *map(str, QUICK), *options]) == 2
    assert said in capsys.readouterr().err


def test_online_is_tried_next_to_plans_that_stay_and_prices_are_named(run, text, document):
    options = (*QUICK, "--redundant", 4, "--dispatch", "even", "--online", "--expert-bytes", "1M")
    options += ("--hold-out", 0.8)
    (answer,) = document("forecast", run, *options, "--plan-seconds", "1ms")
    static, online = answer["options"]
    assert (static["policy"], online["policy"]) == ("static", "online")
    assert (static["over_static"], len(online["over_static"])) == (None, 2)
    assert answer["best"] == static  # a steady router leaves a controller nothing to do
    found = answer["online"]
    assert (found["best"], found["plan_seconds"]) == (online, 0.001)
    assert found["assumed"].startswith("Assumed, since not given: --interference 1")
    out = text("forecast", run, *options, "--plan-seconds", "1ms")
    assert "even, online" in out
    assert "Online is our controller on " in out
    assert "not surely the 1.0% that would pay" in out


def test_a_prior_recommends_nothing(document, tmp_path, capsys):
    small = tmp_path / "small.json"
    small.write_text(replace(prior("gpt-oss-20b"), num_layers=2).to_json())
    assumed = (
        "forecast", "--prior", small, "--batch-tokens", 16_384, "--ranks", 8, "--rank-cost", COST,
        "--planner", "greedy", "--redundant", 8, "--dispatch", "vllm", "--for", "vllm",
    )  # fmt: skip
    (answer,) = document(*assumed)
    assert answer["assumed"]
    assert (answer["verdict"], answer["launch"]) == ("insufficient evidence", None)
    assert "assumed, not recorded; record your own steps" in answer["text"]
    assert "it would be: recommend: 8 redundant slots" in answer["text"]
    assert main([str(a) for a in assumed]) == 0
    assert "drawn from the prior gpt-oss-20b" in capsys.readouterr().err
