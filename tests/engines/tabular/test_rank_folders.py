"""A folder of one file a rank: tables, or torch archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.rank_parts import rank_in_name
from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.tabular import rank_loads, rank_tables
from equipoise.engines.trace_io import detect_trace, read_trace
from equipoise.errors import FormatError
from equipoise.placement import Placement
from equipoise.trace import Trace

HEADER = "layer_id,expert_id,count\n"
COUNTS = np.array([[[5, 0, 7], [1, 2, 3]], [[0, 4, 0], [2, 2, 2]], [[9, 9, 9], [8, 8, 8]]])
"""By rank, layer and expert."""
SLOTS = np.array([[0, 1, 2, 0], [2, 1, 0, 1]])


def table(folder: Path, rank: int, name: str = "load_rank{}_timestamp1.5.csv") -> Path:
    path = folder / name.format(rank)
    rows = [f"{3 + i},{e},{COUNTS[rank, i, e]}\n" for i, e in np.ndindex(2, 3)]
    path.write_text(HEADER + "".join(rows))
    return path


def archive(folder: Path, rank: int, **change: Any) -> Path:
    path = folder / f"run-TP{rank}.expert-load.pt"
    root = {"ep_rank": rank, "ep_size": 3, "logical_count": COUNTS[rank]} | change
    torch_archive.save(path, {key: value for key, value in root.items() if value is not None})
    return path


def read(folder: Path, **options: Any) -> Trace:
    return read_trace(folder, TraceOptions(**options))


@pytest.mark.parametrize("name", ["load_rank{}_timestamp1.5.csv", "Rank-{}.csv", "a.rank_0{}.csv"])
def test_tables_give_counts_by_source_rank(tmp_path: Path, name: str) -> None:
    for rank in range(3):
        table(tmp_path, rank, name)
    (tmp_path / "readme.txt").write_text("not a table")
    trace = read(tmp_path)
    assert trace.provenance.format == "rank-tables"
    assert trace.source_counts is not None
    np.testing.assert_array_equal(trace.source_counts[0], COUNTS)
    assert trace.layer_ids == (3, 4)


def test_missing_ranks_of_a_folder_are_said(tmp_path: Path) -> None:
    table(tmp_path, 0)
    table(tmp_path, 2)
    trace = read(tmp_path)
    assert "The files of ranks 1 are missing; they count as no load." in trace.provenance.notes
    assert trace.source_counts is not None
    assert not trace.source_counts[0, 1].any()


def test_several_tables_of_a_rank_are_several_recordings(tmp_path: Path) -> None:
    table(tmp_path, 0)
    table(tmp_path, 0, "load_rank{}_timestamp2.5.csv")
    with pytest.raises(FormatError, match=r"holds 2 tables of rank 0, .*1.5.csv and .*2.5.csv"):
        read(tmp_path)


def test_lines_of_layers_and_tables_may_be_mixed(tmp_path: Path) -> None:
    table(tmp_path, 0)
    line = '{"layer": %d, "tokens_per_expert": %s}\n'
    rows = "".join(line % (3 + i, COUNTS[1, i].tolist()) for i in range(2))
    (tmp_path / "load_rank1.jsonl").write_text(rows)
    trace = read(tmp_path)
    assert trace.source_counts is not None
    np.testing.assert_array_equal(trace.source_counts[0], COUNTS[:2])


def test_a_rank_is_named_once(tmp_path: Path) -> None:
    text = "layer,expert,tokens,source_rank\n0,0,1,1\n"
    (tmp_path / "rank0.csv").write_text(text)
    with pytest.raises(FormatError, match="names source ranks, and so does its file name"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("expert_distribution_rank12_timestamp1744347750.37.csv", 12),
        ("rank3.jsonl", 3),
        ("p-TP0.expert-load.pt", 0),
        ("crank3.csv", None),
        ("rank.csv", None),
        ("rank1234567.csv", None),
        ("ranked2.csv", None),
    ],
)
def test_the_rank_of_a_name(name: str, rank: int | None) -> None:
    assert rank_in_name(Path(name)) == rank


def test_folders_without_tables_are_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "rank0.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rank1").mkdir()
    assert not rank_tables.FORMAT.matches(tmp_path)
    assert not rank_tables.FORMAT.matches(tmp_path / "rank0.csv")
    assert not rank_tables.FORMAT.matches(tmp_path / "nothing")
    with pytest.raises(FormatError, match=r"rank0\.csv"):
        rank_tables.FORMAT.read(tmp_path, TraceOptions(), no_progress)


def test_archives_give_counts_by_source_rank(tmp_path: Path) -> None:
    for rank in range(3):
        archive(tmp_path, rank)
    assert detect_trace(tmp_path).name == "rank-loads"
    trace = read(tmp_path, layer_ids=(3, 4))
    assert trace.source_counts is not None
    np.testing.assert_array_equal(trace.source_counts[0], COUNTS)
    assert trace.layer_ids == (3, 4)
    (tmp_path / "run-TP2.expert-load.pt").unlink()
    assert "The files of ranks 2 are missing" in " ".join(read(tmp_path).provenance.notes)


def test_ranks_that_saw_the_same_tokens_are_counted_once(tmp_path: Path) -> None:
    for rank in range(3):
        archive(tmp_path, rank, logical_count=COUNTS[2] * 100)
    trace = read(tmp_path)
    np.testing.assert_array_equal(trace.counts[0], COUNTS[2] * 100)
    assert trace.source_counts is None


def test_slots_are_folded_by_the_map_in_the_file_or_the_one_given(tmp_path: Path) -> None:
    load = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    bare = {"logical_count": None, "physical_count": load, "ep_size": 1}
    path = archive(tmp_path, 0, **bare)
    with pytest.raises(FormatError, match=r"counts 4 slots without their map.*placement"):
        read(path)
    folded = [[[5, 2, 3], [7, 14, 5]]]
    placement = Placement(SLOTS, num_ranks=2, num_experts=3)
    assert read(path, placement=placement).counts.tolist() == folded
    archive(tmp_path, 0, **bare, physical_to_logical_map=SLOTS)
    assert read(path).counts.tolist() == folded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ep_rank": 3}, "is of ep_rank 3 of 3"),
        ({"ep_rank": "1"}, "is of ep_rank 1 of 3"),
        ({"ep_rank": 0}, "are both of rank 0"),
        ({"ep_size": 4}, "these are different recordings"),
        ({"logical_count": COUNTS[1, :, :2].copy()}, "these are different recordings"),
        ({"logical_count": COUNTS[1, 0].copy()}, "logical_count is not a table"),
        ({"logical_count": -COUNTS[1]}, "whole numbers from 0"),
        ({"logical_count": (COUNTS[1] + 0.5).astype(np.float32)}, "whole numbers from 0"),
        ({"logical_count": [1, 2]}, "logical_count is not a table"),
        (
            {"logical_count": None, "physical_count": COUNTS[1], "physical_to_logical_map": SLOTS},
            r"map \(2, 4\) does not fit \(2, 3\) slots",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    archive(tmp_path, 0)
    archive(tmp_path, 1, **change)
    with pytest.raises(FormatError, match=said):
        read(tmp_path)


def test_unknown_keys_are_named_and_other_archives_not_claimed(tmp_path: Path) -> None:
    path = archive(tmp_path, 1, dropped=7)
    notes = " ".join(read(path).provenance.notes)
    assert "Keys not used: dropped." in notes
    assert "the part of rank 1 of 3" in notes
    torch_archive.save(path, {"rank": 0, "logical_count": COUNTS[0]})
    assert not rank_loads.FORMAT.matches(path)
