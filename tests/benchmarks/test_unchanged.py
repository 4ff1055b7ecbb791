from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from benchmarks.claims import unchanged
from benchmarks.claims.entries import Record, compare

FOLDER = Path(unchanged.__file__).parent


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """The command on small splits, without data of others."""
    monkeypatch.setattr(unchanged, "SIZES", {"small": unchanged.SIZES["small"]})

    def run(*arguments):
        return unchanged.main(["--only", "splits", "--data", str(tmp_path / "none"), *arguments])

    return run


@pytest.fixture
def before(measure, tmp_path):
    path = tmp_path / "before.json"
    assert measure("--write", str(path)) == 0
    return path


def test_the_same_code_gives_the_same_entries(measure, before, capsys):
    assert measure("--against", str(before)) == 0
    assert "135 checksums, 0 differ\n" in capsys.readouterr().out


def test_a_dispatcher_that_answers_otherwise_is_reported(measure, before, capsys, monkeypatch):
    monkeypatch.setattr(eq, "MinMax", eq.Even)
    assert measure("--against", str(before)) == 1
    said = capsys.readouterr().out
    assert "checksums: split/minmax/equal/small/whole differs" in said
    assert "sentences: split/minmax/equal/small/whole differs" in said
    assert "split/even/" not in said


def test_entries_that_are_missing_or_new_are_reported(measure, before, capsys):
    entries = json.loads(before.read_text())
    del entries["checksums"]["split/even/equal/small/whole"]
    entries["refusals"]["split/gone"] = "2: No."
    before.write_text(json.dumps(entries))
    assert measure("--against", str(before)) == 1
    said = capsys.readouterr().out
    assert "checksums: split/even/equal/small/whole is new" in said
    assert "refusals: split/gone is missing" in said
    assert "135 checksums, 1 differ\n" in said
    assert "1 refusals, 1 differ\n" in said


def test_plans_are_noted_and_refusals_apart(monkeypatch, tmp_path):
    tried = {f"greedy/{name}": {"planner": "greedy", "dispatch": name} for name in ("even", "auto")}
    monkeypatch.setattr(unchanged, "searches", lambda _: tried.items())
    monkeypatch.chdir(tmp_path)
    record = Record()
    _, synthetic = unchanged.recordings(tmp_path / "none")
    unchanged.plans(record, [synthetic])
    noted = record.entries
    key = "plan/greedy/even/synthetic"
    mapped = {key, f"{key}/map.json"}
    assert set(noted["checksums"]) == mapped
    assert set(noted["sentences"]) == {*mapped, "plan/text/synthetic"}
    refusal = noted["refusals"].pop("plan/greedy/auto/synthetic")
    assert refusal.startswith("2: equipoise: The dispatcher auto needs a cost")
    assert not noted["refusals"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros(3), -np.zeros(3)),
        (np.zeros(4), np.zeros((2, 2))),
        (1.0, np.nextafter(1.0, 2.0)),
        ({"peak": [1.0, None]}, {"peak": [1.0]}),
    ],
)
def test_every_bit_counts(one, other):
    noted = [Record(), Record()]
    for record, value in zip(noted, (one, other), strict=True):
        record.put("key", value)
    assert [found[:2] for found in compare(*(r.entries for r in noted))] == [("checksums", "key")]


def test_only_the_first_line_that_differs_is_shown():
    kinds = {"checksums": {}, "refusals": {}}
    before = kinds | {"sentences": {"key": "Same.\nOptimal: it is."}}
    after = kinds | {"sentences": {"key": "Same.\nIt is optimal.\nMore."}}
    ((_, _, what),) = compare(before, after)
    assert what == "differs\n    was Optimal: it is.\n    is  It is optimal."


def test_only_names_that_stay_are_imported():
    for path in (FOLDER / "unchanged.py", FOLDER / "entries.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("equipoise"):
                assert (node.module, [n.name for n in node.names]) == ("equipoise.cli", ["main"])
            if isinstance(node, ast.Import):
                assert not any(n.name.startswith("equipoise.") for n in node.names)
