from __future__ import annotations

import json
from pathlib import Path

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.plan import Greedy
from equipoise.plan.weigh.budget import budget
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.topology import Topology

QUICK = ("--ranks", "4", "--planner", "greedy")


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Thirty steps of a skewed router: layers 2 to 4, 16 experts, top-2."""
    popularity = lognormal(16, sigma=1.0, num_layers=3, seed=1)
    trace = sample_trace(steady(popularity, num_steps=30), num_tokens=2000, top_k=2, seed=2)
    trace = eq.Trace(counts=trace.counts, layer_ids=(2, 3, 4), top_k=2)
    path = tmp_path_factory.mktemp("recording") / "run.trace.safetensors"
    eq.write_trace(trace, path)
    return path


def run(capsys, recording, *arguments):
    assert main(["budget", str(recording), *arguments]) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith("equipoise: note: ") for line in err.splitlines())
    return out


def test_the_document_says_what_the_library_says(recording, capsys):
    options = ("--up-to", "8", "--hold-out", "0.3", "--expert-bytes", "1000")
    document = json.loads(
        run(capsys, recording, *QUICK, *options, "--kv-bytes-per-token", "70", "--json")
    )
    fit, held = eq.read_trace(recording).split(at=0.7)
    expected = budget(
        fit,
        held,
        Topology(4),
        up_to=8,
        planner=Greedy(),
        expert_bytes=1000,
        kv_bytes_per_token=70,
    )
    assert document["planner"] == expected.planner
    assert (document["ranks"], document["experts"], document["layers"]) == (4, 16, [2, 3, 4])
    assert document["held_out_steps"] == len(held.counts) == 9
    assert document["advice"] == expected.advice
    assert document["layer_gain"] == expected.layer_gain.tolist()
    first = expected.points[0]
    for row, point in zip(document["points"], expected.points, strict=True):
        assert row["redundant"] == point.redundant[0]
        assert row["mean_imbalance"] == point.mean_imbalance
        assert row["kv_tokens"] == point.bytes_per_rank // 70
        assert row["gain"] == vars(point.gain_over(first))
        assert row["pays"] == (point in expected.front and point is not first)
    chosen = expected.allocation(3)
    by_layer = document["points"][1]["by_layer"]
    assert by_layer["redundant"] == list(chosen.redundant)
    assert by_layer["gain_over_equal_layers"] == vars(chosen.gain_over(expected.points[1]))


def test_the_table(recording, capsys):
    out = run(capsys, recording, *QUICK, "--up-to", "8", "--expert-bytes", "1000000000")
    assert "Max/mean rank load of 6 unseen steps, even split" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "0.000"] in [row[:2] for row in rows]
    assert ["8", "6.000"] in [row[:2] for row in rows]
    assert "redundant slots a layer pay: " in out
    assert "unseen windows for " in out


def test_layers_that_should_differ_are_named(tmp_path, capsys):
    counts = [[[10] * 8, [100, 90 + i % 2, 80, *[10] * 5]] for i in range(30)]
    path = tmp_path / "run.trace.safetensors"
    eq.write_trace(eq.Trace(counts=counts, layer_ids=(5, 9)), path)
    out = run(capsys, path, *QUICK, "--up-to", "8")
    assert "At the memory of 4 redundant slots, layers that differ take " in out
    assert out.endswith(
        " more off:\n  0 redundant slots: layers 5\n  8 redundant slots: layers 9\n"
        "Advice only: the engines' maps have the same number of slots in every layer.\n"
    )
    assert "Advice only" not in run(capsys, path, *QUICK, "--up-to", "4")


def test_the_least_gain_that_is_worth_a_slot(recording, capsys):
    arguments = (*QUICK, "--up-to", "8", "--json")
    first = json.loads(run(capsys, recording, *arguments))
    assert (first["least_gain"], first["decided"]) == (0.01, True)
    assert any(point["pays"] for point in first["points"])
    strict = json.loads(run(capsys, recording, *arguments, "--least-gain", "0.9"))
    assert not any(point["pays"] for point in strict["points"])
    assert "it is not certain that they save 90.0% for each further slot" in strict["advice"]


@pytest.mark.parametrize("name", ["s1_10", "s4_10"])
def test_a_recording_of_ten_steps_is_no_evidence(name, capsys):
    path = Path(__file__).parents[1] / "cases" / "short_recordings" / f"{name}.npz"
    out = run(capsys, path, "--ranks", "8", "--planner", "greedy")
    assert out.endswith(
        "No verdict: 2 unseen windows cannot tell a gain from chance; it takes 5 or more. Record "
        "more steps, or hold out more of them.\n"
    )
    document = json.loads(run(capsys, path, "--ranks", "8", "--planner", "greedy", "--json"))
    assert not document["decided"]
    assert not any(point["pays"] for point in document["points"])


def test_a_planner_of_fixed_graphs_begins_where_it_can(recording, capsys):
    """A cube joins eight ranks by two edges each: redundant slots come in sixteens."""
    arguments = ("--ranks", "8", "--up-to", "16", "--planner", "fixed-graph", "--graph", "cube")
    document = json.loads(run(capsys, recording, *arguments, "--json"))
    assert [point["redundant"] for point in document["points"]] == [0, 16]


def test_several_planners_are_weighed_on_the_same_steps(recording, tmp_path, capsys):
    page = tmp_path / "budget.html"
    arguments = (*QUICK, "--up-to", "8", "--also", "contiguous,round-robin", "--html", str(page))
    document = json.loads(run(capsys, recording, *arguments, "--json"))
    alone = json.loads(run(capsys, recording, *QUICK, "--up-to", "8", "--json"))
    assert alone == document | {"also": []}
    assert [x["planner"] for x in document["also"]] == ["Contiguous()", "RoundRobin()"]
    other = json.loads(run(capsys, recording, "--ranks", "4", "--planner", "contiguous",
                           "--up-to", "8", "--json"))  # fmt: skip
    assert document["also"][0]["points"] == other["points"]
    assert "with the planner greedy" in page.read_text()
    out = run(capsys, recording, *arguments)
    for planner in ("Greedy()", "Contiguous()", "RoundRobin()"):
        assert f"\n{planner}\n" in out


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("best", "There is no planner 'best'"),
        ("robust,trtllm,contiguous,round-robin,survivable", "6 planners are named; compare at"),
        ("hierarchical", "The planner hierarchical needs --expert-groups"),
        ("repair", "The planner repair needs the placement in force"),
    ],
)
def test_planners_that_cannot_be_compared_are_refused(recording, capsys, also, said):
    assert main(["budget", str(recording), *QUICK, "--also", also]) == 2
    assert said in capsys.readouterr().err


def test_prices_are_left_out_where_none_are_given(recording, capsys):
    out = run(capsys, recording, *QUICK, "--up-to", "4")
    assert "GB a rank" not in out
    assert "a GB" not in out


def test_robust_plans_for_the_dispatcher(recording, capsys):
    arguments = ("--ranks", "4", "--up-to", "4", "--proposals", "2000", "--dispatch", "minmax")
    document = json.loads(run(capsys, recording, *arguments, "--json"))
    assert document["planner"].startswith("Robust(dispatch='minmax'")
    assert "proposals=2000" in document["planner"]
    assert document["dispatch"] == "minmax"
