from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.dispatch import Even
from equipoise.engines.formats import MapContext
from equipoise.plan import Greedy
from equipoise.plan.weigh.failover import failover_maps, resize

SPEED = (1, 1, 1, 2)


@pytest.fixture
def placement(recording):
    return Greedy().plan(problem(recording)).placement


@pytest.fixture
def current(placement, tmp_path):
    path = tmp_path / "current.json"
    eq.write_map(placement, path, format="equipoise")
    return path


def problem(recording, topology=None):
    return eq.Problem(eq.read_trace(recording), topology or eq.Topology(4), 24)


def imbalance(placement, recording, speed=None):
    topology = eq.Topology(placement.num_ranks, speed=speed)
    return eq.evaluate(
        placement, eq.read_trace(recording), dispatch=Even(topology=topology)
    ).mean_imbalance


def check_map(row, refit, score):
    kept, copied, reloaded = refit.counts.sum(axis=0).tolist()
    assert (row["kept"], row["copied"], row["reloaded"]) == (kept, copied, reloaded)
    assert (row["gone"], row["old_rank"]) == (refit.gone.tolist(), refit.old_rank.tolist())
    assert (row["ranks"], row["slots"]) == (refit.placement.num_ranks, refit.placement.num_slots)
    assert row["status"] == refit.status
    assert row["mean_imbalance"] == pytest.approx(score)


def test_a_map_for_the_loss_of_each_rank(placement, current, recording, tmp_path, document):
    folder = tmp_path / "maps"
    target = ("--for", "equipoise", "--output", folder)
    answer = document("failover", current, recording, "--lost", "rank", *target)
    assert answer["mean_imbalance"] == pytest.approx(imbalance(placement, recording))
    assert (answer["ranks"], answer["experts"], answer["slots"]) == (4, 16, 24)
    refits = failover_maps(placement, problem(recording))
    assert len(refits) == 4
    for rank, (row, refit) in enumerate(zip(answer["maps"], refits, strict=True)):
        check_map(row, refit, imbalance(refit.placement, recording))
        path = folder / f"without-rank-{rank}.json"
        assert (row["name"], row["map"]) == (f"rank {rank}", {"path": str(path), "lost": []})
        assert eq.read_map(path) == refit.placement
    assert {p.name for p in tmp_path.iterdir()} == {"current.json", "maps"}
    assert len(list(folder.iterdir())) == 4


def test_a_map_for_the_loss_of_each_node(placement, current, recording, document):
    unlike = ("--ranks-per-node", 2, "--speed", ",".join(map(str, SPEED)))
    answer = document("failover", current, recording, "--lost", "node", *unlike)
    topology = eq.Topology(4, 2, speed=SPEED)
    refits = failover_maps(placement, problem(recording, topology), failure_domain="node")
    for row, refit, speed in zip(answer["maps"], refits, (SPEED[2:], SPEED[:2]), strict=True):
        check_map(row, refit, imbalance(refit.placement, recording, speed))
        assert row["map"] is None
    assert [row["gone"] for row in answer["maps"]] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("num_ranks", "speed"), [(3, (1, 1, 1)), (5, (1, 1, 1, 2, 1.25))])
def test_fewer_or_more_ranks(num_ranks, speed, placement, current, recording, tmp_path, document):
    output = tmp_path / "other.jsonl"
    target = ("--for", "vllm-41141", "-o", output)
    command = ("failover", current, recording, "--to-ranks", num_ranks, *target)
    answer = document(*command, "--speed", "1,1,1,2")
    refit = resize(placement, problem(recording, eq.Topology(4, speed=SPEED)), num_ranks)
    (row,) = answer["maps"]
    check_map(row, refit, imbalance(refit.placement, recording, speed))
    assert row["reloaded"] == 0
    assert row["map"]["lost"]
    context = MapContext(num_ranks=num_ranks, num_experts=16, layer_ids=(2, 3, 4))
    assert eq.read_map(output, context) == refit.placement
    assert {p.name for p in tmp_path.iterdir()} == {"current.json", "other.jsonl"}


def test_the_text(placement, current, recording, tmp_path, text):
    target = ("--for", "trtllm", "-o", tmp_path / "maps")
    out = text("failover", current, recording, "--lost", "rank", *target)
    now = imbalance(placement, recording)
    assert f"16 experts in 24 slots on 4 ranks: max/mean rank load {now:.3f}, even split" in out
    refits = failover_maps(placement, problem(recording))
    scores = [imbalance(refit.placement, recording) for refit in refits]
    rows = [line.split() for line in out.splitlines() if line.startswith(" rank ")]
    for rank, (row, refit) in enumerate(zip(rows, refits, strict=True)):
        counts = [str(n) for n in refit.counts.sum(axis=0)]
        assert row == ["rank", str(rank), str(rank), *counts, "6", f"{scores[rank]:.3f}"]
    worst = int(np.argmax(scores))
    assert f"Hardest without rank {worst}: 4 ranks become 3: " in out
    assert "without-rank-0.yaml to without-rank-3.yaml" in out
    assert out.count("  not in the file: ") == 1
    grown = text("failover", current, recording, "--to-ranks", 5)
    assert "4 ranks become 5: 72 slots keep their expert, 18 copy one" in grown
    assert "Written" not in grown


def test_numbers_of_equal_width(tmp_path, text):
    trace = eq.Trace(counts=np.ones((2, 1, 12), dtype=np.int64))
    eq.write_trace(trace, tmp_path / "run.safetensors")
    eq.write_map(
        eq.Placement([list(range(12))], num_ranks=12, num_experts=12),
        tmp_path / "map.json",
        format="equipoise",
    )
    where = (tmp_path / "map.json", tmp_path / "run.safetensors")
    text("failover", *where, "--lost", "rank", "--for", "ascend", "-o", tmp_path / "maps")
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert names == [f"without-rank-{i:02}.json" for i in range(12)]


def test_old_maps_stay_if_one_of_the_new_is_refused(current, recording, tmp_path, capsys):
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "without-rank-0.json").write_text("old")
    command = ["failover", str(current), str(recording), "--lost", "rank", "--for", "sglang"]
    assert main([*command, "--hidden-layers", "4", "-o", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"equipoise: {folder}/without-rank-0.json: ")
    assert [p.name for p in folder.iterdir()] == ["without-rank-0.json"]
    assert (folder / "without-rank-0.json").read_text() == "old"
    assert main([*command, "--hidden-layers", "5", "-o", str(folder)]) == 0
    assert len(list(folder.iterdir())) == 4


def test_a_map_in_force_among_those_to_write_is_kept(current, recording, tmp_path, capsys):
    folder = tmp_path / "maps"
    folder.mkdir()
    old = current.rename(folder / "without-rank-1.json")
    before = old.read_bytes()
    command = ["failover", str(old), str(recording), "--lost", "rank", "--for", "equipoise"]
    assert main([*command, "-o", str(folder)]) == 2
    assert "would be written over the input" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["without-rank-1.json"]
    assert old.read_bytes() == before


@pytest.mark.parametrize("other", ["without-rank-4.json", "without-rank-0.yaml", "notes.txt"])
def test_a_folder_with_other_files_is_refused(other, current, recording, tmp_path, capsys):
    """A map for a rank that this deployment has not would stay, and fit nothing."""
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / other).write_text("old")
    command = ["failover", str(current), str(recording), "--lost", "rank", "--for", "equipoise"]
    assert main([*command, "-o", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"equipoise: {folder}: holds {other}, which these 4 maps do not replace")
    assert [p.name for p in folder.iterdir()] == [other]


def test_a_folder_of_the_same_maps_is_written_again(current, recording, tmp_path, text):
    folder = tmp_path / "maps"
    command = ("failover", current, recording, "--lost", "rank", "--for", "equipoise")
    text(*command, "-o", folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = tmp_path / "kept.json"
    (folder / "without-rank-2.json").rename(kept)
    kept.write_text("old")
    (folder / "without-rank-2.json").symlink_to(kept)
    text(*command, "-o", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert (folder / "without-rank-2.json").is_symlink()
    assert kept.read_bytes() == first["without-rank-2.json"]
