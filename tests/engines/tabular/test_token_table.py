from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.formats import TraceOptions
from equipoise.errors import FormatError

ROWS = [("a", 3, [1, 2]), ("a", 4, [0, 5]), ("a", 3, [4, 0]), ("a", 4, [3, 2]), ("b", 3, [5, 1]),
        ("b", 4, [2, 0])]  # fmt: skip
NAMED = {"experts": "chosen", "layer": "block", "request": "session"}
OPTION = "experts=chosen,layer=block,request=session"


def write(path: Path, names: dict[str, str]) -> Path:
    columns = [names["request"], names["layer"], names["experts"], "score"]
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, [*row, 0.5], strict=True))) for row in ROWS]
    else:
        rows = [f'{r};{layer};"{" ".join(map(str, ids))}";0.5' for r, layer, ids in ROWS]
        lines = [";".join(columns), *rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def check(trace: eq.Trace) -> None:
    assert trace.layer_ids == (3, 4)
    assert trace.labels["request"].tolist() == ["a", "b"]
    assert trace.tokens.ids.tolist() == [
        [[1, 2], [0, 5]],
        [[4, 0], [3, 2]],
        [[5, 1], [2, 0]],
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_columns_of_any_name(tmp_path, suffix):
    path = write(tmp_path / f"t{suffix}", NAMED)
    check(eq.read_trace(path, TraceOptions(columns=NAMED)))
    with pytest.raises(FormatError, match="known format"):
        eq.read_trace(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_columns_named_as_in_public_logs_need_no_option(tmp_path, suffix):
    names = {"experts": "topk_ids", "layer": "layer", "request": "req_id"}
    check(eq.read_trace(write(tmp_path / f"t{suffix}", names)))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    request, layer, experts = zip(*ROWS, strict=True)
    table = pyarrow.table({"session": request, "block": layer, "chosen": experts})
    parquet.write_table(table, tmp_path / "t.parquet")
    check(eq.read_trace(tmp_path / "t.parquet", TraceOptions(columns=NAMED)))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 something")
    with pytest.raises(FormatError, match="pip install pyarrow, or save the table as JSON lines"):
        eq.read_trace(path)


def test_the_option_of_the_command(tmp_path, capsys):
    path = write(tmp_path / "t.csv", NAMED)
    assert main(["report", f"{path}", "--columns", OPTION, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    for text, said in (
        ("experts", "Cannot read columns"),
        ("experts=a,experts=b", "Cannot read columns"),
        ("weights=chosen", "--columns names weights; known are experts, layer, request, token"),
        ("experts=nope", "There is no column nope; the table has session, block, chosen, score"),
    ):
        assert main(["report", f"{path}", "--columns", text]) == 2
        assert said in capsys.readouterr().err


def test_a_table_of_one_layer_says_so(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"topk_ids": [1, 2]}\n{"topk_ids": [3, 0]}\n')
    trace = eq.read_trace(path)
    assert trace.layer_ids == (0,)
    assert "no column of layers" in " ".join(trace.provenance.notes)
    assert eq.read_trace(path, TraceOptions(layer_ids=(7,))).layer_ids == (7,)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"topk_ids": "1,2,x"}, "expected a list"),
        ({"topk_ids": [1, 2.5]}, "expected a list"),
        ({"topk_ids": None}, "expected a list"),
        ({"layer": "3.5"}, "layer is '3.5'"),
        ({"layer": "1e999"}, "layer is '1e999'"),
    ],
)
def test_rows_that_are_no_tokens(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    good = {"topk_ids": [1, 2], "layer": 0}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, good | row, good)))
    with pytest.raises(FormatError, match=rf"line 2: .*{said}"):
        eq.read_trace(path)


def test_columns_that_are_no_mapping(tmp_path):
    path = write(tmp_path / "t.csv", NAMED)
    with pytest.raises(FormatError, match="columns is 'experts'; expected a dict"):
        eq.read_trace(path, TraceOptions(columns="experts"))  # type: ignore[arg-type]
