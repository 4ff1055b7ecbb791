"""SGLang's ``per_pass`` and ``per_token`` dumps: records of single forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines.arrays import compact, compact_dtype, naming, refuse_oversize
from equipoise.engines.formats import Progress, TraceOptions
from equipoise.engines.sglang.recorder import load, moe_layers
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import MAX_COUNT, Provenance, TokenIds, Trace

_PHASES = {1: "prefill", 2: "decode", 3: "mixed", 4: "idle"}
_IDLE = 4
_FOLD_NOTE = (
    "Slots were folded to experts with the last map of each dump; steps recorded before a "
    "rebalance are credited to wrong experts."
)


@dataclass(frozen=True, eq=False)
class _Passes:
    """The records of one file, ``n`` of them, folded to logical experts."""

    file: Path
    passes: NDArray[np.int64]  # (n,)
    ranks: NDArray[np.int64]  # (n,)
    counts: NDArray[np.integer]  # (n, L, E)
    slot_load: NDArray[np.int64]  # (n, S), over all layers
    modes: list[int] | None  # (n,)
    tokens: list[NDArray[np.integer]] | None  # n of (tokens, L, K)


def read_passes(
    path: Path, files: Sequence[Path], options: TraceOptions, progress: Progress
) -> Trace:
    """One step a forward pass, summed over the ranks' files.

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
    if not parts:
        raise FormatError(f"{path} holds no record of the passes asked for.")
    if len({part.tokens is None for part in parts}) > 1:
        raise FormatError(f"{path} mixes per_pass and per_token dumps; read one mode.")
    _check_shapes(parts)
    _check_unique(parts)
    return _assemble(path, parts, options)


def _load_passes(file: Path, options: TraceOptions) -> _Passes:
    root = load(file)
    records, slot_expert = root["records"], _slot_experts(file, root)
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise FormatError(f"{file}: records is not a list of records.")
    L, S = slot_expert.shape
    numbers = [_whole(file, record, "forward_pass_id") for record in records]
    first, stop = options.iterations or (0, 1 << 62)
    chosen = [r for r, number in zip(records, numbers, strict=True) if first <= number < stop]
    refuse_oversize((len(chosen), L, S), 8, "A recording (passes, layers, slots)")
    physical = np.zeros((len(chosen), L, S), dtype=np.int64)
    for position, record in enumerate(chosen):
        physical[position] = _physical_count(file, record, (L, S))
    detailed = bool(chosen) and all("topk_ids_of_layer" in record for record in chosen)
    return _Passes(
        file=file,
        passes=np.array([n for n in numbers if first <= n < stop], dtype=np.int64),
        ranks=np.array([_whole(file, r, "rank", below=S) for r in chosen], dtype=np.int64),
        counts=compact(_fold(physical, slot_expert)),
        slot_load=physical.sum(axis=1),
        modes=[_whole(file, r, "forward_mode") for r in chosen] if detailed else None,
        tokens=_logical_ids(file, chosen, slot_expert) if detailed else None,
    )


def _slot_experts(file: Path, root: Mapping[str, Any]) -> NDArray[np.integer]:
    """The expert in each slot when the dump was taken, ``(L, S)``."""
    slot_expert = root.get("last_physical_to_logical_map")
    if not isinstance(slot_expert, np.ndarray) or slot_expert.dtype.kind not in "iu":
        raise FormatError(
            f"{file} has no last_physical_to_logical_map, without which slots mean nothing."
        )
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
    return slot_expert


def _whole(file: Path, record: Mapping[str, Any], key: str, below: int = 1 << 62) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value < below:
        raise FormatError(f"{file}: a record has {key} {value!r}; expected a number from 0.")
    return value


def _physical_count(file: Path, record: Mapping[str, Any], shape: tuple[int, int]) -> Any:
    counts = record.get("global_physical_count")
    if not isinstance(counts, np.ndarray) or counts.dtype.kind not in "iu" or counts.shape != shape:
        found = counts.shape if isinstance(counts, np.ndarray) else type(counts).__name__
        raise FormatError(
            f"{file}: pass {record['forward_pass_id']} has global_physical_count {found}; expected "
            f"whole numbers (layers, slots) {shape}, as the map."
        )
    if not 0 <= counts.min() <= counts.max() < MAX_COUNT:
        raise FormatError(
            f"{file}: pass {record['forward_pass_id']} has counts from {counts.min()} to "
            f"{counts.max()}; expected numbers from 0 to 2^48."
        )
    return counts


def _fold(physical: NDArray[np.int64], slot_expert: NDArray[np.integer]) -> NDArray[np.int64]:
    """Counts per slot ``(n, L, S)`` to counts per expert ``(n, L, E)``."""
    n, L, S = physical.shape
    logical = np.zeros((n, L, int(slot_expert.max()) + 1), dtype=np.int64)
    layer = np.arange(L)
    for slot in range(S):  # one expert a layer, so no two additions meet
        logical[:, layer, slot_expert[:, slot]] += physical[:, :, slot]
    return logical


def _logical_ids(
    file: Path, records: Sequence[Mapping[str, Any]], slot_expert: NDArray[np.integer]
) -> list[NDArray[np.integer]]:
    """The experts the tokens of each record chose, ``(tokens, L, K)``; -1 where there is none."""
    L, S = slot_expert.shape
    layer = np.arange(L)[:, None, None]
    tables = [_slot_choices(file, record, L) for record in records]
    shape = (sum(t.shape[1] for t in tables), L, max(t.shape[2] for t in tables))
    refuse_oversize(shape, 4, "A recording (tokens, layers, choices)")
    ids: list[NDArray[np.integer]] = []
    for slots in tables:
        chosen = (slots >= 0) & (slots < S)
        experts = np.where(chosen, slot_expert[layer, np.where(chosen, slots, 0)], -1)
        ids.append(experts.astype(np.int32).transpose(1, 0, 2))
    return ids


def _slot_choices(file: Path, record: Mapping[str, Any], num_layers: int) -> NDArray[np.integer]:
    slots = record["topk_ids_of_layer"]
    if not isinstance(slots, np.ndarray) or slots.dtype.kind not in "iu" or slots.ndim != 3:
        raise FormatError(f"{file}: topk_ids_of_layer is not a table (layers, tokens, choices).")
    if len(slots) != num_layers:
        raise FormatError(
            f"{file}: topk_ids_of_layer has {len(slots)} layers, the map {num_layers}."
        )
    return slots


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
    """Every rank records a pass once, in one file."""
    seen: dict[tuple[int, int], Path] = {}
    for part in parts:
        for key in zip(part.passes.tolist(), part.ranks.tolist(), strict=True):
            if key in seen:
                raise FormatError(
                    f"Pass {key[0]} of rank {key[1]} is in {seen[key].name} and in "
                    f"{part.file.name}: two dumps are mixed. Read the files of one dump only."
                )
            seen[key] = part.file


def _assemble(path: Path, parts: Sequence[_Passes], options: TraceOptions) -> Trace:
    passes = np.concatenate([p.passes for p in parts])
    ranks = np.concatenate([p.ranks for p in parts])
    counts = np.concatenate([p.counts for p in parts])
    _, L, E = counts.shape
    steps, step = np.unique(passes, return_inverse=True)
    shape = (len(steps), int(ranks.max()) + 1, L, E)
    dtype = compact_dtype(int(counts.max()))
    refuse_oversize(shape, dtype.itemsize, "A recording (passes, ranks, layers, experts)")
    cube = np.zeros(shape, dtype)
    cube[step, ranks] = counts
    total = cube.sum(axis=1, dtype=np.int64)
    if not total.any():
        raise EquipoiseError("No pass routed a token; was the recorder running under load?")
    layers = moe_layers(np.logical_or.reduce(total, axis=(0, 2)), options.layer_ids)
    sent, notes = _locality(np.concatenate([p.slot_load for p in parts]), ranks, cube)
    missing = cube.shape[0] * cube.shape[1] - len(passes)
    if missing:
        notes.append(
            f"{missing} of {missing + len(passes)} records (one a pass and rank) are missing; they "
            "count as no load."
        )
    trace = Trace(
        counts=total[:, layers.rows],
        layer_ids=layers.ids,
        step_ids=steps,
        source_counts=cube[:, :, layers.rows] if sent else None,
        provenance=Provenance("sglang", str(path), (_FOLD_NOTE, *notes, *layers.notes)),
        **_token_fields(parts, np.lexsort((ranks, passes)), step, layers.rows),
    )
    return _without_idle(trace)


def _locality(
    slot_load: NDArray[np.int64], ranks: NDArray[np.int64], cube: NDArray[np.integer]
) -> tuple[bool, list[str]]:
    """Whether each rank counted what its tokens chose (sent), and the reason as a note.

    With some all-to-all backends a rank counts instead what arrived on its own slots: then a rank's
    counts say nothing of where tokens came from.
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
    """``tokens``, ``top_k`` and the label ``phase`` of a ``per_token`` recording."""
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
    """One word for a pass: ranks without work do not count, ranks that disagree make it mixed."""
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
