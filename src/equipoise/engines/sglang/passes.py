"""SGLang's ``per_pass`` and ``per_token`` dumps: records of single forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import (
    MAX_EXPERTS,
    compact,
    compact_dtype,
    naming,
    refuse_oversize,
)
from equipoise.engines.formats import Progress, TraceOptions
from equipoise.engines.sglang.recorder import load, moe_layers
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.invariants import NO_CHOICE, blank_rows, same_tokens, same_tokens_note
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.trace import MAP_LABEL, MAX_COUNT, Provenance, TokenIds, Trace

_PHASES = {1: "prefill", 2: "decode", 3: "mixed", 4: "idle"}
_IDLE = 4
_FOLD_NOTE = (
    "Slots were folded to experts with the last map of each dump; steps recorded before a "
    "rebalance are counted for the wrong experts."
)


_KNOWN_KEYS = {"records", "last_physical_to_logical_map"}
_COUNTS, _CHOICES, _PART = "global_physical_count", "topk_ids_of_layer", "gatherer_key"


@dataclass(frozen=True, eq=False)
class _Passes:
    """The records of one file, ``n`` of them, folded to logical experts."""

    file: Path
    map: bytes  # what its slots were folded with
    passes: NDArray[np.int64]  # (n,)
    ranks: NDArray[np.int64]  # (n,)
    parts: list[str]  # (n,): a pass that overlaps two batches is recorded in two
    counts: NDArray[np.integer]  # (n, L, E)
    slot_load: NDArray[np.int64]  # (n, S), over all layers
    modes: list[int] | None  # (n,)
    tokens: list[NDArray[np.integer]] | None  # n of (tokens, L, K)
    notes: tuple[str, ...]


def read_passes(
    path: Path, files: Sequence[Path], options: TraceOptions, progress: Progress
) -> Trace:
    """Read records with one step for each forward pass, summed over the ranks' files.

    Raises
    ------
    EquipoiseError
        Records that are damaged, repeated or of different deployments; no load.
    """
    parts: list[_Passes] = []
    for done, file in enumerate(files):
        progress(done, len(files))
        with naming(file):
            parts.append(_load_passes(file, options))
    progress(len(files), len(files))
    parts = [part for part in parts if len(part.passes)]
    if not parts and options.iterations is not None:
        raise FormatError(f"{path} holds no record of the passes asked for.")
    if not parts:
        raise FormatError(f"{path} holds no record of any pass; did it run while recording?")
    if len({part.tokens is None for part in parts}) > 1:
        raise FormatError(f"{path} mixes per_pass and per_token dumps; read one mode.")
    _check_shapes(parts)
    _check_unique(parts)
    return _assemble(path, parts, options)


def _load_passes(file: Path, options: TraceOptions) -> _Passes:
    root = load(file)
    records = root["records"]
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise FormatError(f"{file}: records is not a list of records.")
    numbers = [_whole(file, record, "forward_pass_id") for record in records]
    first, stop = options.iterations or (0, 1 << 62)
    chosen = [r for r, number in zip(records, numbers, strict=True) if first <= number < stop]
    slot_expert, notes = _slot_experts(file, root, chosen, options)
    L, S = slot_expert.shape
    choices = _slot_choices(file, chosen, L)
    shape = (len(chosen), L, S)
    refuse_oversize(shape, 8, "A recording (passes, layers, slots)", file.stat().st_size)
    physical = np.zeros(shape, dtype=np.int64)
    counted = 0
    for position, record in enumerate(chosen):
        physical[position] = _physical_count(file, record, (L, S))
        if position in choices and not physical[position].any():
            physical[position] = _count_slots(choices[position], S)
            counted += int(physical[position].any())
    if counted:
        notes.append(
            f"{counted} of {len(chosen)} records of {file.name} have no counts of slots; they were "
            "counted from the tokens' choices."
        )
    detailed = bool(chosen) and len(choices) == len(chosen)
    return _Passes(
        file=file,
        map=slot_expert.tobytes(),
        passes=np.array([n for n in numbers if first <= n < stop], dtype=np.int64),
        ranks=np.array([_whole(file, r, "rank", below=S) for r in chosen], dtype=np.int64),
        parts=[str(r.get(_PART))[:40] for r in chosen],
        counts=compact(_fold(physical, slot_expert)),
        slot_load=physical.sum(axis=1),
        modes=[_whole(file, r, "forward_mode") for r in chosen] if detailed else None,
        tokens=_logical_ids(file, choices, slot_expert, notes) if detailed else None,
        notes=(*notes, *_unknown_keys(file, root)),
    )


def _unknown_keys(file: Path, root: Mapping[str, Any]) -> list[str]:
    unknown = sorted(str(key)[:40] for key in root.keys() - _KNOWN_KEYS)
    return [f"{file.name}: keys not used: {', '.join(unknown[:8])}."] if unknown else []


def _slot_experts(
    file: Path, root: Mapping[str, Any], records: Sequence[Mapping[str, Any]], options: TraceOptions
) -> tuple[NDArray[np.integer], list[str]]:
    """Return each slot's expert at the time of the dump, ``(L, S)``, and notes on assumptions."""
    slot_expert = root.get("last_physical_to_logical_map")
    if slot_expert is None:
        return _slots_without_map(file, records, options.placement)
    if options.placement is not None:
        raise EquipoiseError(
            f"The dump holds the map of its run; leave {argument('placement')} out."
        )
    if not isinstance(slot_expert, np.ndarray) or slot_expert.dtype.kind not in "iu":
        raise FormatError(f"{file}: last_physical_to_logical_map is not a table of whole numbers.")
    if slot_expert.ndim != 2 or not slot_expert.size:
        raise FormatError(
            f"{file}: the map has shape {slot_expert.shape}; expected (layers, slots)."
        )
    outside = (slot_expert < 0) | (slot_expert >= slot_expert.shape[1])
    if outside.any():
        layer, slot = np.argwhere(outside)[0]
        raise FormatError(
            f"{file}: layer {layer}, slot {slot} of the map holds expert "
            f"{slot_expert[layer, slot]}; {slot_expert.shape[1]} slots have ids below that."
        )
    return slot_expert, [_FOLD_NOTE]


def _slots_without_map(
    file: Path, records: Sequence[Mapping[str, Any]], placement: Placement | None
) -> tuple[NDArray[np.integer], list[str]]:
    """Return the user's map, with a row for each decoder layer; without one a slot is an expert."""
    L, S = _sizes(file, records)
    if placement is None:
        return np.tile(np.arange(S), (L, 1)), [
            Message(
                f"{file.name} holds no map, so its {S} slots were taken as experts. If the run had "
                f"redundant slots, give its map ({argument('placement')})."
            )
        ]
    if placement.num_slots < S or placement.layer_ids[-1] >= L != placement.num_layers:
        raise EquipoiseError(
            f"The dump has {L} layers and {S} slots; the placement given has the layers "
            f"{format_ids(placement.layer_ids)} and {placement.num_slots} slots. "
            "Give the map of the recorded run."
        )
    rows = np.arange(L) if placement.num_layers == L else np.array(placement.layer_ids)
    others = ~np.isin(np.arange(L), rows)
    if any(_loaded(record, others) for record in records):
        raise EquipoiseError(
            f"The placement given has the layers {format_ids(placement.layer_ids)}, but others "
            "have load too. Give the map of the recorded run."
        )
    slots = np.tile(placement.slots[0], (L, 1))  # for the others, which have nothing to fold
    slots[rows] = placement.slots
    return slots, [f"{file.name} holds no map; its slots were folded with the one given."]


def _loaded(record: Mapping[str, Any], others: NDArray[np.bool_]) -> bool:
    """Return for each of a record's rows whether it counts or names any slot, ``(L,)``."""
    for key, least in ((_COUNTS, 1), (_CHOICES, 0)):
        table = record.get(key)
        if not isinstance(table, np.ndarray) or table.shape[:1] != others.shape:
            continue
        if (table[others] >= least).any():
            return True
    return False


def _sizes(file: Path, records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return ``(L, S)`` as the records show it."""
    counts = [c for r in records if isinstance(c := r.get(_COUNTS), np.ndarray) and c.ndim == 2]
    choices = [c for r in records if isinstance(c := r.get(_CHOICES), np.ndarray) and c.size]
    if counts:
        L, S = counts[0].shape
    elif choices:
        L, S = len(choices[0]), max(int(c.max()) for c in choices) + 1
    else:
        raise FormatError(f"{file} holds no map, and no record of it holds counts or choices.")
    if not (L and 0 < S <= MAX_EXPERTS):
        raise FormatError(f"{file} has {L} layers of {S} slots; expected some of each.")
    return int(L), int(S)


def _whole(file: Path, record: Mapping[str, Any], key: str, below: int = 1 << 62) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value < below:
        raise FormatError(
            f"{file}: a record has {key} {repr(value)[:40]}; expected a number from 0."
        )
    return value


def _physical_count(file: Path, record: Mapping[str, Any], shape: tuple[int, int]) -> Any:
    """Return a record's counts of slots, ``(L, S)``; 0 if it has choices instead."""
    counts = record.get(_COUNTS)
    if counts is None and record.get(_CHOICES) is not None:
        return 0
    if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iu" or counts.shape != shape:
        found = counts.shape if isinstance(counts, np.ndarray) else type(counts).__name__
        raise FormatError(
            f"{file}: pass {record['forward_pass_id']} has {_COUNTS} {found}; expected "
            f"whole numbers (layers, slots) {shape}, as in the map."
        )
    if not 0 <= counts.min() <= counts.max() < MAX_COUNT:
        raise FormatError(
            f"{file}: pass {record['forward_pass_id']} has counts from {counts.min()} to "
            f"{counts.max()}; expected numbers from 0 to 2^48."
        )
    return counts


def _count_slots(choices: NDArray[np.integer], num_slots: int) -> NDArray[np.int64]:
    """Count how often each slot was chosen, ``(L, S)``."""
    L = len(choices)
    cell = choices.astype(np.int64) + np.arange(L)[:, None, None] * num_slots
    cell = cell[(choices >= 0) & (choices < num_slots)]
    return np.bincount(cell, minlength=L * num_slots).reshape(L, num_slots)


def _fold(physical: NDArray[np.int64], slot_expert: NDArray[np.integer]) -> NDArray[np.int64]:
    """Turn counts per slot ``(n, L, S)`` into counts per expert ``(n, L, E)``."""
    n, L, S = physical.shape
    logical = np.zeros((n, L, int(slot_expert.max()) + 1), dtype=np.int64)
    layer = np.arange(L)
    for slot in range(S):  # one expert a layer, so no two additions meet
        logical[:, layer, slot_expert[:, slot]] += physical[:, :, slot]
    return logical


def _logical_ids(
    file: Path,
    choices: Mapping[int, NDArray[np.integer]],
    slot_expert: NDArray[np.integer],
    notes: list[str],
) -> list[NDArray[np.integer]]:
    """Return the experts that each record's tokens chose, ``(tokens, L, K)``; -1 for none."""
    L, S = slot_expert.shape
    layer = np.arange(L)[:, None, None]
    ids: list[NDArray[np.integer]] = []
    beyond = 0
    for slots in choices.values():
        chosen = (slots >= 0) & (slots < S)
        beyond += int((slots >= S).sum())
        experts = np.where(chosen, slot_expert[layer, np.where(chosen, slots, 0)], -1)
        ids.append(experts.astype(np.int32).transpose(1, 0, 2))
    if beyond:
        notes.append(
            f"{beyond} choices of {file.name} name slots from {S} on, which the map does not have "
            "(for example a fused shared expert); they are not counted."
        )
    return ids


def _slot_choices(
    file: Path, records: Sequence[Mapping[str, Any]], num_layers: int
) -> dict[int, NDArray[np.integer]]:
    """Return the slots that tokens chose, ``(L, tokens, K)``, for each record that states them."""
    tables: dict[int, NDArray[np.integer]] = {}
    for position, record in enumerate(records):
        slots = record.get(_CHOICES)
        if slots is None:
            continue
        if not isinstance(slots, np.ndarray) or slots.dtype.kind not in "iu" or slots.ndim != 3:
            raise FormatError(f"{file}: {_CHOICES} is not a table (layers, tokens, choices).")
        if len(slots) != num_layers:
            raise FormatError(f"{file}: {_CHOICES} has {len(slots)} layers, the map {num_layers}.")
        tables[position] = slots
    widest = max((slots.shape[2] for slots in tables.values()), default=0)
    shape = (sum(slots.shape[1] for slots in tables.values()), num_layers, widest)
    refuse_oversize(shape, 4, "A recording (tokens, layers, choices)", file.stat().st_size)
    # Only now: what is cleaned is a copy, and many records may refer to one table.
    return {i: _without_blank(file, records[i], slots) for i, slots in tables.items()}


def _without_blank(
    file: Path, record: Mapping[str, Any], slots: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return the choices ``(L, tokens, K)`` with -1 in rows that hold no choice."""
    try:
        blank = blank_rows(slots.transpose(1, 0, 2)).T
    except EquipoiseError as error:
        raise FormatError(f"{file}, pass {record['forward_pass_id']}: {error}") from error
    return np.where(blank[:, :, None], NO_CHOICE, slots)


def _check_shapes(parts: Sequence[_Passes]) -> None:
    first = parts[0]
    for part in parts[1:]:
        here, there = (
            (p.counts.shape[1], p.slot_load.shape[1], p.counts.shape[2]) for p in (part, first)
        )
        if here != there:
            raise FormatError(
                f"{part.file} has (layers, slots, experts) {here}, {first.file.name} has {there}; "
                "these are recordings of different deployments. Read one at a time."
            )


def _check_unique(parts: Sequence[_Passes]) -> None:
    """Check that every rank recorded a pass, or each part of one, once and in one file."""
    seen: dict[tuple[int, int, str], _Passes] = {}
    for part in parts:
        for key in zip(part.passes.tolist(), part.ranks.tolist(), part.parts, strict=True):
            if key in seen:
                raise _recorded_twice(key, seen[key], part)
            seen[key] = part


def _recorded_twice(key: tuple[int, int, str], first: _Passes, second: _Passes) -> FormatError:
    what = f"Pass {key[0]} of rank {key[1]}"
    if first is second:
        return FormatError(f"{what} is twice in {first.file}; it is damaged, record it again.")
    return FormatError(
        f"{what} is in {_named(first)} and in {_named(second)}: two servers, or two starts of one, "
        "wrote into one folder. Read one file, or move the files of each server to a folder of "
        "its own."
    )


def _named(part: _Passes) -> str:
    """Return the name of a file, with the phases that it recorded if it states them."""
    if part.modes is None:
        return part.file.name
    return f"{part.file.name} ({' and '.join(sorted({_phase({m}) for m in part.modes}))})"


def _assemble(path: Path, parts: Sequence[_Passes], options: TraceOptions) -> Trace:
    passes = np.concatenate([p.passes for p in parts])
    ranks = np.concatenate([p.ranks for p in parts])
    counts = np.concatenate([p.counts for p in parts])
    steps, step = np.unique(passes, return_inverse=True)
    cube, present = _by_pass_and_rank(
        counts, step, ranks, sum(p.file.stat().st_size for p in parts)
    )
    if not cube.any():
        raise EquipoiseError("No pass routed a token; was the recorder running under load?")
    layers = moe_layers(np.logical_or.reduce(cube, axis=(0, 1, 3)), options.layer_ids)
    sent, notes = _locality(np.concatenate([p.slot_load for p in parts]), ranks, cube)
    order = np.lexsort((ranks, passes))
    groups = same_tokens(cube) if sent else []
    if 0 < len(groups) < cube.shape[1]:
        firsts = [group[0] for group in groups]
        cube, order, sent = cube[:, firsts], order[np.isin(ranks[order], firsts)], False
        notes = [same_tokens_note(groups)]
    if present < len(passes):
        names = ", ".join(sorted({name for part in parts for name in part.parts}))
        notes.append(
            f"Passes were recorded in parts ({names}), as with two-batch overlap; the parts of a "
            "pass were added."
        )
    missing = len(steps) * (int(ranks.max()) + 1) - present
    if missing:
        notes.append(
            f"{missing} of {missing + present} records (one a pass and rank) are missing; they "
            "count as no load."
        )
    found = dict.fromkeys(note for part in parts for note in part.notes)
    fields = _token_fields(parts, order, step, layers.rows)
    trace = Trace(
        counts=cube[:, :, layers.rows].sum(axis=1, dtype=np.int64),
        layer_ids=layers.ids,
        step_ids=steps,
        source_counts=cube[:, :, layers.rows] if sent else None,
        provenance=Provenance("sglang", str(path), (*found, *notes, *layers.notes)),
        **fields | {"labels": fields.get("labels", {}) | _map_label(parts, step)},
    )
    return _without_idle(trace)


def _map_label(parts: Sequence[_Passes], step: NDArray[np.intp]) -> dict[str, NDArray[np.str_]]:
    """Label the steps with the number of changes of the map so far; nothing if there was none.

    A dump knows its last map only, so a change stands where the next dump begins.
    """
    numbers = {content: n for n, content in enumerate(dict.fromkeys(part.map for part in parts))}
    of_step = np.empty(int(step.max()) + 1, dtype=np.int64)
    of_step[step] = [numbers[part.map] for part in parts for _ in part.passes]
    changed = np.append(False, np.diff(of_step) != 0)
    return {MAP_LABEL: np.cumsum(changed).astype(np.str_)} if changed.any() else {}


def _by_pass_and_rank(
    counts: NDArray[np.integer],
    step: NDArray[np.intp],
    ranks: NDArray[np.int64],
    file_bytes: int,
) -> tuple[NDArray[np.integer], int]:
    """Arrange records ``(n, L, E)`` as ``(T, R, L, E)``, parts added; count the filled (T, R)."""
    shape = (int(step.max()) + 1, int(ranks.max()) + 1, *counts.shape[1:])
    cells, repeats = np.unique(step * shape[1] + ranks, return_counts=True)
    dtype = compact_dtype(int(counts.max()) * int(repeats.max()))
    what = "A recording (passes, ranks, layers, experts)"
    refuse_oversize(shape, dtype.itemsize, what, file_bytes)
    cube = np.zeros(shape, dtype)
    for t, rank, record in zip(step, ranks, counts, strict=True):
        cube[t, rank] += record.astype(dtype, copy=False)
    return cube, len(cells)


def _locality(
    slot_load: NDArray[np.int64], ranks: NDArray[np.int64], cube: NDArray[np.integer]
) -> tuple[bool, list[str]]:
    """Return whether each rank counted its own tokens' choices (sent), and the reason as a note.

    With some all-to-all backends a rank counts instead the choices that arrived on its slots. Its
    counts then do not show where tokens came from.
    """
    R, S = cube.shape[1], slot_load.shape[1]
    present = np.unique(ranks)
    if len(present) == 1:
        return False, [
            f"Only rank {present[0]} is in the recording; the counts are its part of each pass."
        ]
    loaded = np.zeros((R, S), dtype=bool)
    np.logical_or.at(loaded, ranks, slot_load > 0)
    own = np.arange(S) // max(S // R, 1) == np.arange(R)[:, None]
    if S % R == 0 and not (loaded & ~own).any():
        return False, [
            "Each rank counted on its own slots only, that is tokens received: the recording does "
            "not say which rank they came from."
        ]
    if not (loaded.sum(axis=0) > 1).any():
        return False, [
            "No slot was counted by two ranks, so whether ranks counted tokens sent or received "
            "cannot be told; source ranks were left out."
        ]
    return True, ["Ranks counted slots of other ranks, that is tokens sent: source ranks are kept."]


def _token_fields(
    parts: Sequence[_Passes],
    order: NDArray[np.int64],
    step: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> dict[str, Any]:
    """Return ``tokens``, ``top_k`` and the label ``phase`` of a ``per_token`` recording."""
    modes: list[int] = []
    tokens: list[NDArray[np.integer]] = []
    for part in parts:
        if part.tokens is None or part.modes is None:
            return {}
        modes += part.modes
        tokens += part.tokens
    width = max(ids.shape[2] for ids in tokens)
    padded = [
        np.pad(
            tokens[i][:, rows],
            ((0, 0), (0, 0), (0, width - tokens[i].shape[2])),
            constant_values=-1,
        )
        for i in order
    ]
    ids = np.concatenate(padded)
    top_k = 1 + int(np.flatnonzero((ids >= 0).any(axis=(0, 1))).max(initial=0))
    sizes = np.bincount(step[order], weights=[len(p) for p in padded]).astype(np.int64)
    mode_sets: list[set[int]] = [set() for _ in sizes]
    for position, mode in zip(step.tolist(), modes, strict=True):
        mode_sets[position].add(mode)
    return {
        "tokens": TokenIds(ids[:, :, :top_k], np.concatenate([[0], np.cumsum(sizes)])),
        "top_k": top_k,
        "labels": {"phase": np.array([_phase(found) for found in mode_sets])},
    }


def _phase(modes: set[int]) -> str:
    """Return the phase of a pass: idle ranks do not count, and ranks that differ make it mixed."""
    busy = modes - {_IDLE} or {_IDLE}
    if len(busy) > 1:
        return "mixed"
    (mode,) = busy
    return _PHASES.get(mode, f"forward_mode_{mode}")


def _without_idle(trace: Trace) -> Trace:
    busy: NDArray[np.bool_] = np.logical_or.reduce(trace.counts, axis=(1, 2))
    if busy.all():
        return trace
    note = f"{int((~busy).sum())} of {len(busy)} passes routed nothing; left out."
    return trace.select(steps=busy).with_notes(note)
