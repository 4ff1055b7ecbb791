from __future__ import annotations

import json

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.cost import rank_cost
from equipoise.dispatch import dispatcher
from equipoise.engines.formats import MapContext
from equipoise.migration import Receive, diff, match_ranks
from equipoise.plan import Contiguous, Greedy
from equipoise.plan.weigh.gate import Gate

COST = "h100-deepep-ep8"
EXPERT_BYTES = 44_040_192
PRICES = {"dwell_steps": 5000, "stall_seconds": 0.01, "interference": 0.5, "delay_steps": 10}
NODES = eq.Topology(4, 2)


@pytest.fixture
def maps(recording, tmp_path):
    """The map in force, and one that is better on loads ten times as large as those recorded."""
    problem = eq.Problem(eq.read_trace(recording), NODES, 20)
    placements = Contiguous().plan(problem).placement, Greedy().plan(problem).placement
    for name, placement in zip(("old", "new"), placements, strict=True):
        eq.write_map(placement, tmp_path / f"{name}.json", format="equipoise")
    return placements


@pytest.fixture
def larger(recording, tmp_path):
    trace = eq.read_trace(recording)
    path = tmp_path / "larger.trace.safetensors"
    counts = trace.counts.astype(int) * 50
    eq.write_trace(eq.Trace(counts=counts, layer_ids=trace.layer_ids, top_k=2), path)
    return path


def command(tmp_path, *arguments):
    files = (tmp_path / "old.json", tmp_path / "new.json")
    return ("diff", *files, "--ranks-per-node", 2, *arguments)


def prices(**changed):
    given = PRICES | changed
    return [part for name, x in given.items() for part in (f"--{name.replace('_', '-')}", x)]


def test_what_moving_takes(maps, tmp_path, document, text):
    answer = document(*command(tmp_path, "--expert-bytes", EXPERT_BYTES))
    migration = diff(*maps, NODES)
    assert answer["changed"] == migration.moves
    assert answer["transfers"] == int(migration.transfers.sum())
    assert answer["rounds"] == int(migration.num_rounds.sum())
    assert answer["bytes"] == migration.bytes(EXPERT_BYTES)
    assert answer["bytes_by_link"] == migration.bytes_by_link(EXPERT_BYTES)
    assert answer["seconds"] == pytest.approx(migration.seconds(EXPERT_BYTES))
    assert answer["decision"] is None
    between = migration.bytes_by_link(EXPERT_BYTES)["network"]
    out = text(*command(tmp_path, "--expert-bytes", EXPERT_BYTES))
    assert f"and {between / 1e9:.3f} GB between them at 25 GB/s take " in out
    assert f"in {int(migration.num_rounds.sum())} rounds" in out
    bare = document(*command(tmp_path))
    assert (bare["bytes"], bare["bytes_by_link"], bare["seconds"]) == (None, None, None)


def test_ranks_are_matched_by_content(maps, tmp_path, document):
    old, new = maps
    unlike = ("--speed", "1,1,2,2", "--room", "5,5,5,6")
    topology = eq.Topology(4, 2, speed=(1, 1, 2, 2), room=(5, 5, 5, 6))
    plain = document(*command(tmp_path))["changed"]
    for options, devices in (((), NODES), (unlike, topology)):
        answer = document(*command(tmp_path, "--match", *options))
        migration = diff(old, match_ranks(old, new, devices), devices)
        totals = dict(zip(Receive, migration.counts.sum(axis=0).tolist(), strict=True))
        assert answer["moves"] == {kind.name.lower(): n for kind, n in totals.items()}
        assert answer["changed"] < plain


def test_the_renamed_map_is_written(maps, tmp_path, document, text):
    output = tmp_path / "renamed.yaml"
    given = command(tmp_path, "--match", "--for", "trtllm", "-o", output)
    answer = document(*given)
    renamed = match_ranks(*maps, NODES)
    context = MapContext(num_ranks=4, num_experts=16)
    assert eq.read_map(output, context) == renamed != maps[1]
    assert answer["map"]["path"] == str(output)
    assert len(answer["map"]["lost"]) == 1
    assert document(*command(tmp_path, "--match"))["map"] is None
    assert f"compared: {output}\n  not in the file: {answer['map']['lost'][0]}\n" in text(*given)


def gate(**changed):
    costs = {"cost": rank_cost(COST), "dispatch": "even", "expert_bytes": EXPERT_BYTES}
    return Gate(**(costs | PRICES | changed))


def deciding(tmp_path, trace, *arguments):
    given = ("--trace", trace, "--rank-cost", COST, "--expert-bytes", EXPERT_BYTES, *arguments)
    return command(tmp_path, *given)


def test_moving_pays(maps, larger, tmp_path, document, text):
    answer = document(*deciding(tmp_path, larger, *prices()))["decision"]
    decision = gate().decide(diff(*maps, NODES), eq.read_trace(larger))
    assert decision.move
    assert answer == vars(decision) | {"text": decision.text}
    assert text(*deciding(tmp_path, larger, *prices())).endswith(f"{decision.text}\n")


def test_moving_does_not_pay(maps, larger, tmp_path, document, text):
    given = prices(dwell_steps=20)
    decision = gate(dwell_steps=20).decide(diff(*maps, NODES), eq.read_trace(larger))
    assert not decision.move
    answer = document(*deciding(tmp_path, larger, *given), status=1)["decision"]
    assert (answer["move"], answer["text"]) == (False, decision.text)
    assert text(*deciding(tmp_path, larger, *given), status=1).endswith(f"{decision.text}\n")


def test_a_gain_that_never_comes(maps, recording, tmp_path, document):
    """Below the knee balance saves nothing; steps without end are null, which JSON has."""
    answer = document(*deciding(tmp_path, recording, *prices()), status=1)["decision"]
    assert answer["sure_after_steps"] is None
    assert answer["gain_low"] <= 0


def test_the_decision_is_for_the_dispatcher_and_the_machines(maps, larger, tmp_path, document):
    unlike = ("--speed", "1,1,1,2", "--dispatch", "vllm")
    answer = document(*deciding(tmp_path, larger, *prices(), *unlike))["decision"]
    topology = eq.Topology(4, 2, speed=(1, 1, 1, 2))
    rule = dispatcher("vllm")
    runs = type(rule)(topology=topology, top_k=2)
    decision = gate(dispatch=runs).decide(diff(*maps, topology), eq.read_trace(larger))
    assert answer["gain_seconds"] == pytest.approx(decision.gain_seconds)


def test_the_decision_is_by_the_steps_asked_for(maps, recording, larger, tmp_path, document):
    traces = {"prefill": eq.read_trace(larger), "decode": eq.read_trace(recording)}
    mixed = eq.Trace(
        counts=np.concatenate([trace.counts for trace in traces.values()]),
        layer_ids=traces["decode"].layer_ids,
        top_k=2,
        labels={"phase": np.repeat(list(traces), 10)},
    )
    path = tmp_path / "mixed.trace.safetensors"
    eq.write_trace(mixed, path)
    for status, (phase, trace) in enumerate(traces.items()):
        given = deciding(tmp_path, path, *prices(), "--phase", phase)
        decision = gate().decide(diff(*maps, NODES), trace)
        assert decision.move is (status == 0)
        assert document(*given, status=status)["decision"]["text"] == decision.text


def test_the_same_map_needs_no_move(maps, larger, tmp_path, capsys):
    given = deciding(tmp_path, larger, *prices())
    same = [str(a).replace("new.json", "old.json") for a in given]
    assert main([*same, "--json"]) == 1
    decision = json.loads(capsys.readouterr().out)["decision"]
    assert decision["text"] == "Stay: the placements are the same."


def test_the_recording_that_ships_goes_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    in_order = list(range(32))
    for name, row in (("old.json", in_order), ("new.json", in_order[::-1])):
        placement = eq.Placement([row] * 5, num_ranks=8, num_experts=32)
        eq.write_map(placement, tmp_path / name, format="equipoise")
    options = [f"--{name.replace('_', '-')}={price}" for name, price in PRICES.items()]
    options += ["--trace", "sample", "--rank-cost", COST, "--expert-bytes", str(EXPERT_BYTES)]
    assert main(["diff", "old.json", "new.json", *options]) == 1
    assert "Stay: moving" in " ".join(capsys.readouterr().out.split())
