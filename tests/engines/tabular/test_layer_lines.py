"""Records of one layer each: lines of JSON or a list, by iteration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.tabular.layer_lines import FORMAT
from equipoise.errors import FormatError
from equipoise.trace import Trace

RECORDS = [
    {"iteration": 4, "layer": "3", "tokens_per_expert": [1, 2, 3]},
    {"iteration": 4, "layer": "5", "tokens_per_expert": [3, 2, 1]},
    {"iteration": 9, "layer": "3", "tokens_per_expert": [0, 6.0, 0]},
]


def file(tmp_path: Path, *records: Any, name: str = "run.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_step_is_an_iteration_and_absent_layers_count_zero(tmp_path: Path, as_list: bool) -> None:
    path = file(tmp_path, RECORDS) if as_list else file(tmp_path, *RECORDS)
    assert FORMAT.matches(path)
    trace = read(path, num_experts=3)
    assert trace.steps.tolist() == [4, 9]
    assert trace.layer_ids == (3, 5)
    assert trace.counts.tolist() == [[[1, 2, 3], [3, 2, 1]], [[0, 6, 0], [0, 0, 0]]]
    assert not trace.provenance.notes


def test_other_names_and_what_is_not_used(tmp_path: Path) -> None:
    record = {"layer_id": 2, "step": 7, "counts": [1, 2], "host": "a", "top_k": 2}
    trace = read(file(tmp_path, record, name="load-rank7.jsonl"), num_experts=2)
    assert (trace.layer_ids, trace.steps.tolist()) == ((2,), [7])
    assert trace.provenance.notes[0] == "Keys not used: host, top_k."
    assert "the part of rank 7" in trace.provenance.notes[1]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([*RECORDS, {"layer": 7, "load": [1, 2]}], "line 4: Layer 7 has 2 experts"),
        ([*RECORDS, {"layer": 7}], "line 4 does not name one layer"),
        ([*RECORDS, [1]], "line 4 does not name one layer"),
        ([{"layer": -1, "load": [1]}], "line 1: layer is '-1'"),
        ([{"layer": True, "load": [1]}], "line 1: layer is 'True'"),
        ([{"layer": 1.5, "load": [1]}], "line 1: layer is '1.5'"),
        ([{"layer": "9" * 20, "load": [1]}], "line 1: layer is '9"),
        ([{"layer": 1, "step": None, "load": [1]}], "line 1: step is 'None'"),
        ([{"layer": 1, "load": []}], "line 1: Layer 1: expected counts"),
        ([{"layer": 1, "load": [-1]}], "line 1: Counts are not whole numbers"),
        ([{"layer": 1, "load": [1, None]}], "line 1: The list of counts holds something other"),
        ([{"layer": 1, "load": [1, 1e300]}], "line 1: Counts are not whole numbers"),
        ([], "no row of counts"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, records: list[Any], said: str) -> None:
    with pytest.raises(FormatError, match=rf"run\.jsonl.*{said}"):
        read(file(tmp_path, *records))


def test_equal_keys_and_broken_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"layer": 1, "load": [1]}\n{"layer": 1, "load": [1], "load": [2]}\n')
    with pytest.raises(FormatError, match=r"line 2: The key 'load' appears twice"):
        read(path)
    path.write_text('{"layer": 1, "load": [1]}\n{"layer": 1, "lo')
    with pytest.raises(FormatError, match=r"line 2: is not JSON"):
        read(path)


@pytest.mark.parametrize(
    "record", [{"layer": 1, "topk_ids": [1]}, {"layer": 1, "expert": 2, "tokens": 3}, {}, [1], 5]
)
def test_other_records_are_not_claimed(tmp_path: Path, record: Any) -> None:
    assert not FORMAT.matches(file(tmp_path, record))
    assert not FORMAT.matches(file(tmp_path, [record]))
