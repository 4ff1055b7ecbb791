"""Comma-separated tables: a header line with ``layer``, ``expert`` and ``tokens``, in any order."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from equipoise.engines.arrays import naming
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.records import LABELS, Records, whole_number
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, Trace

_COUNT_NAMES = ("tokens", "count")
_OPTIONAL = ("step", "source_rank", *LABELS)
_MAX_HEADER_BYTES = 1 << 16
_PROGRESS_ROWS = 1 << 14


def matches(path: Path) -> bool:
    """Whether the first line of a file names the columns of a table of counts."""
    try:
        with path.open("rb") as file:
            line = file.readline(_MAX_HEADER_BYTES).decode("utf-8-sig")
        header = next(csv.reader([line]), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    names = {name.strip() for name in header}
    return {"layer", "expert"} <= names and any(name in names for name in _COUNT_NAMES)


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a table of counts.

    Raises
    ------
    FormatError
        A header without the needed columns, or a row that is not numbers: its line is named.
    """
    records = Records()
    with (
        naming(path),
        path.open("rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
    ):
        total = path.stat().st_size
        rows = _rows(path, file)
        header = [name.strip() for name in next(rows, (1, []))[1]]
        column = _columns(path, header)
        for number, (line, row) in enumerate(rows):
            if number % _PROGRESS_ROWS == 0:
                progress(raw.tell(), total)
            if not row:
                continue  # an empty line, as at the end of many files
            if len(row) != len(header):
                raise FormatError(
                    f"{path}, line {line}: {len(row)} fields; the header has {len(header)}."
                )
            _add(records, row, column, f"{path}, line {line}")
        progress(total, total)
        unused = [name for i, name in enumerate(header) if i not in column.values()]
        notes = (f"Columns not used: {', '.join(unused)}.",) if unused else ()
        return records.trace(options, Provenance("csv", str(path), notes), frozenset(column))


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row, the header included."""
    reader = csv.reader(file)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path} is not UTF-8 text, after line {reader.line_num}; save it as UTF-8."
            ) from error
        except csv.Error as error:
            raise FormatError(f"{path}, after line {reader.line_num}: {error}.") from error
        yield reader.line_num, row


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Position of each column we use, by our name of it."""
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        name = min(repeated)[:80]
        raise FormatError(f"{path} names the column {name!r} twice; rename one of them.")
    counts = [name for name in _COUNT_NAMES if name in header]
    missing = [name for name in ("layer", "expert") if name not in header]
    if len(counts) != 1 or missing:
        found_names = ", ".join(header)[:200] or "(none)"
        raise FormatError(
            f"{path} has the columns {found_names}; expected a header line with layer, expert and "
            "either tokens or count."
        )
    found = {name: header.index(name) for name in ("layer", "expert", *_OPTIONAL) if name in header}
    return {**found, "tokens": header.index(counts[0])}


def _add(records: Records, row: list[str], column: dict[str, int], place: str) -> None:
    def number(name: str) -> int:
        return whole_number(row[column[name]]) if name in column else 0

    try:
        records.add(
            step=number("step"),
            layer=number("layer"),
            expert=number("expert"),
            source=number("source_rank"),
            tokens=number("tokens"),
            labels=tuple(row[column[name]] if name in column else "" for name in LABELS),
        )
    except EquipoiseError as error:
        raise FormatError(f"{place}: {error}") from error
    except ValueError as error:
        raise FormatError(
            f"{place}: {', '.join(row)[:80]!r} is not a row of whole numbers; correct or remove it."
        ) from error


FORMAT = TraceFormat(
    name="csv",
    summary="table with the columns layer, expert, tokens; optionally step, phase, domain, "
    "source_rank",
    matches=matches,
    read=read,
    options=frozenset({"num_experts"}),
)
