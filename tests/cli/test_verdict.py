"""Whether a plan is better than leaving things as they are, and what happens if it is not."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
from equipoise.cost import rank_cost
from equipoise.dispatch import Even, dispatcher
from equipoise.plan import (
    Contiguous,
    FixedGraph,
    Greedy,
    Robust,
    compare,
    evaluate,
    evaluate_without_balancing,
)
from equipoise.plan.weigh.reach import placement_without_balancing

COST = "h100-deepep-ep8"


@pytest.fixture
def sample():
    return eq.sample_trace_path()


def save(path, counts, **given):
    counts = np.asarray(counts)
    eq.write_trace(eq.Trace(counts=counts, layer_ids=tuple(range(counts.shape[1])), **given), path)
    return path


def decode(recording, *more):
    """A plan for decoding in which every copy is one more active expert."""
    return ("plan", recording, "--ranks", 8, "--redundant", 8, "--planner", "greedy",
            "--rank-cost", COST, *more)  # fmt: skip


def test_a_plan_that_is_worse_is_not_written(sample, tmp_path, text):
    output = tmp_path / "map.yaml"
    out = text(*decode(sample, "--for", "trtllm", "-o", output), status=1)
    assert "Leave it as it is. On 174 unseen steps the slowest rank takes " in out
    assert "% more than without balancing (" in out
    assert " us in a layer, even split.\n" in out
    assert "No map was written; --even-if-worse writes it nevertheless." in out
    assert not output.exists()
    out = text(*decode(sample, "--for", "trtllm", "-o", output, "--even-if-worse"))
    assert "Leave it as it is. On 174 unseen steps" in out
    assert output.is_file()


def test_the_verdict_is_in_seconds_not_in_ratios(sample, document):
    verdict = document(*decode(sample), status=1)["verdict"]
    fit, held = eq.read_trace(sample).split(at=0.8)
    topology = eq.Topology(8)
    judge = Even(topology=topology, cost=rank_cost(COST))
    placement = Greedy().plan(eq.Problem(fit, topology, 40)).placement
    plain = eq.evaluate(Contiguous().plan(eq.Problem(held, topology, 32)).placement, held,
                        dispatch=judge)  # fmt: skip
    planned = eq.evaluate(placement, held, dispatch=judge)
    loaded = held.counts.any(axis=2)
    assert verdict["before"] == pytest.approx(plain.peak[loaded].mean())
    assert verdict["after"] == pytest.approx(planned.peak[loaded].mean())
    assert (verdict["is_gain"], verdict["unit"]) == (False, "seconds")
    assert (verdict["against"], verdict["dispatch"]) == ("no balancing", "even")
    assert (verdict["held_out"], verdict["steps"]) == (True, 174)
    assert verdict["after"] - verdict["before"] > verdict["chance"] > 0


def test_a_gain_says_against_what(sample, document, text):
    command = ("plan", sample, "--ranks", 8, "--redundant", 8, "--planner", "greedy")
    verdict = document(*command)["verdict"]
    share = 1 - verdict["after"] / verdict["before"]
    sentence = (
        f"On 174 unseen steps the busiest rank carries {share:.1%} less than without balancing ("
    )
    assert (verdict["is_gain"], verdict["unit"]) == (True, "assignments")
    assert verdict["text"].startswith(sentence)
    assert verdict["text"] in text(*command)


def test_routing_at_the_noise_floor_is_no_gain(tmp_path, document):
    for seed in range(8):
        chance = np.random.default_rng(seed)
        counts = chance.multinomial(800, np.full(32, 1 / 32), (10, 3))
        recording = save(tmp_path / f"{seed}.trace.safetensors", counts)
        command = ("plan", recording, "--ranks", 8, "--planner", "greedy")
        verdict = document(*command, status=1)["verdict"]
        assert verdict["text"].startswith("Leave it as it is"), seed


def test_against_the_map_in_force(recording, tmp_path, document, text):
    trace = eq.read_trace(recording)
    _, held = trace.split(at=0.8)
    good = Greedy().plan(eq.Problem(trace, eq.Topology(4), 20)).placement
    current = tmp_path / "current.json"
    eq.write_map(good, current, format="equipoise")
    command = ("repair", current, recording, "--max-moves", 0)
    answer = document(*command, status=1)
    verdict = answer["verdict"]
    assert (verdict["against"], verdict["is_gain"]) == ("map in force", False)
    assert verdict["before"] == verdict["after"]
    assert verdict["text"].startswith("Leave it as it is: no measurable gain. ")
    on_map = eq.evaluate(good, held)
    assert answer["scores"]["current_held_out"]["mean_imbalance"] == on_map.mean_imbalance
    out = text(*command, status=1)
    assert "unseen steps, map in force" in out
    assert "than on the map in force" in out


def test_without_unseen_steps_nothing_is_verified(recording, sample, tmp_path, document):
    target = ("--for", "equipoise", "-o", tmp_path / "map.json")
    command = ("plan", recording, "--ranks", 4, "--redundant", 4, "--planner", "greedy")
    answer = document(*command, "--hold-out", 0, *target)
    assert answer["verdict"]["text"].startswith(
        "Nothing was verified, because no step was held out. On 10 planned steps the busiest rank "
    )
    assert answer["map"] is not None
    worse = document(*decode(sample, "--hold-out", 0, *target), status=1)
    assert worse["verdict"]["text"].startswith("Leave it as it is. Nothing was verified")
    assert worse["map"] is None


def test_a_single_unseen_step_tells_nothing_of_chance(recording, document):
    command = ("plan", recording, "--ranks", 4, "--redundant", 4, "--planner", "greedy")
    verdict = document(*command, "--hold-out", 0.1)["verdict"]
    assert verdict["chance"] is None
    assert verdict["text"].endswith("A single step does not tell a gain from chance.")


def test_insisting_without_a_map_is_refused(recording, capsys):
    assert eq.cli.main(["plan", str(recording), "--ranks", "4", "--even-if-worse"]) == 2
    assert "--even-if-worse: only for a map" in capsys.readouterr().err


# Without balancing --------------------------------------------------------------------------------


def test_uneven_experts_are_dealt_out_as_the_engines_do(document):
    answer = document("plan", "tests/cases/uneven_experts/q60.npz", "--ranks", 8, "--redundant", 4,
                      "--planner", "greedy")  # fmt: skip
    assert answer["scores"]["plain_fit"]["mean_imbalance"] == pytest.approx(2.87, abs=0.01)


def test_a_report_measures_the_same(document):
    answer = document("report", "tests/cases/uneven_experts/q60.npz", "--ranks", 8)
    assert answer["before"]["balance"]["imbalance"] == pytest.approx(2.87, abs=0.01)
    assert answer["before"]["num_slots"] == 60


def test_slots_that_stay_empty_hold_experts_that_the_model_has_not():
    trace = eq.Trace(counts=np.ones((1, 1, 5), np.int64))
    placement = placement_without_balancing(trace, 3)
    assert placement.by_rank.tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert placement.num_experts == 6


def test_uneven_ranks_by_hand():
    load = [[[1, 2, 4, 8, 16]], [[0, 0, 0, 0, 0]]]
    found = evaluate_without_balancing(load, eq.Topology(3))
    assert found.peak.tolist() == [[16], [0]]  # 1 + 2, 4 + 8, 16
    assert found.mean.tolist() == [[31 / 3], [0]]
    fast = eq.Topology(3, speed=(1, 1, 4))
    assert evaluate_without_balancing(load, fast).peak[0, 0] == 12 * 2  # of mean speed 2
    few = evaluate_without_balancing([[5, 7]], eq.Topology(4))
    assert few.peak.tolist() == [[7]]


@pytest.mark.parametrize("dispatch", ["even", "minmax", "nearest", "fewest"])
@pytest.mark.parametrize("speed", [None, (1, 2, 1, 4)])
def test_even_ranks_are_a_placement(dispatch, speed):
    topology = eq.Topology(4, 2, speed=speed)
    load = np.random.default_rng(0).integers(0, 50, (6, 3, 16))
    placement = Contiguous().plan(eq.Problem(load, topology, 16)).placement
    known = dispatcher(dispatch, topology)
    wanted = evaluate(placement, load, dispatch=known)
    found = evaluate_without_balancing(load, topology, dispatch=known)
    assert found.peak == pytest.approx(wanted.peak)
    assert found.mean == pytest.approx(wanted.mean)


# Chance -------------------------------------------------------------------------------------------


def test_chance_covers_what_it_says():
    """Few of 400 plans that are neither better nor worse are called better."""
    chance, called = np.random.default_rng(0), 0
    placements = [
        Contiguous().plan(eq.Problem(np.ones((1, 16)), eq.Topology(4), 16)).placement,
        eq.Placement([np.roll(np.arange(16), 2)], num_ranks=4, num_experts=16),
    ]
    for _ in range(400):
        load = chance.multinomial(400, np.full(16, 1 / 16), (int(chance.integers(2, 30)), 1))
        called += compare(*(evaluate(p, load) for p in placements)).is_sure
    assert called <= 0.025 * 400 + 3 * np.sqrt(0.025 * 400)


def test_a_gain_in_every_step_is_sure():
    before = evaluate(eq.Placement([[0, 1, 2, 3]], num_ranks=2, num_experts=4),
                      [[[9, 9, 1, 1]], [[9, 8, 1, 1]], [[8, 9, 1, 1]]])  # fmt: skip
    after = evaluate(eq.Placement([[0, 2, 1, 3]], num_ranks=2, num_experts=4),
                     [[[9, 9, 1, 1]], [[9, 8, 1, 1]], [[8, 9, 1, 1]]])  # fmt: skip
    found = compare(before, after)
    assert found.is_sure
    assert found.gain == pytest.approx(1 - 10 / (52 / 3))


# Before the search --------------------------------------------------------------------------------


def never(self, problem):
    raise AssertionError("the search has started")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--for", "trtllm", "-o", "m.yaml", "--engine-version", "next"), "no release 'next'"),
        (("--for", "trtllm", "-o", "m.yaml", "--architecture", "Llama"), "Llama"),
        (("--for", "trtllm", "-o", "m.yaml", "--backend", "TRITON"), "TRITON"),
        (("--for", "trtllm", "-o", "m.json"), "needs a name that ends in"),
        (("--for", "sglang", "-o", "m.json"), "give --hidden-layers"),
        (("--for", "sglang", "-o", "m.json", "--hidden-layers", 2), "correct --hidden-layers"),
        (("--for", "sglang", "-o", "m.json", "--hidden-layers", 9, "--engine-version", "0.5.16"),
         "gives wrong text"),
        (("--for", "vllm-49572", "-o", "m.json", "--engine-version", "0.33.0"), "would ignore"),
        (("--for", "vllm-49572", "-o", "m.json", "--backend", "X"), "do not depend on --backend"),
        (("--for", "trtllm", "-o", "missing/m.yaml"), "there is no folder"),
        (("--for", "trtllm", "-o", "/proc/m.yaml"), "cannot be written"),
        (("--for", "ascend", "-o", "m.json", "--room", "4,5,5,5"), "twice"),
        (("--redundant", 5), "do not divide"),
        (("--step-assignments", 1e20, "--rank-cost", COST), "2**53"),
    ],
)  # fmt: skip
def test_what_can_be_refused_is_refused_before_the_search(
    arguments, message, recording, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for planner in (Robust, Greedy, FixedGraph):
        monkeypatch.setattr(planner, "plan", never)
    layers = eq.read_trace(recording).layer_ids
    other = eq.Placement([range(16)] * 3, num_ranks=4, num_experts=16, layer_ids=layers)
    eq.write_map(other, tmp_path / "other.json", format="equipoise")
    given = {"--redundant": 4} if "--redundant" not in arguments else {}
    command = ["plan", recording, "--ranks", 4, *(x for pair in given.items() for x in pair)]
    assert eq.cli.main([str(a) for a in (*command, *arguments)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.json"]


def test_a_map_in_force_that_the_engine_would_refuse_may_be_mended(recording, tmp_path, text):
    trace = eq.read_trace(recording)
    repeats = np.tile([*range(4), 0, *range(4, 8), 4, *range(8, 12), 8, *range(12, 16), 12], (3, 1))
    twice = eq.Placement(repeats, num_ranks=4, num_experts=16, layer_ids=trace.layer_ids)
    eq.write_map(twice, tmp_path / "old.json", format="equipoise")
    output = tmp_path / "new.json"
    text("repair", tmp_path / "old.json", recording, "--proposals", 4000, "--for", "ascend",
         "-o", output)  # fmt: skip
    assert output.is_file()


def test_a_plan_is_not_lost_with_its_folder(recording, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    plan = Greedy.plan

    def losing(self, problem):
        folder.rmdir()
        return plan(self, problem)

    monkeypatch.setattr(Greedy, "plan", losing)
    command = ("plan", recording, "--ranks", 4, "--redundant", 4, "--planner", "greedy",
               "--for", "trtllm", "-o", folder / "map.yaml")  # fmt: skip
    assert eq.cli.main([str(a) for a in command]) == 2
    err = capsys.readouterr().err
    assert "The plan is not lost: it is in " in err
    kept = err.split(" it is in ")[1].strip().rstrip(".")
    fit, _ = eq.read_trace(recording).split(at=0.8)
    monkeypatch.setattr(Greedy, "plan", plan)
    assert eq.read_map(kept) == Greedy().plan(eq.Problem(fit, eq.Topology(4), 20)).placement
