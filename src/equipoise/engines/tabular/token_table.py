"""Any table of tokens: one row for each token and layer, with the list of its experts.

It may be JSON lines, text separated by commas, semicolons or tabs, or Parquet (with pyarrow).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from equipoise.checks import check_type
from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.json_lines import json_object, read_lines
from equipoise.engines._shared.requests import trace_of_requests
from equipoise.engines._shared.token_rows import TokenRows
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.csv import first_line, separator
from equipoise.engines.tabular.records import whole_number
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.trace import Provenance, Trace

NAME = "token-table"
COLUMNS = {"experts": "topk_ids", "layer": "layer", "request": "req_id", "token": "token_idx"}
"""Names of the columns here, and their names in public logs."""

_PARQUET = b"PAR1"
_PEEK_BYTES = 1 << 16
_LIST = re.compile(r"[\[(]?\s*(-?\d{1,9}(?:[\s,;|]+-?\d{1,9})*)\s*[\])]?")
_QUOTED = 40


def matches(path: Path) -> bool:
    """Whether a file is Parquet, or its first line names the experts of a token."""
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK_BYTES)
    except OSError:
        return False
    if head.startswith(_PARQUET):
        return True
    line = head.lstrip().partition(b"\n")[0]
    if not line.startswith(b"{"):
        return COLUMNS["experts"] in _names(line.decode("utf-8-sig", errors="replace"))
    try:
        record = json_object(line)
    except FormatError:
        return False
    return COLUMNS["experts"] in record and record.get("type") not in ("route", "meta")


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a table; columns that the options do not name have the names of public logs.

    Raises
    ------
    FormatError
        A column is missing, a row is not a token, or pyarrow is missing for Parquet.
    """
    notes: list[str] = []
    rows = TokenRows()
    with naming(path):
        wanted = _wanted(options.columns)
        names: set[str] = set()
        for place, row in _rows(path, notes, progress):
            if not names:
                names = _check_names(row, wanted, options.columns)
            try:
                add_row(rows, row, {ours: name for ours, name in wanted.items() if name in names})
            except (EquipoiseError, ValueError) as error:
                raise FormatError(f"{path}, {place}: {error}") from error
        requests, layers = rows.requests(path.stat().st_size, notes)
        stated = layers if wanted["layer"] in names else None
        if stated is None and options.layer_ids is None:
            notes.append(
                Message(
                    "The table has no column of layers, so its rows were taken as those of one "
                    f"layer, 0; {argument('layer_ids')} names it, {argument('columns')} its column."
                )
            )
        provenance = Provenance(NAME, str(path), tuple(notes))
        return trace_of_requests(requests, options, provenance, stated)


def add_row(rows: TokenRows, row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Add a row whose values have the given names; ``EquipoiseError`` if it is not a token."""
    rows.add(
        str(row[columns["request"]])[:64] if "request" in columns else "",
        _whole(row, columns["layer"]) if "layer" in columns else 0,
        _whole(row, columns["token"]) if "token" in columns else -1,
        _experts(row[columns["experts"]]),
    )


def _wanted(given: dict[str, str] | None) -> dict[str, str]:
    given = {} if given is None else check_type(argument("columns"), given, dict)
    unknown = sorted(str(name) for name in given.keys() - COLUMNS.keys())
    if unknown:
        raise EquipoiseError(
            f"{argument('columns')} names {', '.join(unknown)[:_QUOTED]}; known are "
            f"{', '.join(COLUMNS)}, as in experts={COLUMNS['experts']}."
        )
    return {**COLUMNS, **given}


def _check_names(
    row: Mapping[str, Any], wanted: Mapping[str, str], given: Mapping[str, str] | None
) -> set[str]:
    """The columns of the table; refuse it without those that were named, and without experts."""
    needed = {wanted["experts"], *(given or {}).values()}
    missing = sorted(needed - row.keys())
    if missing:
        there = ", ".join(str(name)[:_QUOTED] for name in list(row)[:12])
        raise EquipoiseError(
            f"There is no column {', '.join(missing)[:_QUOTED]}; the table has {there}. Name them: "
            f"{argument('columns')} experts=...,layer=...,request=..."
        )
    return set(row)


def _rows(
    path: Path, notes: list[str], progress: Progress
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place of each row, for messages, and its values by column."""
    with path.open("rb") as file:
        head = file.read(_PEEK_BYTES).lstrip()
    if head.startswith(_PARQUET):
        yield from _parquet_rows(path, progress)
    elif head.startswith(b"{"):
        for number, record in read_lines(path, json_object, notes, progress):
            yield f"line {number}", record
    else:
        yield from _text_rows(path, progress)


def _text_rows(path: Path, progress: Progress) -> Iterator[tuple[str, Mapping[str, Any]]]:
    size = path.stat().st_size
    with path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator(first_line(path)))
        try:
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if len(row) not in (0, len(header)):
                    raise FormatError(
                        f"{path}, line {reader.line_num}: {len(row)} fields; the header has "
                        f"{len(header)}."
                    )
                if row:
                    yield f"line {reader.line_num}", dict(zip(header, row, strict=True))
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} is not UTF-8 text.") from error
        except csv.Error as error:
            raise FormatError(f"{path}, line {reader.line_num}: {error}.") from error
    progress(size, size)


def _parquet_rows(path: Path, progress: Progress) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise FormatError(
            f"{path} is Parquet, which needs pyarrow: pip install pyarrow, or save the table as "
            "JSON lines."
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1 << 14):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
                progress(number, file.metadata.num_rows)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise FormatError(f"{path} is damaged Parquet, or of an unknown kind.") from error


def _names(header: str) -> list[str]:
    return [name.strip() for name in header.split(separator(header))]


def _whole(row: Mapping[str, Any], name: str) -> int:
    """Return a whole number, also if it is written as text."""
    value = row[name]
    try:
        number = whole_number(str(value)[:_QUOTED])
    except (ValueError, OverflowError) as error:
        raise EquipoiseError(
            f"{name[:_QUOTED]} is {str(value)[:_QUOTED]!r}; expected a whole number."
        ) from error
    return number


def _experts(value: Any) -> list[int]:
    """Return the experts of a token from a list, or from text such as ``[3, 12]`` or ``3 12``."""
    if isinstance(value, str):
        match = _LIST.fullmatch(value.strip())
        value = [int(text) for text in re.findall(r"-?\d+", match[1])] if match else value
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise EquipoiseError(
            f"The experts of a token are {str(value)[:_QUOTED]!r}; expected a list such as [3, 12]."
        )
    return value


FORMAT = TraceFormat(
    name=NAME,
    summary="a table of tokens with the experts of each (.jsonl, .csv, .parquet); --columns names "
    "its columns",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "window_tokens", "columns"}),
)
