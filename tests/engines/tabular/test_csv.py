"""Comma-separated tables: any column order, absent pairs 0, bad rows named by their line."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.tabular.csv import FORMAT
from equipoise.errors import FormatError
from equipoise.trace import Trace


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_in_any_order_and_absent_pairs_count_zero(tmp_path: Path) -> None:
    path = table(tmp_path, "tokens,expert,model,layer\n5,2,x,3\n7,0,x,10\n")
    assert FORMAT.matches(path)
    trace = read(path, num_experts=4)
    assert trace.counts.tolist() == [[[0, 0, 5, 0], [7, 0, 0, 0]]]
    assert trace.layer_ids == (3, 10)
    assert trace.source_counts is None
    assert trace.provenance.notes == ("Columns not used: model.",)


def test_steps_phases_and_domains(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "step,phase,domain,map,layer,expert,count\n"
        "7,decode,math,1,0,0,1\n7,prefill,math,1,0,1,2\n2,decode,code,0,0,1,3\n"
        "7,decode,math,1,0,1,4\n",
    )
    trace = read(path)
    assert trace.steps.tolist() == [2, 7, 7]
    assert trace.labels["phase"].tolist() == ["decode", "decode", "prefill"]
    assert trace.labels["domain"].tolist() == ["code", "math", "math"]
    assert trace.labels["map"].tolist() == ["0", "1", "1"]
    assert trace.counts[:, 0].tolist() == [[0, 3], [1, 4], [0, 2]]


def test_source_ranks(tmp_path: Path) -> None:
    path = table(tmp_path, "layer,expert,tokens,source_rank\n0,0,1,0\n0,0,2,1\n0,1,4,1\n")
    trace = read(path)
    assert trace.source_counts is not None
    assert trace.source_counts.tolist() == [[[[1, 0]], [[2, 4]]]]
    assert trace.counts.tolist() == [[[3, 4]]]
    assert not any("repeat" in note for note in trace.provenance.notes)


def test_repeated_rows_are_added_and_noted(tmp_path: Path) -> None:
    trace = read(table(tmp_path, "layer,expert,tokens\n0,0,1\n0,0,2\n"), num_experts=1)
    assert trace.counts.tolist() == [[[3]]]
    assert trace.provenance.notes == (
        "1 rows repeat an earlier (step, layer, expert); they were added.",
    )


def test_marks_of_spreadsheets_are_understood(tmp_path: Path) -> None:
    path = table(tmp_path, '\ufefflayer, expert ,"tokens"\r\n0, 1 ,12.0\r\n\r\n')
    assert FORMAT.matches(path)
    assert read(path).counts.tolist() == [[[0, 12]]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layer,expert\n0,0\n", "either tokens or count"),
        ("layer,expert,tokens,count\n0,0,1,1\n", "either tokens or count"),
        ("layer,tokens\n0,0\n", "expected a header line"),
        ("", r"columns \(none\)"),
        ("layer,layer,expert,tokens\n0,0,0,0\n", "'layer' twice"),
        ("layer,expert,tokens\n", "no row of counts"),
        ("layer,expert,tokens\n0,0,1\n0,x,1\n", "line 3: '0, x, 1' is not a row"),
        ("layer,expert,tokens\n0,0,1.5\n", "line 2: '0, 0, 1.5' is not a row"),
        ("layer,expert,tokens\n0,0,nan\n", "line 2"),
        ("layer,expert,tokens\n0,0,1e999\n", "line 2"),
        (f"layer,expert,tokens\n0,0,{'9' * 5000}\n", "line 2"),
        ("layer,expert,tokens\n\n0,0\n", "line 3: 2 fields; the header has 3"),
        ("layer,expert,tokens\n0,-1,1\n", "line 2: .*expected whole numbers from 0"),
        (f"layer,expert,tokens\n0,0,{2**60}\n", "line 2: .*expected whole numbers"),
        ("layer,expert,tokens\n0,1000000,1\n", "at most 65536 are read"),
        (
            "layer,expert,tokens,source_rank\n0,65535,1,1000000\n",
            "0.25 GiB are read at once from 50 bytes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read(table(tmp_path, text))
    assert "a.csv" in str(caught.value)


def test_a_given_num_experts_must_hold_every_id(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="Expert 5 occurs, but num_experts is 4"):
        read(table(tmp_path, "layer,expert,tokens\n0,5,1\n"), num_experts=4)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"layer,expert,tokens\n0,0,\xff\n")
    with pytest.raises(FormatError, match=r"a\.csv is not UTF-8 text, after line"):
        read(tmp_path / "a.csv")


def test_other_tables_are_not_claimed(tmp_path: Path) -> None:
    assert not FORMAT.matches(table(tmp_path, "gpu,time_us\nH100,3\n"))
    (tmp_path / "a.csv").write_bytes(b"\x80\x02\xff" * 100)
    assert not FORMAT.matches(tmp_path / "a.csv")
    assert not FORMAT.matches(tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, n) for n in (3, 4, 5, 2, 9)], st.sampled_from("ab")), min_size=1
    )
)
def test_every_row_is_counted_once(rows: list[tuple[int, int, int, int, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "layer", "expert", "source_rank", "tokens", "domain"])
            writer.writerows(rows)
        trace = read(path, num_experts=6)
    assert trace.source_counts is not None
    wanted: dict[tuple[Any, ...], int] = {}
    for step, layer, expert, source, tokens, domain in rows:
        key = (step, domain, layer, expert, source)
        wanted[key] = wanted.get(key, 0) + tokens
    for t, (step, domain) in enumerate(zip(trace.steps, trace.labels["domain"], strict=True)):
        for i, layer in enumerate(trace.layer_ids):
            for source, expert in np.ndindex(trace.source_counts.shape[1], 6):
                got = trace.source_counts[t, source, i, expert]
                assert got == wanted.pop((int(step), str(domain), layer, expert, source), 0)
    assert not wanted


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_as_commas_do(tmp_path: Path, separator: str) -> None:
    text = "step,layer,expert,tokens,domain\n0,3,1,5,a\n1,3,0,7,b\n"
    path = table(tmp_path, text.replace(",", separator))
    assert FORMAT.matches(path)
    trace = read(path)
    assert trace.counts.tolist() == [[[0, 5]], [[7, 0]]]
    assert trace.labels["domain"].tolist() == ["a", "b"]


def test_columns_as_the_first_recorder_named_them(tmp_path: Path) -> None:
    path = table(tmp_path, "layer_id,expert_id,count\n3,1,5\n")
    assert FORMAT.matches(path)
    assert read(path).counts.tolist() == [[[0, 5]]]


def test_a_layer_without_the_last_experts_is_refused(tmp_path: Path) -> None:
    """Unless the number of experts is given, or fewer are missing than chance may leave out."""
    rows = [(layer, expert) for layer in (3, 4) for expert in range(16 if layer == 3 else 12)]
    text = "layer,expert,tokens\n" + "".join(f"{a},{b},1\n" for a, b in rows)
    path = table(tmp_path, text)
    with pytest.raises(FormatError, match=r"Layer 4 has rows for the experts 0-11 only.* 0-15"):
        read(path)
    assert read(path, num_experts=16).counts[0].sum(axis=1).tolist() == [16, 12]
    chance = table(tmp_path, text + "4,12,1\n4,13,1\n4,14,1\n")
    assert read(chance).num_experts == 16


def test_a_long_label_is_refused_where_it_stands(tmp_path: Path) -> None:
    path = table(tmp_path, "layer,expert,tokens,phase\n0,0,1,a\n0,0,1," + "x" * 257 + "\n")
    with pytest.raises(FormatError, match=r"line 3: A label has 257 characters"):
        read(path)


def test_labels_do_not_take_far_more_room_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One label of 256 characters gives every step as much."""
    monkeypatch.setattr("equipoise.engines._shared.arrays._SMALL_BYTES", 1 << 10)
    rows = [f"{step},0,0,1,{'y' * 256 if step == 7 else ''}\n" for step in range(1000)]
    path = table(tmp_path, "step,layer,expert,tokens,domain\n" + "".join(rows))
    with pytest.raises(FormatError, match=r"A column of labels .* would take"):
        read(path)
