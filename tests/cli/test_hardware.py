"""``--hardware``: times and links from profiles, on every command that had them by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.cli.options.units import in_bytes, in_seconds
from equipoise.engines.machines import Serving, machine_of
from equipoise.engines.transformers.config import model_names
from equipoise.errors import EquipoiseError
from equipoise.sample import sample_trace_path
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.profiles import hardware, link, names
from tests.cli.conftest import LAYERS

PRICES = ("--dwell-steps", 5000, "--stall-seconds", "10ms", "--interference", 0.5)
PRICES = (*PRICES, "--delay-steps", 10, "--expert-bytes", "44M")
GREEDY = ("--planner", "greedy")


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    """Forty decode steps of 16 experts, one of them hot, top-2 of 500 tokens."""
    rng = np.random.default_rng(1)
    share = np.stack([rng.permutation([0.2] + [0.8 / 15] * 15) for _ in LAYERS])
    counts = np.stack([[rng.multinomial(1000, p) for p in share] for _ in range(40)])
    labels = {"phase": np.repeat("decode", 40)}
    trace = eq.Trace(counts=counts, layer_ids=LAYERS, top_k=2, labels=labels)
    path = tmp_path_factory.mktemp("decode") / "run.trace.safetensors"
    eq.write_trace(trace, path)
    return path


@pytest.fixture(scope="module")
def maps(decode, tmp_path_factory):
    paths = []
    for planner in (eq.Contiguous(), eq.Greedy()):
        plan = planner.plan(eq.Problem(eq.read_trace(decode), eq.Topology(4), 20))
        paths.append(tmp_path_factory.mktemp("maps") / f"{len(paths)}.json")
        eq.write_map(plan.placement, paths[-1], format="equipoise")
    return paths


def machine(decode, **values):
    told = Serving(**values)
    return machine_of(hardware("h100"), eq.read_trace(decode), None, eq.Topology(4), told)


def test_a_forecast_counts_whole_steps_and_says_where_values_came_from(decode, document, text):
    options = ("forecast", decode, "--ranks", 4, *GREEDY, "--hardware", "h100")
    (answer,) = document(*options)
    costs = machine(decode)
    assert answer["model"] == "H100 SXM, decode"
    assert answer["hardware"] == costs.facts
    assert answer["hardware"]["model"] == "deepseek-v3, since no model was given"
    assert answer["hardware"]["attention"].endswith("4096 tokens of context (assumed)")
    assert answer["counts"] == "counting whole steps"
    parts = answer["parts"]
    total = sum(seconds for name, seconds in parts.items() if name != "hidden")
    assert total == pytest.approx(answer["best"]["plain_seconds"], rel=1e-6)
    out = text(*options)
    lines = [line for line in out.splitlines() if line]
    assert lines[1] == lines[-1]
    assert "counting whole steps" in lines[1]
    assert "  experts: deepepmoe (sglang, decode steps) fitted on H100\n" in out
    assert "attention and the rest" in out


def test_how_steps_run_is_counted(decode, document):
    options = ("forecast", decode, "--ranks", 4, *GREEDY, "--hardware", "h100", "--redundant", 0)
    told = ("--overlap", "--context-tokens", 100, "--chunk-tokens", 100)
    told = (*told, "--attention-imbalance", 1.5, "--exchange", "high-throughput")
    (plain,), (answer,) = document(*options), document(*options, *told)
    assert answer["hardware"]["attention"].endswith("100 tokens of context")
    assert "deepep_normal" in answer["hardware"]["exchanges"]
    assert answer["parts"]["rereading"] > plain["parts"]["rereading"] == 0
    assert answer["parts"]["hidden"] > plain["parts"]["hidden"] == 0
    assert answer["parts"]["own_wait"] > plain["parts"]["own_wait"] == 0


def test_tokens_size_the_steps(decode, document):
    options = ("forecast", decode, "--ranks", 4, *GREEDY, "--hardware", "h100", "--redundant", 0)
    by_tokens = document(*options, "--batch-tokens", 4000)
    assert by_tokens == document(*options, "--step-assignments", 8000)
    assert by_tokens[0]["parts"]["own"] > document(*options)[0]["parts"]["own"]


def test_a_plan_goes_by_whole_steps_of_the_hardware(decode, document, text):
    options = ("plan", decode, "--ranks", 4, "--redundant", 4, *GREEDY)
    answer = json.loads(text(*options, "--hardware", "h100", "--json", status=1))
    costs, topology = machine(decode), eq.Topology(4)
    fit, held = eq.read_trace(decode).split(at=0.8)
    plan = eq.Greedy().plan(eq.Problem(fit, topology, 20))
    judge = eq.Even(cost=costs.planning_cost)
    expected = eq.evaluate(plan.placement, held, dispatch=judge).peak
    verdict, whole = answer["verdict"], answer["verdict"]["whole_steps"]
    assert verdict["unit"] == "seconds"
    assert verdict["after"] == pytest.approx(expected.mean())
    load = held.counts.astype(float)
    before, after = (
        layout.step_seconds(load, topology, [costs])[0].mean()
        for layout in (Layout.unbalanced(held, 4), Layout(placement=plan.placement, dispatch=judge))
    )
    assert (whole["before_seconds"], whole["after_seconds"]) == pytest.approx((before, after))
    assert whole["experts_after_seconds"] == pytest.approx(expected.sum(axis=1).mean(), rel=0.1)
    assert whole["counts"] == "counting whole steps"
    assert f"a step takes {1e3 * after:.3f} ms instead of {1e3 * before:.3f}" in verdict["text"]
    assert verdict["is_gain"] is False
    assert {"experts", "exchanges", "attention"} < answer["hardware"].keys()
    assert document(*options)["hardware"] == {}


def test_steps_run_the_same_way_for_a_plan_as_for_a_forecast(decode, document):
    shared = ("--ranks", 4, *GREEDY, "--hardware", "h100")
    longer = ("--context-tokens", 100_000)
    (forecast,) = document("forecast", decode, *shared, *longer, "--redundant", 4)
    plan = document("plan", decode, *shared, *longer, "--redundant", 4, status=1)
    even = next(o for o in forecast["options"] if o["dispatch"] == "even")
    whole = plan["verdict"]["whole_steps"]
    assert whole["before_seconds"] == pytest.approx(even["plain_seconds"])
    assert whole["after_seconds"] == pytest.approx(even["step_seconds"])


def test_a_budget_is_in_whole_steps_of_the_hardware(decode, document, text):
    options = ("budget", decode, "--ranks", 4, *GREEDY, "--up-to", 4)
    answer = document(*options, "--hardware", "gb200")
    assert answer["hardware"]["GPU"].startswith("GB200")
    (forecast,) = document(
        "forecast", decode, "--ranks", 4, *GREEDY, "--hardware", "gb200", "--redundant", "0,4",
        "--dispatch", "even",
    )  # fmt: skip
    plan = document(
        "plan", decode, "--ranks", 4, *GREEDY, "--hardware", "gb200", "--redundant", 4, status=1
    )
    of_plan = plan["verdict"]["whole_steps"]["experts_after_seconds"]
    assert answer["points"][1]["expert_seconds"] == pytest.approx(of_plan)
    for point, option in zip(answer["points"], forecast["options"], strict=True):
        assert point["step_seconds"] == pytest.approx(option["step_seconds"])
        assert 0 < point["expert_seconds"] < point["step_seconds"]
    assert answer["counts"] == "counting whole steps"
    assert "whole time of" in answer["advice"]
    out = text(*options, "--hardware", "gb200")
    assert "step ms" in out
    assert "experts ms" in out
    plain = document(*options)
    assert plain["points"][0]["step_seconds"] is None
    assert plain["hardware"] == {}


def test_a_move_is_priced_over_the_wires_of_the_hardware(decode, maps, document):
    options = ("diff", *maps, "--expert-bytes", "44M", "--ranks-per-node", 2)
    by_hand, h100, slow = (
        document(*options, *more)
        for more in ((), ("--hardware", "h100"), ("--hardware", "h100", "--link", "aws-efa"))
    )
    assert by_hand["bytes"] == h100["bytes"]
    assert by_hand["seconds"] != h100["seconds"] < slow["seconds"]
    assert slow["hardware"]["between nodes"].startswith("AWS EFA")
    decided = ("diff", *maps, "--trace", decode, *PRICES, "--hardware", "h100")
    near, across = (document(*decided, *more) for more in ((), ("--ranks-per-node", 1)))
    assert near["decision"]["move_seconds"] < across["decision"]["move_seconds"]
    assert near["hardware"]["experts"].startswith("deepepmoe")
    whole = near["whole_steps"]
    saved = whole["before_seconds"] - whole["after_seconds"]
    assert near["decision"]["gain_seconds"] == pytest.approx(saved)
    assert whole["experts_before_seconds"] < whole["before_seconds"]


def test_nodes_are_as_the_profile_says_unless_given(decode, document):
    options = ("forecast", decode, "--ranks", 16, *GREEDY, "--redundant", 0, "--hardware")
    (h100,), (gb200,) = document(*options, "h100"), document(*options, "gb200")
    (near,) = document(*options, "h100", "--ranks-per-node", 16)
    assert "between nodes" in h100["hardware"]
    assert "between nodes" not in gb200["hardware"]
    assert near["parts"]["exposed"] < h100["parts"]["exposed"]


def test_a_profile_of_ones_own_is_read_from_its_file(decode, document, tmp_path):
    shipped = files("equipoise.simulate.profiles") / "data" / "hardware" / "h100.json"
    profile = json.loads(shipped.read_text())
    profile["name"] = "H100 of ours"
    (tmp_path / "ours.json").write_text(json.dumps(profile))
    options = ("forecast", decode, "--ranks", 4, *GREEDY, "--redundant", 0)
    (answer,) = document(*options, "--hardware", tmp_path / "ours.json")
    assert answer["model"] == "H100 of ours, decode"
    assert "another GPU: 17% less sure" in answer["hardware"]["experts"]


def test_the_model_says_what_experts_and_slots_take(document):
    options = ("forecast", sample_trace_path(), "--ranks", 8, "--phase", "decode", *GREEDY)
    options = (*options, "--redundant", "0,8", "--dispatch", "even")
    (answer,) = document(
        *options, "--hardware", "h100", "--model", "gpt-oss-20b", "--only-layers", 0
    )
    assert answer["hardware"]["model"] == "gpt-oss-20b"
    expert = 3 * 2880 * 2880
    size = 24 * (expert // 2 + expert // 32 + 2 * 3 * 2880)
    assert [o["bytes_per_rank"] for o in answer["options"]] == [0, size]
    assert answer["verdict"] == "not now"


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("forecast", ("--rank-cost", "h100-deepep-ep8"), "--hardware and --rank-cost both set"),
        ("plan", ("--rank-cost", "h100-deepep-ep8"), "--hardware and --rank-cost both set"),
        ("budget", ("--rank-cost", "h100-deepep-ep8"), "--hardware and --rank-cost both set"),
        ("forecast", ("--cost-error", "0.1"), "--cost-error: not with --hardware"),
        ("forecast", ("--batch-tokens", "9", "--step-assignments", "9"), "give one of the two"),
        ("forecast", ("--ranks-per-node", "3"), "4 ranks do not divide into nodes of 3"),
        ("forecast", ("--model", "nobody"), "There is no model 'nobody'; give its config.json, or"),
        ("budget", ("--link", "string"), "no link profile 'string'"),
        ("budget", ("--link", "aws-efa"), "the 4 ranks are in one node"),
    ],
)
def test_clashes_are_refused_in_a_sentence(decode, command, options, said, capsys):
    arguments = [command, str(decode), "--ranks", "4", "--hardware", "h100", *options]
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_what_only_hardware_uses_is_refused_without_it(decode, maps, capsys):
    for command in (("forecast", decode, "--ranks", 8), ("plan", decode, "--ranks", 8)):
        assert main([*map(str, command), "--link", "aws-efa"]) == 2
        assert "--link: only with --hardware" in capsys.readouterr().err
    assert main(["forecast", str(decode), "--ranks", "8", "--overlap"]) == 2
    assert "--overlap: only with --hardware" in capsys.readouterr().err
    assert main(["diff", *map(str, maps), "--serve", "decode"]) == 2
    assert "--serve: only with --hardware" in capsys.readouterr().err
    assert main([*map(str, ("diff", *maps, "--trace", decode, *PRICES))]) == 2
    assert "give --rank-cost (or --hardware) as well" in capsys.readouterr().err


def test_steps_that_do_not_say_what_they_do_are_asked_for(recording, capsys):
    options = ["--ranks", "4", "--hardware", "h100"]
    assert main(["forecast", str(recording), *options]) == 2
    assert "give --serve, decode or prefill" in capsys.readouterr().err
    assert main(["forecast", str(sample_trace_path()), *options]) == 2
    assert "keep one kind with --phase" in capsys.readouterr().err


def test_a_trace_without_top_k_needs_it_for_tokens(decode):
    trace = replace(eq.read_trace(decode), top_k=None)
    costs = machine_of(hardware("h100"), trace, None, eq.Topology(4), Serving())
    assert costs.top_k == 8  # of the model that stands in
    far = machine_of(
        hardware("h100"), trace, None, eq.Topology(4, 2), Serving(link=link("aws-efa"))
    )
    assert far.far.message_seconds > 0


def test_every_name_that_ships_is_on_its_page():
    docs = Path(__file__).parents[2] / "docs"
    models = (docs / "reference" / "model-config.md").read_text()
    assert not [name for name in model_names() if f"`{name}`" not in models]
    commands = (docs / "reference" / "commands.md").read_text()
    assert not [name for name in names("hardware") if name not in commands]


class _Token:
    def __init__(self, value: str) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("text", "value"),
    [("44040192", 44_040_192), ("44M", 44_000_000), ("42MiB", 42 << 20), ("2.5 GB", 2.5e9)],
)
def test_bytes_have_units(text, value):
    assert in_bytes(int, [_Token(text)]) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0.02", 0.02), ("20ms", 0.02), ("150us", 150e-6), ("1e-3", 1e-3)]
)
def test_seconds_have_units(text, value):
    assert in_seconds(float, [_Token(text)]) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "ms", "20MB", "1e999", "nan", "inf", "1,5s", "9" * 400])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(EquipoiseError, match="is not a number of seconds, as in"):
        in_seconds(float, [_Token(text)])


@pytest.mark.parametrize("text", ["20ms", "1.5", "44 Megabytes", "0x10"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(EquipoiseError, match="number of bytes"):
        in_bytes(int, [_Token(text)])
