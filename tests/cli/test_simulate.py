"""`equipoise simulate` end to end, in process."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.control.exposition import Samples
from equipoise.control.metric_families import DESCRIPTIONS
from equipoise.simulate.profiles import prior
from equipoise.simulate.routers import lognormal, sample_trace, steady

RANKS, EXPERTS, TOP_K = 4, 16, 2
COMMON = ("--ranks", 4, "--rate", 100, "--duration", 2, "--output-tokens", 20)
TIMES = ("--rank-cost", "gb200-cutlass-ep8", "--other-seconds", "0.002")
GREEDY = ("--redundant", 4, "--planner", "greedy")


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory):
    popularity = lognormal(EXPERTS, sigma=1.0, num_layers=3, seed=1)
    trace = sample_trace(steady(popularity, num_steps=40), num_tokens=2000, top_k=TOP_K, seed=2)
    path = tmp_path_factory.mktemp("simulate") / "run.trace.safetensors"
    eq.write_trace(trace, path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(a) for a in ("simulate", *arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def document(capsys, *arguments: object):
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def refusal(capsys, *arguments: object) -> str:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    return err


def test_a_plan_next_to_no_balancing_with_the_answer_first_and_last(trace_file, capsys):
    status, out, _ = run(capsys, trace_file, *COMMON, *TIMES, *GREEDY)
    assert status == 0
    verdicts = [line for line in out.splitlines() if line.startswith("the plan: ")]
    assert len(verdicts) == 2
    assert len(set(verdicts)) == 1
    assert "8 recorded steps, planned on 32 others" in out
    for row in ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "tokens/s", "goodput", "queue"):
        assert row in out


def test_equal_seeds_give_equal_documents_and_others_do_not(trace_file, capsys):
    arguments = (trace_file, *COMMON, *TIMES, *GREEDY)
    first = document(capsys, *arguments)
    assert document(capsys, *arguments) == first
    assert document(capsys, *arguments, "--seed", 1)["before"] != first["before"]
    assert first["requests"] == 200
    assert first["verdict"] == first["text"].split(":")[0]
    assert first["kv_tokens"] == {"before": None, "after": None}


def test_a_map_that_is_no_balancing_makes_no_difference(trace_file, tmp_path, capsys):
    identity = eq.Placement([range(EXPERTS)] * 3, num_ranks=RANKS, num_experts=EXPERTS)
    path = tmp_path / "map.json"
    eq.write_map(identity, path, format="equipoise")
    answer = document(capsys, trace_file, *COMMON, *TIMES, "--map", path)
    assert answer["before"] == answer["after"]
    assert answer["verdict"] == "no difference"
    assert (answer["planned_steps"], answer["drawn_from_steps"]) == (None, 40)


def test_a_map_that_gathers_the_hot_experts_is_worse(trace_file, tmp_path, capsys):
    heavy_first = np.argsort(-eq.read_trace(trace_file).counts.sum(axis=0), axis=1)
    bad = eq.Placement(heavy_first, num_ranks=RANKS, num_experts=EXPERTS)
    path = tmp_path / "map.json"
    eq.write_map(bad, path, format="equipoise")
    loaded = ("--ranks", 4, "--rate", 1000, "--duration", 1, "--max-sequences", 512)
    answer = document(capsys, trace_file, *loaded, *TIMES, "--map", path)
    assert answer["step_gain"] < 0
    assert answer["verdict"] == "worse"


def test_requests_of_a_file(trace_file, tmp_path, capsys):
    path = tmp_path / "requests.csv"
    rows = "".join(f"{i / 10},{50 + i},{5 + i % 3}\n" for i in range(30))
    path.write_text("arrival_seconds,prompt_tokens,output_tokens\n" + rows)
    arguments = (trace_file, "--ranks", 4, *TIMES, *GREEDY, "--requests", path)
    assert document(capsys, *arguments)["requests"] == 30
    assert "--rate: only without --requests" in refusal(capsys, *arguments, "--rate", 5)
    assert "--spread: only without" in refusal(capsys, *arguments, "--spread", 1)


def test_hardware_times_exchanges_and_gives_the_cache_its_room(tmp_path, capsys):
    popularity = lognormal(32, sigma=1.0, num_layers=24, seed=1)
    counts = np.random.default_rng(0).multinomial(4000, popularity, size=(12, 24))
    path = tmp_path / "oss.trace.safetensors"
    eq.write_trace(eq.Trace(counts=counts, top_k=4), path)
    arguments = (path, *COMMON, "--hardware", "h100", "--model", "gpt-oss-20b", *GREEDY)
    answer = document(capsys, *arguments)
    kv = answer["kv_tokens"]
    assert kv["before"] > kv["after"] > 100_000
    assert set(answer["hardware"]) >= {"model", "GPU", "experts", "exchanges", "attention"}
    assert answer["costs"].startswith("H100")
    text = run(capsys, *arguments)[1]
    assert f"{kv['after']:,}" in text
    apart = document(capsys, *arguments, "--prefill-ranks", 2, "--hand-over-seconds", "0.001")
    assert {name.split("_")[0] for name in apart["before"]} >= {"prefill", "decode"}


def test_a_sweep_tries_all_cases_and_goes_on_where_it_was(trace_file, tmp_path, capsys):
    path = tmp_path / "sweep.jsonl"
    values = ("--redundant", "0,4", "--dispatch", "even,minmax", "--planner", "greedy")
    values += ("--duration", 1)
    arguments = (trace_file, "--ranks", 4, "--output-tokens", 20, *TIMES, *values)
    arguments += ("--sweep", path)
    rows = document(capsys, *arguments, "--rate", 50)
    cases = [(0, "even"), (0, "minmax"), (4, "even"), (4, "minmax")]
    assert [(r["redundant"], r["dispatch"]) for r in rows] == cases
    assert len(path.read_text().splitlines()) == 4

    more = document(capsys, *arguments, "--rate", "50,100")
    assert len(path.read_text().splitlines()) == len(more) == 8
    assert more[:4] == rows
    single = (*GREEDY, "--rate", 100, "--duration", 1, "--dispatch", "even")
    alone = document(capsys, trace_file, "--ranks", 4, "--output-tokens", 20, *TIMES, *single)
    [same] = [r for r in more if (r["rate"], r["redundant"], r["dispatch"]) == (100, 4, "even")]
    assert same["after"] == alone["after"]

    lines = run(capsys, *arguments, "--rate", "50,100")[1].splitlines()
    assert sum(line.lstrip().startswith(("50 ", "100 ")) for line in lines) == 8


def test_another_setting_is_another_case(trace_file, tmp_path, capsys):
    path = tmp_path / "sweep.jsonl"
    arguments = (trace_file, *COMMON, *TIMES, *GREEDY, "--sweep", path)
    document(capsys, *arguments)
    document(capsys, *arguments, "--max-sequences", 8)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TIMES, "Give --rate, the requests a second, or --requests"),
        (("--rate", 5), "The time of a step is not known; give --hardware, or --rank-cost"),
        (("--rate", "5,x", *TIMES), "--rate is '5,x'; expected numbers above 0"),
        (("--rate", "5,-1", *TIMES), "--rate is '5,-1'; expected numbers above 0"),
        (("--rate", "5,6", *TIMES), "make 2 cases; give one of each, or --sweep"),
        (("--rate", 5, "--redundant", "1.5", *TIMES), "--redundant is '1.5'"),
        (("--rate", 5, *TIMES, "--hardware", "h100"), "give one of the two"),
        (("--rate", 5, *TIMES, "--map", "m", "--redundant", 4), "--redundant: only for a plan"),
        (("--rate", 5, *TIMES, "--map", "m", "--seed-of", 4), "--seed-of"),
        (("--rate", 5, *TIMES, "--map", "m", "--hold-out", 0.5), "--hold-out: only for a plan"),
        (("--rate", 5, *TIMES, "--map", "m", "--planner", "greedy"), "--planner: only for a plan"),
        (("--rate", 5, *TIMES, "--hand-over-seconds", 1), "only with --prefill-ranks"),
        (("--rate", 5, *TIMES, "--chunked-prefill", 64), "--chunked-prefill is 64 with --max-seq"),
        (("--rate", 5, *TIMES, "--kv-tokens", 100), "raise --kv-tokens"),
        (("--rate", "1e-5", *TIMES), "expected 1 to"),
        (("--rate", 5, *TIMES, "--dispatch", "fair"), "fair"),
        (("--rate", 5, *TIMES, "--redundant", 3), "do not divide over 4 ranks"),
        (
            ("--rate", 5, "--hardware", "h100", "--serve", "decode", "--prefill-ranks", 2),
            "--serve: not with --prefill-ranks",
        ),
    ],
)
def test_what_would_be_ignored_or_does_not_fit_is_refused(arguments, message, trace_file, capsys):
    assert message in refusal(capsys, trace_file, "--ranks", 4, *arguments)


def test_a_map_of_another_model_is_refused(trace_file, tmp_path, capsys):
    path = tmp_path / "map.json"
    for other in (
        eq.Placement([range(EXPERTS)] * 2, num_ranks=RANKS, num_experts=EXPERTS),
        eq.Placement([range(EXPERTS)] * 3, num_ranks=8, num_experts=EXPERTS),
        eq.Placement([range(8)] * 3, num_ranks=RANKS, num_experts=8),
    ):
        eq.write_map(other, path, format="equipoise")
        assert "map" in refusal(capsys, trace_file, *COMMON, *TIMES, "--map", path)


def test_a_sweep_onto_the_recording_is_refused(trace_file, capsys):
    before = trace_file.read_bytes()
    arguments = (trace_file, *COMMON, *TIMES, *GREEDY, "--sweep", trace_file)
    assert "would be written over the input" in refusal(capsys, *arguments)
    assert trace_file.read_bytes() == before


def test_a_prior_is_marked_as_assumed(tmp_path, capsys):
    small = tmp_path / "small.json"
    small.write_text(replace(prior("gpt-oss-20b"), num_layers=2).to_json())
    arguments = ("--prior", small, *COMMON, *TIMES, "--redundant", 4, "--planner", "greedy")
    answer = document(capsys, *arguments)
    assert answer["assumed"]
    assert answer["text"].startswith("assumed, not recorded: ")
    out = run(capsys, *arguments)[1]
    assert out.count("the plan: assumed, not recorded: ") == 2
    assert "32 assumed steps, planned on 128 others" in out
    assert "one of the two" in refusal(capsys, tmp_path, *arguments)
    assert "--phase: only with a recording" in refusal(capsys, *arguments, "--phase", "decode")


def test_a_page_a_figure_and_metrics_say_what_the_document_says(trace_file, tmp_path, capsys):
    page, metrics, figure = (tmp_path / x for x in ("run.html", "run.prom", "ttft.svg"))
    said = document(
        capsys, trace_file, *COMMON, *TIMES, *GREEDY,
        "--html", page, "--figure", figure, "--metrics", metrics,
    )  # fmt: skip
    html = page.read_text()
    assert f"For users, the plan against no balancing: {said['verdict']}." in html
    assert f"{1e3 * said['after']['ttft_p99']:,.4g} ms" in html
    for name in ("ttft", "tpot", "steps"):
        assert f'id="{name}"' in html
    assert figure.read_bytes().startswith(b"<svg")
    told = Samples(metrics.read_text())
    assert told.total("equipoise_ttft_p99") == pytest.approx(said["after"]["ttft_p99"])
    assert told.total("equipoise_utilisation") == pytest.approx(said["after"]["serving_busy_share"])
    assert told.total("equipoise_requests_total", status="answered") == said["requests"]
    assert told.total("equipoise_tokens_total") == 20 * said["requests"]
    assert told.buckets("equipoise_ttft_seconds")[-1][1] == said["requests"]
    assert told.values("equipoise_info", "dispatch") == ["even"]
    known = {f"equipoise_{name}" for name in DESCRIPTIONS}
    assert all(any(name.startswith(one) for one in known) for name in told.names)
    assert len(metrics.read_text().splitlines()) < 100


def test_a_sweep_has_no_page_of_one_simulation(trace_file, tmp_path, capsys):
    error = refusal(
        capsys, trace_file, *COMMON, *TIMES, "--sweep", tmp_path / "s.jsonl",
        "--html", tmp_path / "x.html",
    )  # fmt: skip
    assert "are of one simulation" in error
    assert list(tmp_path.iterdir()) == []
