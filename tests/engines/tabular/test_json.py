"""JSON lists of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.tabular.json import FORMAT
from equipoise.errors import FormatError
from equipoise.trace import Trace


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


def file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_records_with_labels_and_unused_keys(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        [
            {"layer": 4, "expert": 1, "tokens": 5, "step": 1, "phase": "decode", "note": "x"},
            {"layer": 4, "expert": 0, "count": 2, "step": 0, "phase": "prefill"},
        ],
    )
    assert FORMAT.matches(path)
    trace = read(path, num_experts=3)
    assert trace.counts[:, 0].tolist() == [[2, 0, 0], [0, 5, 0]]
    assert trace.labels["phase"].tolist() == ["prefill", "decode"]
    assert set(trace.labels) == {"phase"}
    assert trace.layer_ids == (4,)
    assert trace.provenance.notes == ("Keys not used: note.",)


def test_maps_are_numbers_or_names(tmp_path: Path) -> None:
    values = [0, "after"]
    records = [
        {"layer": 0, "expert": 0, "tokens": 1, "step": t, "map": value}
        for t, value in enumerate(values)
    ]
    assert read(file(tmp_path, records)).labels["map"].tolist() == ["0", "after"]


def test_source_ranks(tmp_path: Path) -> None:
    records = [{"layer": 0, "expert": 0, "tokens": n + 1, "source_rank": n} for n in (0, 1)]
    trace = read(file(tmp_path, records))
    assert trace.source_counts is not None
    assert trace.source_counts.tolist() == [[[[1]], [[2]]]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON .line 1, column 2"),
        ("[" * 100_000, "nested too deeply"),
        ([], "no row of counts"),
        ([{"layer": 0, "tokens": 1}], "expert"),
        ([{"layer": 0, "expert": 0}], "record 0 needs either tokens or count"),
        ([{"layer": 0, "expert": 0, "tokens": 1, "count": 1}], "needs either tokens or count"),
        ([{"layer": 0, "expert": 0, "tokens": 1.5}], r"\$\[0\].tokens"),
        ([{"layer": 0, "expert": -2, "tokens": 1}], "record 0: .*expected whole numbers"),
        ([{"layer": 0, "expert": 10**9, "tokens": 1}], "at most 65536 are read"),
        ([{"layer": 0, "expert": 0, "tokens": 10**30}], "a.json"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read(file(tmp_path, content))
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [[], [[0, 1]], [{"layer": 1}], {"3": {"0": 1}}, {"load_history": []}, "[{", "", "[1,"],
)
def test_other_documents_are_not_claimed(tmp_path: Path, content: Any) -> None:
    assert not FORMAT.matches(file(tmp_path, content))


def test_a_byte_order_mark_is_no_part_of_the_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"layer": 3, "expert": 0, "tokens": 5}]', encoding="utf-8-sig")
    assert FORMAT.matches(path)
    assert read(path).counts.tolist() == [[[5]]]


@pytest.mark.parametrize("key", ["tokens", "note"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{{"layer": 3, "expert": 0, "tokens": 5, "note": 1, "{key}": 7}}]')
    with pytest.raises(FormatError, match=f"a.json: The key '{key}' appears twice"):
        read(path)
