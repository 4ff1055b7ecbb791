"""The commands end to end, in process: what they print, write and return."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.registry import map_formats
from equipoise.simulate.routers import lognormal, sample_trace, steady

R0 = {"10_3": [5, 1, 0, 2], "10_4": [1, 3, 3, 1], "11_3": [4, 2, 1, 1], "11_4": [2, 2, 2, 2]}
R1 = {"10_3": [3, 3, 1, 1], "10_4": [0, 4, 4, 0], "11_3": [6, 0, 2, 0], "11_4": [1, 3, 0, 4]}

GOLDEN_REPORT = """\
Load statistics:
         mean       std  imbalance-ratio
3         8.0  5.656854             0.50
4         8.0  0.000000             0.00
average   8.0  2.828427             0.25
"""

GOLDEN_MAP = """\
initial_global_assignments:
  3: [0, 1, 0, 2, 0, 3]
  4: [3, 0, 1, 2, 1, 2]
layer_updates_per_iter: 0
num_slots: 6
"""

GOLDEN_PROJECTION = """\
Load statistics:
             mean       std  imbalance-ratio
3        5.333333  1.263763         0.218750
4        5.333333  3.031089         0.500000
average  5.333333  2.147426         0.359375
"""


@pytest.fixture
def golden_dump(tmp_path) -> Path:
    """TensorRT-LLM's example dump: two ranks, iterations 10 and 11, layers 3 and 4."""
    source = [[[r[f"{i}_{layer}"] for layer in (3, 4)] for r in (R0, R1)] for i in (10, 11)]
    array = np.array(source)
    trace = eq.Trace(
        counts=array.sum(axis=1),
        layer_ids=(3, 4),
        step_ids=np.array([10, 11]),
        top_k=2,
        source_counts=array,
    )
    path = tmp_path / "dump"
    eq.write_trace(trace, path, format="trtllm")
    return path


@pytest.fixture
def trace_file(tmp_path) -> Path:
    """Ten steps of a skewed router: 3 layers, 16 experts, top-2, layers numbered from 2."""
    popularity = lognormal(16, sigma=1.0, num_layers=3, seed=1)
    trace = sample_trace(steady(popularity, num_steps=10), num_tokens=500, top_k=2, seed=2)
    trace = eq.Trace(counts=trace.counts, layer_ids=(2, 3, 4), top_k=2)
    path = tmp_path / "run.trace.safetensors"
    eq.write_trace(trace, path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_report_prints_the_engines_own_table(golden_dump, capsys):
    status, out, _ = run(capsys, "report", golden_dump, "--engine-table", "rank")
    assert status == 0
    assert f"\n\n{GOLDEN_REPORT}" in out
    assert "Load statistics" not in run(capsys, "report", golden_dump)[1]


def test_report_projects_on_a_map(golden_dump, tmp_path, capsys):
    map_path = tmp_path / "map.yaml"
    map_path.write_text(GOLDEN_MAP)
    arguments = ("--map", map_path, "--ranks", 3, "--engine-table", "rank")
    status, out, _ = run(capsys, "report", golden_dump, *arguments)
    assert status == 0
    assert f"\n\n{GOLDEN_PROJECTION}" in out


@pytest.mark.parametrize(
    ("slots", "sentence"),
    [
        (
            [*range(16), 0, 1, 2, 3],
            "A lost rank takes 3.0 experts of a layer on average; up to 12 of 16 live on one rank "
            "only.",
        ),
        ([*range(16), *range(15, -1, -1)], "The loss of any rank leaves every expert alive."),
    ],
)
def test_report_says_what_a_lost_rank_takes(slots, sentence, trace_file, tmp_path, capsys):
    placement = eq.Placement([slots] * 3, num_ranks=4, num_experts=16, layer_ids=(2, 3, 4))
    eq.write_map(placement, tmp_path / "map.json", format="equipoise")
    arguments = ("report", trace_file, "--map", tmp_path / "map.json")
    assert f"\n{sentence}\n" in run(capsys, *arguments)[1]
    assert json.loads(run(capsys, *arguments, "--json")[1])["loss_of_a_rank"] == sentence


def test_report_per_expert(golden_dump, capsys):
    _, out, _ = run(capsys, "report", golden_dump, "--engine-table", "expert")
    assert "3         4.0  3.513202           1.2500\n" in out


def test_report_as_json(trace_file, capsys):
    status, out, _ = run(capsys, "report", trace_file, "--ranks", 4, "--json")
    document = json.loads(out)
    assert status == 0
    trace = eq.read_trace(trace_file)
    assert (document["after"], document["loss_of_a_rank"]) == (None, None)
    assert document["before"]["num_steps"] == 10
    gamma = eq.imbalance(trace.counts.reshape(10, 3, 4, 4).sum(axis=-1))
    assert document["before"]["balance"]["imbalance"] == pytest.approx(gamma.mean())
    assert [layer["layer"] for layer in document["before"]["layers"]] == [2, 3, 4]


def test_report_selects_and_sums(trace_file, capsys):
    arguments = ("--ranks", 4, "--only-layers", "3", "--window", 5, "--json")
    _, out, _ = run(capsys, "report", trace_file, *arguments)
    before = json.loads(out)["before"]
    assert (before["num_steps"], before["num_layers"]) == (2, 1)


def test_report_page(trace_file, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run(capsys, "report", trace_file, "--ranks", 4, "--html", page)[0] == 0
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert f"equipoise report {trace_file} --ranks 4 --html {page}" in text


def test_plan_page(trace_file, tmp_path, capsys):
    page = tmp_path / "plan.html"
    arguments = ("--ranks", 4, "--redundant", 4, "--planner", "greedy", "--html")
    status, out, _ = run(capsys, "plan", trace_file, *arguments, page, "--json")
    document, text = json.loads(out), page.read_text()
    assert status == (0 if document["verdict"]["is_gain"] else 1)
    for score in ("plain_held_out", "plan_held_out"):
        assert f"{document['scores'][score]['mean_imbalance']:.3f}" in text
    assert document["checksum"] in text


def test_forecast_page_and_pictures(trace_file, tmp_path, capsys):
    page, picture = tmp_path / "page.html", tmp_path / "layers.svg"
    arguments = ("--ranks", 4, "--planner", "greedy", "--rank-cost", "h100-deepep-ep32")
    outputs = ("--html", page, "--figure", picture, "--figure", tmp_path / "time.png")
    assert run(capsys, "forecast", trace_file, *arguments, *outputs)[0] == 0
    assert "step ms" in page.read_text()
    assert picture.read_text().startswith("<svg")
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_has_a_known_kind_and_name(trace_file, tmp_path, capsys):
    for name, said in {"layers.gif": "ends in png, pdf, svg", "what.svg": "no figure what"}.items():
        path = tmp_path / name
        status, _, err = run(capsys, "report", trace_file, "--ranks", 4, "--figure", path)
        assert status == 2
        assert said in err
        assert not path.exists()


def test_compare_scores_maps_as_the_library_does(trace_file, tmp_path, capsys):
    recorded = eq.read_trace(trace_file)
    plan = eq.Greedy().plan(eq.Problem(recorded, eq.Topology(4), 20)).placement
    one, page = tmp_path / "plan.json", tmp_path / "page.html"
    eq.write_map(plan, one, format="equipoise")
    status, out, _ = run(capsys, "compare", one, trace_file, "--html", page, "--json")
    document = json.loads(out)
    assert status == 0
    score = document["layouts"][str(one)]
    assert score["mean"] == pytest.approx(eq.evaluate(plan, recorded).mean_imbalance)
    assert document["best"] in document["layouts"]
    assert page.read_text().startswith("<!doctype html>")
    status, out, _ = run(capsys, "compare", one, trace_file)
    assert "no balancing" in out
    assert run(capsys, "compare", trace_file)[0] == 2


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        ([f"{n}.json" for n in range(6)], "6 maps were given; compare at most 5."),
        (["a.json", "b.json", "a.json"], "a.json is given 2 times; give each map once."),
    ],
)
def test_maps_that_cannot_be_shown_are_refused_before_any_is_read(maps, said, trace_file, capsys):
    status, out, err = run(capsys, "compare", *maps, trace_file)
    assert (status, out) == (2, "")
    assert said in err


def test_a_page_is_not_written_over_the_map(trace_file, tmp_path, capsys):
    one = tmp_path / "map.json"
    arguments = ("--ranks", 4, "--planner", "greedy", "--for", "equipoise", "-o", one)
    status, _, err = run(capsys, "plan", trace_file, *arguments, "--html", one)
    assert status == 2
    assert "the name of two outputs" in err
    assert not one.exists()


def test_plan_scores_steps_it_has_not_seen(trace_file, capsys):
    arguments = ("--ranks", 4, "--redundant", 4, "--hold-out", 0.3, "--planner", "greedy")
    status, out, _ = run(capsys, "plan", trace_file, *arguments, "--json")
    document = json.loads(out)
    fit, held = eq.read_trace(trace_file).split(at=0.7)
    plan = eq.Greedy().plan(eq.Problem(fit, eq.Topology(4), 20))
    unseen = eq.evaluate(plan.placement, held).mean_imbalance
    assert status == 0
    assert held.num_steps == 3
    assert document["checksum"] == plan.placement.checksum
    assert document["scores"]["plan_held_out"]["mean_imbalance"] == pytest.approx(unseen)
    assert unseen < document["scores"]["plain_held_out"]["mean_imbalance"]
    floor = eq.noise_floor(500, num_experts=16, top_k=2, num_ranks=4)
    assert document["noise_floor_held_out"] == pytest.approx(floor.mean)


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_plan_is_robust_for_the_dispatcher(dispatch, trace_file, capsys):
    arguments = ("--ranks", 4, "--redundant", 4, "--proposals", 5000, "--dispatch", dispatch)
    status, out, err = run(capsys, "plan", trace_file, *arguments, "--json")
    document = json.loads(out)
    fit, held = eq.read_trace(trace_file).split(at=0.8)
    problem = eq.Problem(fit, eq.Topology(4), 20)
    plan = eq.Robust(dispatch=dispatch, proposals=5000).plan(problem)
    unseen = eq.evaluate(plan.placement, held, dispatch=dispatch).mean_imbalance
    assert (status, err) == (0, "")
    assert document["dispatch"] == dispatch
    assert document["checksum"] == plan.placement.checksum
    assert document["scores"]["plan_held_out"]["mean_imbalance"] == pytest.approx(unseen)


@pytest.mark.parametrize("known", [f for f in map_formats() if f.write], ids=lambda f: f.name)
def test_a_map_for_every_engine(known, trace_file, tmp_path, capsys):
    output = tmp_path / f"map{known.suffixes[0]}"
    extra = ("--hidden-layers", 5) if known.name in ("sglang", "vllm-53022") else ()
    arguments = ("plan", trace_file, "--ranks", 4, "--redundant", 4, "--planner", "greedy")
    target = ("--for", known.name, "--output", output)
    status, out, err = run(capsys, *arguments, *target, *extra)
    assert (status, err) == (0, "")
    assert str(output) in out.replace("\n", "")
    deployment = ("--ranks", 4, "--experts", 16)
    assert run(capsys, "validate", output, "--for", known.name, *deployment)[0] == 0
    layers = ("--layers", "2-4")
    status, out, _ = run(
        capsys, "convert", output, "--format", known.name, "--to", "equipoise",
        "--output", tmp_path / "again.json", *deployment, *layers, *extra,
    )  # fmt: skip
    assert status == 0
    fit, _ = eq.read_trace(trace_file).split(at=0.8)
    wanted = eq.Greedy().plan(eq.Problem(fit, eq.Topology(4), 20)).placement
    assert eq.read_map(tmp_path / "again.json") == wanted


def test_plan_answers_as_the_engines_own_generator(golden_dump, tmp_path, capsys):
    output = tmp_path / "map.yaml"
    arguments = ("--ranks", 3, "--redundant", 2, "--planner", "trtllm", "--hold-out", 0)
    status, *_ = run(capsys, "plan", golden_dump, *arguments, "--for", "trtllm", "-o", output)
    assert status == 0
    assert output.read_text() == GOLDEN_MAP


def test_plan_prints_the_launch_flags(trace_file, tmp_path, capsys):
    arguments = ("--ranks", 4, "--redundant", 4, "--planner", "greedy", "--hidden-layers", 5)
    target = ("--for", "sglang", "-o", tmp_path / "loc.json")
    _, out, _ = run(capsys, "plan", trace_file, *arguments, *target)
    assert "--ep-num-redundant-experts 4" in out
    assert "--init-expert-location loc.json" in out


def test_a_map_the_engine_would_ignore_is_not_written(trace_file, tmp_path, capsys):
    output = tmp_path / "map.json"
    status, _, err = run(
        capsys, "plan", trace_file, "--ranks", 4, "--for", "vllm-49572",
        "--engine-version", "0.33.0", "--output", output,
    )  # fmt: skip
    assert status == 2
    assert "read by pr-49572 only" in err
    assert not output.exists()


def test_validate_takes_an_engine_without_maps_as_people_write_it(tmp_path, capsys):
    path = tmp_path / "plan.json"
    placement = eq.Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)
    eq.write_map(placement, path, format="equipoise")  # as plan --for vllm does
    status, out, _ = run(capsys, "validate", path, "--for", "vLLM")
    assert (status, out.splitlines()[-1]) == (0, f"{path}: equipoise: 0 errors, 0 warnings: valid.")


def test_validate_names_the_engine_of_a_map_for_another(tmp_path, capsys):
    path = tmp_path / "map.yaml"
    path.write_text(GOLDEN_MAP)
    status, _, err = run(capsys, "validate", path, "--for", "sglang")
    assert status == 2
    assert err.endswith(" It is a map for trtllm.\n")


def test_validate_says_no_with_every_defect(tmp_path, capsys):
    bad = tmp_path / "map.yaml"
    bad.write_text(
        GOLDEN_MAP.replace("[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, 0, 9]").replace("1, 2]", "1]")
    )
    status, out, _ = run(capsys, "validate", bad, "--ranks", 3, "--experts", 4)
    assert status == 1
    assert "slot 5 holds 9" in out
    assert "expert 3" in out
    assert "Layer 4" in out
    _, out, _ = run(capsys, "validate", bad, "--ranks", 3, "--experts", 4, "--json")
    document = json.loads(out)
    assert document["valid"] is False
    assert {f["layer"] for f in document["findings"] if f["severity"] == "error"} == {3, 4}


def test_convert_a_recording_says_what_is_lost(trace_file, tmp_path, capsys):
    status, out, _ = run(capsys, "convert", trace_file, "--to", "trtllm", "-o", tmp_path / "dump")
    assert status == 0
    assert (eq.read_trace(tmp_path / "dump").counts == eq.read_trace(trace_file).counts).all()
    assert "written as trtllm" in out


def test_convert_writes_the_golden_dump_back(golden_dump, tmp_path, capsys):
    native = tmp_path / "t.safetensors"
    assert run(capsys, "convert", golden_dump, "--to", "equipoise", "-o", native)[0] == 0
    assert run(capsys, "convert", native, "--to", "trtllm", "-o", tmp_path / "again")[0] == 0
    for file in golden_dump.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_diff_counts_moves(tmp_path, capsys):
    for name, slots in {"old": [[0, 1], [1, 0]], "new": [[0, 1], [0, 1]]}.items():
        placement = eq.Placement(slots, num_ranks=2, num_experts=2)
        eq.write_map(placement, tmp_path / f"{name}.json", format="equipoise")
    files = (tmp_path / "old.json", tmp_path / "new.json")
    status, out, _ = run(capsys, "diff", *files, "--expert-bytes", 10, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["moves"]["unchanged"] == 2
    assert document["moves"]["same_node"] == 2
    assert document["bytes"] == 20
    _, out, _ = run(capsys, "diff", *files)
    assert "2 experts are sent between ranks" in out


def test_usage_errors_are_status_2(capsys):
    for arguments in ([], ["plan"], ["unknown"], ["report", "x", "--unknown"]):
        status, out, err = run(capsys, *arguments)
        if arguments:
            assert status == 2, arguments
            assert err.startswith("equipoise: ")
        else:
            assert status == 0
            assert "Usage" in out


def test_no_progress_bar_and_no_colour_in_a_pipe(trace_file):
    command = [sys.executable, "-m", "equipoise", "report", str(trace_file), "--ranks", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_closed_pipe_is_no_error(trace_file):
    command = f"{sys.executable} -m equipoise report {trace_file} --ranks 4 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
