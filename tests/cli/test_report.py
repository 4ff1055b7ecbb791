"""``equipoise report``: what it prints, in full, and how far its numbers carry."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.report.attention import Attention
from tests.cli.samples import write_sample

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "report-json.md"
LONG = ("a-domain-with-a-long-name-that-goes-on/customer-0001/", ("code", "mathematics"))


@pytest.fixture
def long_names(tmp_path) -> Path:
    """Six steps of two domains that differ at the end of their names only, and two phases."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(32, 0.3), size=3)
    counts = np.stack([[rng.multinomial(20_000, p) for p in share] for _ in range(6)])
    labels = {
        "domain": np.repeat([LONG[0] + end for end in LONG[1]], 3),
        "phase": np.array(["prefill", "decode"] * 3),
    }
    path = tmp_path / "run.safetensors"
    eq.write_trace(eq.Trace(counts=counts, top_k=2, labels=labels), path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        "report run.safetensors --ranks 8",
        "plan run.safetensors --ranks 8 --redundant 8 --planner greedy --hold-out 0.4",
        "budget run.safetensors --ranks 8 --planner greedy --hold-out 0.4",
    ],
)
def test_a_pipe_gets_every_line_whole(command, long_names, monkeypatch, text):
    monkeypatch.chdir(long_names.parent)

    def run(columns: str) -> str:
        monkeypatch.setenv("COLUMNS", columns)
        return text(*command.split())

    out = run("1000")
    for columns in ("40", "80", "200"):
        assert run(columns) == out
    assert "…" not in out
    if command.startswith("report"):
        for end in LONG[1]:
            assert LONG[0] + end in out
        summary = eq.summarise(eq.read_trace(long_names), num_ranks=8)
        lines = [line.strip() for line in out.splitlines()]
        for sentence in (*summary.headline, *summary.notes):
            assert sentence in lines
        assert any(line.startswith("By domain: correlation") for line in lines)


def test_a_report_begins_and_ends_with_its_verdict(long_names, text):
    parts = text("report", long_names, "--ranks", 8).rstrip("\n").split("\n\n")
    assert parts[0].startswith("h100-deepep-ep8: ")
    verdicts = parts[0].splitlines()
    *spent, basis = parts[-1].splitlines()[: -len(verdicts)]
    assert basis.startswith("Forecast by ")
    assert all("waiting for drift" in sentence for sentence in spent)
    assert parts[-1].splitlines()[-len(verdicts) :] == verdicts
    unknown = text("report", long_names, "--ranks", 4).rstrip("\n").split("\n\n")
    assert unknown[0].startswith("No forecast: ")
    assert unknown[-1] == unknown[0]


def test_notes_on_the_input_go_to_standard_error(tmp_path, capsys):
    write_sample(tmp_path, "dump")
    (tmp_path / "dump" / "rank0.safetensors").unlink()
    (note,) = [n for n in eq.read_trace(tmp_path / "dump").provenance.notes if "rank" in n]
    command = ("plan", tmp_path / "dump", "--ranks", 2, "--planner", "greedy", "--hold-out", 0)
    main([str(a) for a in command])
    out, err = capsys.readouterr()
    assert f"equipoise: note: {note}\n" in err
    assert note not in out


def test_notes_stand_above_the_numbers(tmp_path, text):
    dump = tmp_path / "dump"
    write_sample(tmp_path, "dump")
    (dump / "rank0.safetensors").unlink()
    out = text("report", dump, "--ranks", 2)
    (missing,) = [n for n in eq.read_trace(dump).provenance.notes if "rank" in n]
    assert missing in out
    assert out.index("Notes") < out.index(missing) < out.index("carries")


def documented() -> dict[str, list[str]]:
    """The keys that the page lists for each kind of object, in its order."""
    found: dict[str, list[str]] = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        first = line.split("|")[1].strip() if line.startswith("| ") else ""
        if first.startswith("key of "):
            kind = first.removeprefix("key of ").split(" ", 1)[1]
            found[kind] = []
        elif first.startswith("`") and found:
            found[kind] += re.findall(r"`(\w+)`", first)
    return found


def test_the_document_has_the_keys_that_the_page_lists(long_names, tmp_path, document):
    slots = np.tile([*range(32), *range(8)], (3, 1))
    eq.write_map(
        eq.Placement(slots, num_ranks=8, num_experts=32), tmp_path / "map.json", format="equipoise"
    )
    answer = document("report", long_names, "--map", tmp_path / "map.json")
    keys = documented()

    def check(kind: str, found: dict[str, object]) -> None:
        assert sorted(found) == sorted(keys.pop(kind)), kind

    summary = answer["after"]
    assert answer["before"].keys() == summary.keys()
    check("document", answer)
    check("summary", summary)
    check("balance", summary["balance"])
    check("layer", summary["layers"][0])
    check("expert", summary["hottest_experts"][0])
    check("label", summary["labels"][0])
    check("drift", summary["drift"])
    check("attention", Attention.__dataclass_fields__)  # where source ranks are recorded
    check("curves", summary["expert_curves"])
    assert keys == {}
    assert sorted(summary["drift"]["labels"]["domain"]) == ["between", "within"]


# What a map's numbers prove -----------------------------------------------------------------------


def planned(tmp_path: Path, source: Path, format: str = "equipoise") -> Path:
    output = tmp_path / ("map.yaml" if format == "trtllm" else "map.json")
    command = f"plan {source} --ranks 2 --redundant 2 --planner greedy --for {format} -o {output}"
    from equipoise.cli import main

    assert main(command.split()) == 0
    return output


def test_a_map_shown_on_its_own_steps_says_so(tmp_path, capsys, document, monkeypatch):
    counts = write_sample(tmp_path, "counts.npz")
    output = planned(tmp_path, counts)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    for name in (counts, Path("counts.npz")):  # the same file by another name
        answer = document("report", name, "--map", output)
        assert "made from these steps" in answer["after"]["notes"][0]
        assert not any("made from these steps" in note for note in answer["before"]["notes"])


def test_a_map_from_elsewhere_says_on_which_steps_its_numbers_count(tmp_path, capsys, document):
    counts = write_sample(tmp_path, "counts.npz")
    other = tmp_path / "other.npz"
    other.write_bytes(counts.read_bytes())
    output = planned(tmp_path, counts)
    capsys.readouterr()
    note = document("report", other, "--map", output)["after"]["notes"][0]
    assert note == (
        "The numbers count only on steps that the map was not made from; it was made from "
        f"{counts}."
    )
    output = planned(tmp_path, counts, "trtllm")
    capsys.readouterr()
    note = document("report", counts, "--map", output, "--ranks", 2)["after"]["notes"][0]
    assert note.endswith("; the file does not say which.")


def test_times_of_ranks_need_the_ranks(long_names, capsys):
    assert main(["report", str(long_names), "--rank-seconds", "1,1"]) == 2
    assert "--rank-seconds needs the ranks; give --ranks or --map." in capsys.readouterr().err
    assert main(["report", str(long_names), "--ranks", "8", "--rank-seconds", "1,x"]) == 2
    assert "--rank-seconds is '1,x'" in capsys.readouterr().err
