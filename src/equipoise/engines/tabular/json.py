"""Tables as JSON: a list of records ``{"layer": 3, "expert": 17, "tokens": 42}``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from equipoise.engines._shared.arrays import naming
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.records import LABELS, Records
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import read_json
from equipoise.trace import Provenance, Trace

_HEAD_BYTES = 1 << 16


class _Record(msgspec.Struct):
    """One record; all other keys are ignored."""

    layer: int
    expert: int
    tokens: int | None = None
    count: int | None = None
    step: int = 0
    source_rank: int = 0
    phase: str = ""
    domain: str = ""
    map: str | int = ""


def matches(path: Path) -> bool:
    """Whether a file starts with a list of records of counts."""
    first = _first_record(path)
    return {"layer", "expert"} <= first.keys() and bool({"tokens", "count"} & first.keys())


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a list of records.

    Raises
    ------
    FormatError
        The file is not such a list; the message names the record (``$[17]``, counted from 0).
    """
    with naming(path):
        document = read_json(path)
        try:
            rows = msgspec.convert(document, list[_Record])
        except (msgspec.ValidationError, UnicodeEncodeError) as error:  # a lone surrogate
            raise FormatError(
                f"{path}: {error}. Expected a list of records with layer, expert and tokens."
            ) from error
        records = Records()
        for number, row in enumerate(rows):
            _add(records, row, f"{path}, record {number}")
        progress(1, 1)
        first = _first_record(path)
        unused = [name[:40] for name in first if name not in _Record.__struct_fields__][:8]
        notes = (f"Keys not used: {', '.join(unused)}.",) if unused else ()
        provenance = Provenance("json", str(path), notes)
        return records.trace(options, provenance, _columns(records, rows), path.stat().st_size)


def _first_record(path: Path) -> dict[str, Any]:
    """Return the first object of a JSON list, or an empty one if the file is anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8-sig", errors="ignore").lstrip()
        first, _ = json.JSONDecoder().raw_decode(head[1:].lstrip())
    except (OSError, ValueError, RecursionError):
        return {}
    return first if head.startswith("[") and isinstance(first, dict) else {}


def _columns(records: Records, rows: list[_Record]) -> frozenset[str]:
    """Return the optional keys that some record uses."""
    used = {name for i, name in enumerate(LABELS) if any(v[i] for v in records.label_values)}
    return frozenset(used | ({"source_rank"} if any(row.source_rank for row in rows) else set()))


def _add(records: Records, row: _Record, place: str) -> None:
    stated = [n for n in (row.tokens, row.count) if n is not None]
    if len(stated) != 1:
        raise FormatError(f"{place} needs either tokens or count, exactly one of them.")
    try:
        records.add(
            step=row.step,
            layer=row.layer,
            expert=row.expert,
            source=row.source_rank,
            tokens=stated[0],
            labels=tuple(str(getattr(row, name)) for name in LABELS),
        )
    except EquipoiseError as error:
        raise FormatError(f"{place}: {error}") from error


FORMAT = TraceFormat(
    name="json",
    summary="list of records with layer, expert, tokens; optionally step, phase, domain, "
    "map, source_rank",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids"}),
)
