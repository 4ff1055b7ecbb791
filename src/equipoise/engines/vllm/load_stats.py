"""vLLM's EPLB load statistics (JSONL), as proposed in its pull request 41141, revisions A and B.

Layout and traps: ``equipoise explain traces-sglang-vllm``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import compact, naming, refuse_oversize
from equipoise.engines._shared.json_lines import json_object, read_lines
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.trace import MAP_LABEL, MAX_COUNT, Provenance, Trace

if TYPE_CHECKING:
    from equipoise.engines.vllm.load_tail import Tail

_META, _STATS = "eplb_load_meta", "eplb_load_stats"
_VERSION = 1
_PEEK_LINES, _PEEK_BYTES = 8, 1 << 24  # other tools put their own records first
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]  # far above any load; sums fit in 64 bits
_Expert = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 20)]  # -1: an empty slot
_SOURCE_NOTE = (
    "Counts are what one process recorded before the ranks were summed; naive all-gather dispatch "
    "counts every token once a data-parallel rank."
)


class Meta(msgspec.Struct):
    """Revision B's first record."""

    num_ranks: int
    num_layers: int
    num_redundant_experts: _Count


class Stats(msgspec.Struct):
    """The load of one step, and the map with which it was counted."""

    step: _Count
    expert_load: list[list[int]]  # (L, S)
    p2l_map: list[list[_Expert]]  # (L, S)
    num_ranks: int | None = None  # revision A


@dataclass(eq=False)
class _Recording:
    """The records read so far."""

    meta: Meta | None = None
    steps: list[int] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)  # (L, E of the record) each
    maps: list[list[list[int]]] = field(default_factory=list)  # (L, S) each
    last_map: dict[int, list[list[int]]] = field(default_factory=dict)  # by number of layers
    lines: list[int] = field(default_factory=list)
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
            kinds.append(parse_record(line).get("record_type"))
        except FormatError:
            break
    return _META in kinds or _STATS in kinds


def _read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    recording = _Recording()
    with naming(path):
        for number, record in read_lines(path, parse_record, recording.notes, progress):
            try:
                _add(number, record, recording, options.iterations)
            except (EquipoiseError, msgspec.ValidationError, UnicodeEncodeError) as error:
                what = str(error).removesuffix(".")
                raise FormatError(f"{path}, line {number}: {what}.") from error
        return _trace(path, recording, options)


def _watch(path: Path, num_ranks: int | None) -> Tail:
    from equipoise.engines.vllm.load_tail import Tail  # of use to the monitor only

    return Tail(path, num_ranks)


FORMAT = TraceFormat(
    name="vllm",
    summary="vLLM EPLB load statistics (.jsonl) of the proposal in pull request 41141",
    matches=_matches,
    read=_read,
    options=frozenset({"layer_ids", "iterations"}),
    watch=_watch,
)


def parse_record(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object; its ``record_type``, if any, must be text."""
    record = json_object(line)
    if not isinstance(record.get("record_type", ""), str):
        raise FormatError("not a JSON record with a record_type.")
    return record


def known(record: dict[str, Any]) -> Meta | Stats | None:
    """Return the record if it has this format; raises ``FormatError`` for a later version."""
    kind = record.get("record_type", "")
    if kind not in (_META, _STATS):
        return None
    if record.get("version") != _VERSION or isinstance(record.get("version"), bool):
        version = repr(record.get("version"))[:40]
        raise FormatError(f"version {version} is not known; expected {_VERSION}.")
    return msgspec.convert(record, Meta) if kind == _META else msgspec.convert(record, Stats)


def _add(
    number: int, record: dict[str, Any], recording: _Recording, only: tuple[int, int] | None
) -> None:
    match known(record):
        case None:
            recording.skipped[record.get("record_type", "")[:40] or "without record_type"] += 1
        case Meta() as meta:
            if recording.meta is not None or recording.steps:
                raise FormatError(
                    "a second recording begins here; split the file before this line."
                )
            recording.meta = meta
            recording.ranks.add(meta.num_ranks)
        case Stats() as stats if only is None or only[0] <= stats.step < only[1]:
            recording.counts.append(fold(stats, recording.meta))
            recording.maps.append(_shared(stats.p2l_map, recording.last_map))
            recording.steps.append(stats.step)
            recording.lines.append(number)
            if stats.num_ranks is not None:
                recording.ranks.add(stats.num_ranks)


def fold(stats: Stats, meta: Meta | None) -> NDArray[np.int64]:
    """Return the record's load by logical expert, ``(L, E)``, folded by the map in it."""
    _refuse_no_counts(stats.expert_load)
    load, slot_expert = _table(stats.expert_load), _table(stats.p2l_map)
    L, S = load.shape
    if slot_expert.shape != (L, S):
        raise FormatError(
            f"expert_load has (layers, slots) {(L, S)}, p2l_map {slot_expert.shape}; expected the "
            "same."
        )
    E = _num_experts(slot_expert, meta)
    empty = slot_expert < 0
    if load[empty].any():
        layer, slot = np.argwhere(empty & (load > 0))[0]
        raise FormatError(f"layer {layer}, slot {slot} has load, but the map says it is empty.")
    counts = np.zeros((L, E), dtype=np.int64)
    layer_index = np.broadcast_to(np.arange(L)[:, None], (L, S))
    np.add.at(counts, (layer_index[~empty], slot_expert[~empty]), load[~empty])
    return counts


def _num_experts(slot_expert: NDArray[np.int64], meta: Meta | None) -> int:
    S = slot_expert.shape[1]
    most = S if meta is None else S - meta.num_redundant_experts
    largest = int(slot_expert.max())
    if largest >= most:
        raise FormatError(
            f"p2l_map holds expert {largest}; {S} slots hold at most {most} experts"
            + ("." if meta is None else f" with {meta.num_redundant_experts} redundant.")
        )
    return largest + 1 if meta is None else most


def _refuse_no_counts(load: list[list[int]]) -> None:
    for layer, row in enumerate(load):
        if row and not 0 <= min(row) <= max(row) < MAX_COUNT:
            slot = next(i for i, n in enumerate(row) if not 0 <= n < MAX_COUNT)
            value = str(row[slot]) if abs(row[slot]) < 1 << 64 else "an enormous number"
            raise FormatError(
                f"expert_load of layer {layer}, slot {slot} is {value}; expected a number from 0 "
                "to 2^48."
            )


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
    notes = recording.notes
    index = _of_one_model(recording, options.layer_ids)
    chosen, steps = [recording.counts[i] for i in index], [recording.steps[i] for i in index]
    shape = (len(chosen), *np.max([c.shape for c in chosen], axis=0))
    refuse_oversize(shape, 8, "A recording (steps, layers, experts)", path.stat().st_size)
    counts = np.zeros(shape, dtype=np.int64)
    for row, record in zip(counts, chosen, strict=True):
        row[:, : record.shape[1]] = record
    notes += [f"Skipped {n} records {kind}." for kind, n in sorted(recording.skipped.items())]
    if recording.ranks:
        ranks = " and ".join(map(str, sorted(recording.ranks)))
        notes.append(f"Recorded on {ranks} ranks.")
    if recording.meta is None:
        notes.append(
            f"The file does not state the number of experts; {shape[-1]} is the largest id in its "
            "maps plus one. An expert that no map holds is missing."
        )
    return Trace(
        counts=compact(counts),
        layer_ids=options.layer_ids or (),
        step_ids=np.array(steps, dtype=np.int64),
        labels=_map_label([recording.maps[i] for i in index]),
        provenance=Provenance("vllm", str(path), (*notes, *_step_notes(steps))),
    )


def _shared(p2l_map: list[list[int]], last: dict[int, list[list[int]]]) -> list[list[int]]:
    """Return the last map of the same number of layers if it is equal, so that it is kept once."""
    if last.get(len(p2l_map)) != p2l_map:
        last[len(p2l_map)] = p2l_map
    return last[len(p2l_map)]


def _map_label(maps: Sequence[list[list[int]]]) -> dict[str, NDArray[np.str_]]:
    """Label the steps with the number of changes of the map so far; nothing if there was none."""
    changed = [False, *(a is not b for a, b in pairwise(maps))]
    return {MAP_LABEL: np.cumsum(changed).astype(np.str_)} if any(changed) else {}


def _of_one_model(recording: _Recording, layer_ids: tuple[int, ...] | None) -> list[int]:
    """Choose the records of one model, if a target model and its draft model wrote some.

    The two differ in their number of layers. The user's layers decide, or else the number that the
    first record of the file states.

    Raises
    ------
    EquipoiseError
        Several models wrote and nothing decides, or none has the number that the file states.
    """
    sizes = Counter(len(record) for record in recording.counts)
    stated = recording.meta.num_layers if recording.meta else None
    if layer_ids is not None and len(sizes) > 1:
        chosen = len(layer_ids)
    else:
        chosen = next(iter(sizes)) if stated is None else stated
    found = ", ".join(f"{n} of {size} layers" for size, n in sorted(sizes.items(), reverse=True))
    if chosen not in sizes:
        first = recording.lines[0]
        raise EquipoiseError(
            f"line {first}: {len(recording.counts[0])} layers in a recording of {chosen}."
        )
    if len(sizes) > 1 and stated is None and layer_ids is None:
        raise EquipoiseError(
            f"The file mixes records of several models, {found}: a target and its draft model "
            f"wrote it. Name all layers of one with {argument('layer_ids')}: "
            f"0-{max(sizes) - 1} for the larger one."
        )
    if len(sizes) > 1:
        recording.notes.append(
            Message(
                f"The file mixes records of several models, {found}; those of {chosen} layers were "
                f"read. To read another, name all its layers ({argument('layer_ids')})."
            )
        )
    return [i for i, record in enumerate(recording.counts) if len(record) == chosen]


def _step_notes(steps: list[int]) -> list[str]:
    """Return notes on the possible meanings of repeated step numbers."""
    if any(a == b for a, b in pairwise(steps)):
        return [
            "Consecutive records carry the same step number: several processes wrote the file at "
            "the same time, data-parallel ranks or a target and its draft model. Each record was "
            "kept as a step of its own; if they are of two models, split the file."
        ]
    if any(b < a for a, b in pairwise(steps)):
        return [
            "Step numbers repeat or go back: several runs, or data-parallel ranks, are in the file "
            "one after the other. They were kept in its order, each record a step of its own."
        ]
    return []
