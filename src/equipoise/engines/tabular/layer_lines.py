"""Records of one layer each, ``{"layer": 3, "tokens_per_expert": [1, 2]}``: lines, or one list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equipoise.engines._shared.arrays import naming, numbers
from equipoise.engines._shared.rank_parts import part_of_rank
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.records import Records
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_json, read_json
from equipoise.trace import Provenance, Trace

COUNTS = ("tokens_per_expert", "expert_counts", "expert_load", "counts", "load")
"""Names that recorders give to the list with one count per expert."""

LAYERS, _STEPS = ("layer", "layer_id"), ("step", "iteration")
_PEEK_BYTES = 1 << 20
_QUOTED = 40


def matches(path: Path) -> bool:
    """Whether the first record of a file counts the experts of one layer."""
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK_BYTES)
    except OSError:
        return False
    text = head.lstrip()
    line = text.partition(b"\n")[0] if text[:1] == b"{" else _first_of_list(text)
    try:
        return _is_record(parse_json(line, "")) if line else False
    except FormatError:
        return False


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read lines of JSON, or one list of the same records.

    Raises
    ------
    FormatError
        A record lacks its layer or its counts; the message names its line.
    """
    records = Records()
    with naming(path):
        unused = add_lines(path, records, progress)
        notes = [f"Keys not used: {', '.join(unused)}."] if unused else []
        provenance = Provenance("layer-lines", str(path), (*notes, *part_of_rank(path)))
        return records.trace(options, provenance, frozenset(), path.stat().st_size)


def add_lines(path: Path, records: Records, progress: Progress, source: int = 0) -> list[str]:
    """Add all records of a file as those of one source rank; return the keys that are not used.

    Raises
    ------
    FormatError
        As ``read``.
    """
    unused: set[str] = set()
    width: int | None = None
    for place, record in _records(path, progress):
        if not isinstance(record, dict) or not _is_record(record):
            raise FormatError(
                f"{place} does not name one layer and one list of counts; expected "
                '{"layer": 3, "tokens_per_expert": [...]}.'
            )
        try:
            tokens = _whole(record[_first(COUNTS, record)])
            layer, step = (_number(record, names) for names in (LAYERS, _STEPS))
            if width not in (None, len(tokens)):
                raise EquipoiseError(
                    f"Layer {layer} has {len(tokens)} experts, the records before have {width}: "
                    "layers with different numbers of experts cannot be planned together. Keep "
                    "layers of one size in a file."
                )
            width = len(tokens)
            records.add_layer(step=step, layer=layer, source=source, tokens=tokens)
        except EquipoiseError as error:
            raise FormatError(f"{place}: {error}") from error
        unused |= record.keys() - {*COUNTS, *LAYERS, *_STEPS}
    return sorted(key[:_QUOTED] for key in unused)[:8]


def _records(path: Path, progress: Progress) -> Iterator[tuple[str, Any]]:
    """Yield each record with its place in the file, for messages."""
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        if file.read(_PEEK_BYTES).lstrip()[:1] == b"[":
            document = read_json(path)
            yield from ((f"{path}, record {i}", record) for i, record in enumerate(document))
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            done += len(line)
            if line.strip():
                place = f"{path}, line {number}"
                yield place, parse_json(line, place)
                progress(done, size)


def _first_of_list(text: bytes) -> bytes:
    """Return the first record of a list of flat records."""
    inner = text[1:].lstrip()
    if text[:1] != b"[" or inner[:1] != b"{":
        return b""
    return inner[: inner.find(b"}") + 1]


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lists = [name for name in COUNTS if isinstance(value.get(name), list)]
    return len(lists) == 1 and any(name in value for name in LAYERS)


def _first(names: tuple[str, ...], record: dict[str, Any]) -> str:
    return next(name for name in names if name in record)


def _number(record: dict[str, Any], names: tuple[str, ...]) -> int:
    """Return a whole number, also if it is written as text; 0 if no name is in the record."""
    value = next((record[name] for name in names if name in record), 0)
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) < 16):
        raise EquipoiseError(f"{names[0]} is {text[:_QUOTED]!r}; expected a number from 0.")
    return int(text)


def _whole(row: list[Any]) -> list[int]:
    values = numbers(row, "The list of counts")
    if not ((values >= 0) & (values < 2.0**48) & (values % 1 == 0)).all():
        raise EquipoiseError("Counts are not whole numbers from 0 to 2^48.")
    return [int(value) for value in values]


FORMAT = TraceFormat(
    name="layer-lines",
    summary="JSON records of one layer each: layer, tokens_per_expert, optionally step or "
    "iteration (.jsonl, .json)",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids"}),
)
