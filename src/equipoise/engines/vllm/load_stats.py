"""vLLM's EPLB load statistics (JSONL), as proposed in its pull request 41141, revisions A and B.

Layout and traps: ``docs/formats/traces-sglang-vllm.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.engines.arrays import compact, naming, refuse_oversize
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, Trace

_META, _STATS = "eplb_load_meta", "eplb_load_stats"
_VERSION = 1
_PEEK_LINES, _PEEK_BYTES = 8, 1 << 24  # other tools put their own records first
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]  # far above any load; sums fit in 64 bits
_Expert = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 20)]  # -1: an empty slot
_SOURCE_NOTE = (
    "Counts are what one process recorded before the ranks were summed; naive all-gather dispatch "
    "counts every token once a data-parallel rank."
)


class _Head(msgspec.Struct):
    """What says how to read the rest of a record."""

    record_type: str = ""
    version: Any = None


class _Meta(msgspec.Struct):
    """Revision B's first record."""

    num_ranks: int
    num_layers: int
    num_redundant_experts: _Count


class _Stats(msgspec.Struct):
    """The load of one step, and the map under which it was counted."""

    step: _Count
    expert_load: list[list[_Count]]  # (L, S)
    p2l_map: list[list[_Expert]]  # (L, S)
    num_ranks: int | None = None  # revision A


@dataclass(eq=False)
class _Recording:
    """What has been read so far."""

    meta: _Meta | None = None
    steps: list[int] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)  # (L, E of the record) each
    ranks: set[int] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=lambda: [_SOURCE_NOTE])


def _matches(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            lines = [file.readline(_PEEK_BYTES) for _ in range(_PEEK_LINES)]
    except OSError:
        return False
    kinds = []
    for line in filter(bytes.strip, lines):
        try:
            kinds.append(_head(line).record_type)
        except FormatError:
            break
    return _META in kinds or _STATS in kinds


def _read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    recording = _Recording()
    with naming(path):
        for number, head, line in _records(path, recording.notes, progress):
            try:
                _add(head, line, recording, options.iterations)
            except (EquipoiseError, msgspec.DecodeError, UnicodeDecodeError) as error:
                what = str(error).removesuffix(".")
                raise FormatError(f"{path}, line {number}: {what}.") from error
        return _trace(path, recording, options)


FORMAT = TraceFormat(
    name="vllm",
    summary="vLLM EPLB load statistics (.jsonl) of the proposal in pull request 41141",
    matches=_matches,
    read=_read,
    options=frozenset({"layer_ids", "iterations"}),
)


def _records(
    path: Path, notes: list[str], progress: Progress
) -> Iterator[tuple[int, _Head, bytes]]:
    """The number, head and text of every line; only the last line may be broken."""
    size, done, broken = path.stat().st_size, 0, ""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            if not line.strip():
                continue
            if broken:
                raise FormatError(f"{path}, {broken}")
            try:
                head = _head(line)
            except FormatError as error:
                broken = f"line {number}: {error}"
                continue
            yield number, head, line
            progress(done, size)
    if broken:
        notes.append(f"The last line is cut off and was left out ({broken})")


def _head(line: bytes) -> _Head:
    try:
        return msgspec.json.decode(line, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a JSON record: {error}.") from error


def _add(head: _Head, line: bytes, recording: _Recording, only: tuple[int, int] | None) -> None:
    if head.record_type not in (_META, _STATS):
        recording.skipped[head.record_type or "without record_type"] += 1
        return
    if head.version != _VERSION:
        raise FormatError(f"version {head.version!r} is not known; expected {_VERSION}.")
    if head.record_type == _META:
        if recording.meta is not None or recording.steps:
            raise FormatError("a second recording begins here; split the file before this line.")
        recording.meta = msgspec.json.decode(line, type=_Meta)
        recording.ranks.add(recording.meta.num_ranks)
        return
    stats = msgspec.json.decode(line, type=_Stats)
    if only is None or only[0] <= stats.step < only[1]:
        recording.counts.append(_fold(stats, recording))
        recording.steps.append(stats.step)
        if stats.num_ranks is not None:
            recording.ranks.add(stats.num_ranks)


def _fold(stats: _Stats, recording: _Recording) -> NDArray[np.int64]:
    """The record's load by logical expert, ``(L, E)``, by the map it carries."""
    load, slot_expert = _table(stats.expert_load), _table(stats.p2l_map)
    L, S = load.shape
    if slot_expert.shape != (L, S):
        raise FormatError(
            f"expert_load has (layers, slots) {(L, S)}, p2l_map {slot_expert.shape}; expected the "
            "same."
        )
    known = recording.meta.num_layers if recording.meta else len((recording.counts or [load])[0])
    if known != L:
        raise FormatError(f"{L} layers in a recording of {known}.")
    E = _num_experts(slot_expert, recording.meta)
    empty = slot_expert < 0
    if load[empty].any():
        layer, slot = np.argwhere(empty & (load > 0))[0]
        raise FormatError(f"layer {layer}, slot {slot} has load, but the map says it is empty.")
    counts = np.zeros((L, E), dtype=np.int64)
    layer_index = np.broadcast_to(np.arange(L)[:, None], (L, S))
    np.add.at(counts, (layer_index[~empty], slot_expert[~empty]), load[~empty])
    return counts


def _num_experts(slot_expert: NDArray[np.int64], meta: _Meta | None) -> int:
    S = slot_expert.shape[1]
    most = S if meta is None else S - meta.num_redundant_experts
    largest = int(slot_expert.max())
    if largest >= most:
        raise FormatError(
            f"p2l_map holds expert {largest}; {S} slots hold at most {most} experts"
            + ("." if meta is None else f" with {meta.num_redundant_experts} redundant.")
        )
    return largest + 1 if meta is None else most


def _table(rows: list[list[int]]) -> NDArray[np.int64]:
    try:
        table = np.array(rows, dtype=np.int64)
    except ValueError:
        raise FormatError("its layers have different numbers of slots.") from None
    if table.ndim != 2 or not table.size:
        raise FormatError(f"a table of shape {table.shape}; expected (layers, slots).")
    return table


def _trace(path: Path, recording: _Recording, options: TraceOptions) -> Trace:
    if not recording.steps:
        wanted = "" if options.iterations is None else " of the iterations asked for"
        raise FormatError(f"{path} has no complete {_STATS} record{wanted}.")
    shape = (len(recording.counts), *np.max([c.shape for c in recording.counts], axis=0))
    refuse_oversize(shape, 8, "A recording (steps, layers, experts)")
    counts = np.zeros(shape, dtype=np.int64)
    for row, record in zip(counts, recording.counts, strict=True):
        row[:, : record.shape[1]] = record
    notes = recording.notes
    notes += [f"Skipped {n} records {kind}." for kind, n in sorted(recording.skipped.items())]
    if recording.ranks:
        ranks = " and ".join(map(str, sorted(recording.ranks)))
        notes.append(f"Recorded on {ranks} ranks.")
    if any(b <= a for a, b in pairwise(recording.steps)):
        notes.append(
            "Step numbers repeat or go back: several runs are in the file, kept in its order."
        )
    return Trace(
        counts=compact(counts),
        layer_ids=options.layer_ids or (),
        step_ids=np.array(recording.steps, dtype=np.int64),
        provenance=Provenance("vllm", str(path), tuple(notes)),
    )
