"""``equipoise tune`` end to end, in process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.cli.views.tune import front_plots
from equipoise.simulate.profiles import prior
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.simulate.tune import Setting

QUICK = (
    "--ranks", 4, "--rank-cost", "h100-deepep-ep8", "--expert-bytes", 10**6, "--proposals", 1024,
    "--redundant", 4, "--try-window", 8, "--try-interval", 8, "--plan-seconds", 0.001,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Eighty steps of a skewed router, far above the knee: 16 experts, top-2."""
    popularity = lognormal(16, num_layers=2, seed=1)
    trace = sample_trace(steady(popularity, num_steps=80), num_tokens=20_000, top_k=2, seed=2)
    path = tmp_path_factory.mktemp("recording") / "run.trace.safetensors"
    eq.write_trace(trace, path)
    return path


def test_the_document_has_the_front_and_what_to_use(run, document, tmp_path):
    results = tmp_path / "tune.jsonl"
    options = (*QUICK, "--dispatch", "even", "--results", results)
    answer = document("tune", run, *options)
    assert answer["replayed_steps"] == 40
    assert [s["kind"] for s in answer["settings"]] == ["none", "static", "engine", "online"]
    assert answer["best"] in answer["front"]
    assert answer["best"]["low"] > answer["best"]["needed"]
    assert not answer["assumed"]
    assert answer["none"]["gain"] == 0
    before = results.read_bytes()
    assert document("tune", run, *options) == answer
    assert results.read_bytes() == before  # nothing was replayed again


def test_the_text_has_the_answer_first_and_last_and_a_plot(run, text):
    out = text("tune", run, *QUICK, "--dispatch", "even", "--kinds", "static")
    lines = [line for line in out.splitlines() if line]
    assert lines[1] == lines[-1]
    assert lines[1].startswith("static, 4 redundant, even: a step takes")
    assert "GB a rank" in out
    assert any(line.endswith("A") for line in lines)  # the plot
    assert out.count("  step ms\n") == 1  # nothing moves, so moves are not plotted


def test_the_front_is_plotted_over_each_price_that_differs():
    none = Setting(
        kind="none", redundant=0, dispatch="even", window=0, interval=0, excess=0.0,
        step_seconds=0.003, gain=0.0, low=0.0, high=0.0, needed=0.0, bytes_per_rank=0, moves=0,
        moved_bytes=0, changes=0, imbalance=1.5, blocks=(),
    )  # fmt: skip
    kept = replace(none, step_seconds=0.002, bytes_per_rank=10**9)
    moved = replace(kept, step_seconds=0.001, moves=1200)
    assert front_plots([none]) == []
    plots = front_plots([moved, kept, none])
    assert [line.rsplit("  ")[-1] for line in plots if "0" in line and "|" not in line] == [
        "GB a rank",
        "slots moved",
    ]
    high, low = plots[2], plots[11]
    assert high.split("|") == ["    3.000 ", "C" + 55 * " "]
    assert low.split("|") == ["    1.000 ", 55 * " " + "A"]
    assert "1,200  slots moved" in plots[-1]


def test_settings_beyond_the_letters_are_plotted_too():
    many = [
        Setting(
            kind="static", redundant=n, dispatch="even", window=0, interval=0, excess=0.0,
            step_seconds=0.1 - 0.001 * n, gain=0.0, low=0.0, high=0.0, needed=0.0,
            bytes_per_rank=n * 10**9, moves=0, moved_bytes=0, changes=0, imbalance=1.5, blocks=(),
        )
        for n in range(60)
    ]  # fmt: skip
    lines = front_plots(many)
    low = next(line for line in lines if line.startswith("   41.000 |"))
    assert low.endswith("+")  # the sixtieth, with the shortest step and the most memory


def test_the_front_can_be_written_as_a_page(run, text, tmp_path):
    pytest.importorskip("vl_convert")
    page, figure = tmp_path / "tune.html", tmp_path / "front-moves.svg"
    quick = (*QUICK, "--dispatch", "even", "--kinds", "static")
    text("tune", run, *quick, "--html", page, "--figure", figure)
    assert "Settings for" in page.read_text(encoding="utf-8")
    assert figure.read_text(encoding="utf-8").startswith("<svg")


def test_an_engine_gets_its_flags_with_the_window_that_was_found(run, text, document):
    out = text("tune", run, *QUICK, "--for", "vllm", "--kinds", "engine")
    assert '\'{"num_redundant_experts": 4, "window_size": 8, "step_interval": 8' in out
    answer = document("tune", run, *QUICK, "--for", "trtllm", "--kinds", "static")
    assert answer["launch"]["engine"] == "trtllm"
    assert answer["best"]["dispatch"] == "trtllm"


def test_steps_of_another_size_are_drawn(run, document):
    sized = ("--step-tokens", 512, "--steps", 48, "--kinds", "static", "--dispatch", "even")
    answer = document("tune", run, *QUICK, *sized)
    assert answer["replayed_steps"] == 48
    assert any("Steps of 512 tokens were drawn" in note for note in answer["notes"])


def test_a_prior_is_marked_as_assumed(text, document, tmp_path):
    small = tmp_path / "small.json"
    small.write_text(replace(prior("gpt-oss-20b"), num_layers=2).to_json())
    assumed = (
        "tune", "--prior", small, "--step-tokens", 256, "--steps", 32, "--ranks", 4,
        "--rank-cost", "h100-deepep-ep8", "--expert-bytes", 10**6, "--proposals", 256,
        "--kinds", "static", "--redundant", 0, "--dispatch", "even",
    )  # fmt: skip
    answer = document(*assumed)
    assert answer["assumed"]
    assert answer["text"].startswith("assumed, not recorded: ")
    lines = [line for line in text(*assumed).splitlines() if line]
    assert lines[1] == lines[-1] == answer["text"]


def test_what_does_not_go_together_is_refused(run, capsys, tmp_path):
    for arguments, said in (
        ((run, *QUICK, "--prior", "glm-5.2"), "one of the two"),
        (QUICK, "Give a recording or --prior"),
        (("--prior", "glm-5.2", *QUICK), "--prior needs --step-tokens"),
        ((run, *QUICK, "--steps", 9), "--steps needs --step-tokens"),
        ((run, "--ranks", 4), "the size of an expert is not known"),
        ((run, "--ranks", 4, "--expert-bytes", 9), "no published constants for 4 ranks"),
        ((run, *QUICK, "--use-async"), "only with --for"),
        ((run, *QUICK, "--hardware", "h100"), "give one of the two"),
        ((run, *QUICK, "--link", "aws-efa"), "--link: only with --hardware"),
        ((run, *QUICK, "--for", "vllm", "--dispatch", "even"), "shares batches by vllm"),
        ((run, *QUICK, "--try-excess", "0,a"), "--try-excess is '0,a'"),
        ((run, *QUICK, "--try-excess", 0), "--try-excess is '0'"),
        ((run, *QUICK, "--results", run), "written over the input"),
        (("--prior", "glm-5.2", *QUICK, "--step-tokens", 9, "--phase", "decode"), "--phase: only"),
    ):
        assert main(["tune", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err


def test_hardware_times_whole_steps_and_says_where_times_are_from(run, text, document):
    times = ("--hardware", "h100", "--serve", "decode", "--redundant", 4, "--dispatch", "even")
    rest = ("--ranks", 4, "--expert-bytes", "1M", "--proposals", 256, "--kinds", "static,online")
    rest += ("--try-window", 8, "--try-interval", 8, "--plan-seconds", "1ms")
    answer = document("tune", run, *times, *rest)
    assert answer["model"] == "H100 SXM, decode"
    assert answer["counts"] == "counting whole steps"
    assert {"experts", "exchanges", "attention", "within a node"} <= answer["hardware"].keys()
    assert answer["prices"]["expert_bytes"] == 10**6
    experts_alone = document("tune", run, *QUICK, "--dispatch", "even", "--kinds", "static")
    assert answer["none"]["step_seconds"] > 1.2 * experts_alone["none"]["step_seconds"]
    out = text("tune", run, *times, *rest)
    assert "deepepmoe (sglang, decode steps) fitted on H100" in out
    assert "counting whole steps. No other setting" in out


def test_prices_that_nobody_gave_are_named(run, text, document):
    quick = (*QUICK, "--dispatch", "even", "--kinds", "static")
    said = "Assumed, since not given: --interference 1 (serving waits for transfers), "
    assert said + "--stall-seconds 0" in text("tune", run, *quick)
    whole = (*quick, "--interference", 0.1, "--stall-seconds", "20ms")
    prices = document("tune", run, *whole)["prices"]
    assert (prices["stall_seconds"], prices["assumed"]) == (0.02, "")
    assert "Assumed" not in text("tune", run, *whole)
