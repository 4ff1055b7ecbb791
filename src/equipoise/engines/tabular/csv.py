"""Tables as text: a header line with ``layer``, ``expert`` and ``tokens``, in any order.

Commas, semicolons or tabs separate the fields; the header shows which of them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.rank_parts import part_of_rank
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.records import LABELS, Records, whole_number
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, Trace

_COUNT_NAMES = ("tokens", "count")
_OPTIONAL = ("step", "source_rank", *LABELS)
_OUR_NAMES = {"layer_id": "layer", "expert_id": "expert"}
_SEPARATORS = (",", ";", "\t")
_QUOTED, _MOST_NAMES = 40, 8  # of what a message repeats
_MAX_HEADER_BYTES = 1 << 16
_PROGRESS_ROWS = 1 << 14


def matches(path: Path) -> bool:
    """Whether the first line of a file names the columns of a table of counts."""
    try:
        line = first_line(path)
        names = _in_our_words(next(csv.reader([line], delimiter=separator(line)), []))
    except (OSError, csv.Error):
        return False
    return {"layer", "expert"} <= {*names} and any(name in names for name in _COUNT_NAMES)


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a table of counts.

    Raises
    ------
    FormatError
        The header lacks a needed column, or a row is not numbers; the message names its line.
    """
    records = Records()
    with naming(path):
        columns, unused = add_table(path, records, progress)
        notes = [f"Columns not used: {', '.join(unused)}."] if unused else []
        provenance = Provenance("csv", str(path), (*notes, *part_of_rank(path)))
        return records.trace(options, provenance, columns, path.stat().st_size)


def add_table(
    path: Path, records: Records, progress: Progress, source: int | None = None
) -> tuple[frozenset[str], list[str]]:
    """Add the rows of a table; if ``source`` is given, all of them are of that source rank.

    Returns
    -------
    The columns used and, as the header spells them, those that are not.

    Raises
    ------
    FormatError
        As ``read``.
    """
    with (
        path.open("rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
    ):
        total = path.stat().st_size
        rows = _rows(path, file, separator(first_line(path)))
        header = _in_our_words(next(rows, (1, []))[1])
        column = _columns(path, header)
        if source is not None and "source_rank" in column:
            raise FormatError(f"{path} names source ranks, and so does its file name.")
        for number, (line, row) in enumerate(rows):
            if number % _PROGRESS_ROWS == 0:
                progress(raw.tell(), total)
            if not row:
                continue  # an empty line, as at the end of many files
            if len(row) != len(header):
                raise FormatError(
                    f"{path}, line {line}: {len(row)} fields; the header has {len(header)}."
                )
            _add(records, row, column, source or 0, f"{path}, line {line}")
        progress(total, total)
    unused = [name[:_QUOTED] for i, name in enumerate(header) if i not in column.values()]
    return frozenset(column), unused[:_MOST_NAMES]


def separator(header: str) -> str:
    """Return the separator of the fields: the mark that occurs most often in the header."""
    return max(_SEPARATORS, key=header.count)


def first_line(path: Path) -> str:
    """Return the header of a table, cut at the greatest length that a header may have."""
    with path.open("rb") as file:
        return file.readline(_MAX_HEADER_BYTES).decode("utf-8-sig", errors="replace")


def _in_our_words(header: list[str]) -> list[str]:
    return [_OUR_NAMES.get(name.strip(), name.strip()) for name in header]


def _rows(path: Path, file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of every row, the header included."""
    reader = csv.reader(file, delimiter=separator)
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


def _add(records: Records, row: list[str], column: dict[str, int], source: int, place: str) -> None:
    def number(name: str) -> int:
        return whole_number(row[column[name]]) if name in column else 0

    try:
        records.add(
            step=number("step"),
            layer=number("layer"),
            expert=number("expert"),
            source=number("source_rank") or source,
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
    "map, source_rank",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids"}),
)
