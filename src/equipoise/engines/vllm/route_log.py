"""Route logs of public patches of vLLM: JSON lines, first ``meta``, then a ``route`` per token."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.engines._shared.arrays import MAX_EXPERTS, naming
from equipoise.engines._shared.json_lines import json_object, read_lines
from equipoise.engines._shared.requests import trace_of_requests
from equipoise.engines._shared.token_rows import TokenRows
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.token_table import COLUMNS, add_row
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, Trace

_META, _ROUTE = "meta", "route"
_PEEK_BYTES = 1 << 16
_QUOTED = 60


def matches(path: Path) -> bool:
    """Whether the first line of a file is a route, or says what is logged."""
    try:
        with path.open("rb") as file:
            record = json_object(file.readline(_PEEK_BYTES))
    except (OSError, FormatError):
        return False
    if record.get("type") == _META:
        return "top_k" in record or "layers_logged" in record
    return record.get("type") == _ROUTE and COLUMNS["experts"] in record


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a log; whenever token numbers start again, a new pass of the model begins, a step.

    Raises
    ------
    FormatError
        A line is not a route, or there is nothing but a warm-up.
    """
    notes: list[str] = []
    meta: dict[str, Any] = {}
    others: Counter[str] = Counter()
    rows = TokenRows()
    with naming(path):
        for number, record in read_lines(path, json_object, notes, progress):
            kind = str(record.get("type"))[:_QUOTED]
            if kind == _META:
                meta = meta or record  # a server that is started again appends its own
            elif kind == _ROUTE:
                _add(rows, record, f"{path}, line {number}")
            else:
                others[kind] += 1
        requests, layers = rows.requests(path.stat().st_size, notes)
        notes += [f"{n} lines of type {kind!r} were skipped." for kind, n in others.items()]
        notes += _compared(meta, rows.top_k, layers)
        E = meta.get("num_experts")
        if options.num_experts is None and type(E) is int and 0 < E <= MAX_EXPERTS:
            options = replace(options, num_experts=E)
        provenance = Provenance("vllm-route-log", str(path), tuple(notes))
        return trace_of_requests(requests, options, provenance, layers)


def _add(rows: TokenRows, record: dict[str, Any], place: str) -> None:
    missing = [name for name in COLUMNS.values() if name not in record]
    if missing:
        raise FormatError(f"{place}: a route without {', '.join(missing)}.")
    try:
        add_row(rows, record, COLUMNS)
    except EquipoiseError as error:
        raise FormatError(f"{place}: {error}") from error


def _compared(meta: dict[str, Any], top_k: int, layers: tuple[int, ...]) -> list[str]:
    """Return notes on the first line, as far as they matter to the user."""
    notes = []
    if meta.get("model_id"):
        notes.append(f"The log is of the model {str(meta['model_id'])[:_QUOTED]}.")
    if meta.get("top_k") not in (None, top_k):
        notes.append(f"The first line states top_k {meta['top_k']!r:.20}; tokens have {top_k}.")
    if len(layers) == 1:
        notes.append(f"One layer was logged, {layers[0]}; nothing is known of the others.")
    return notes


FORMAT = TraceFormat(
    name="vllm-route-log",
    summary="route logs of public patches of vLLM: a first line of type meta, then a route a token "
    "(.jsonl)",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "window_tokens"}),
)
