"""Loads in one torch archive for each rank: ``NAME-TP<rank>.expert-load.pt``.

Each holds ``ep_rank``, ``ep_size`` and counts of its rank: ``logical_count`` ``(L, E)``,
``physical_count`` ``(L, S)`` or both, and perhaps the ``physical_to_logical_map`` of the slots.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.arrays import agreed_layer_ids, fold_slots, naming, refuse_oversize
from equipoise.engines._shared.rank_parts import missing_ranks
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.trace import MAX_COUNT, Provenance, Trace

_NAME = re.compile(r"(?P<recording>.*)-TP\d{1,5}\.expert-load\.pt")
_LOGICAL, _PHYSICAL, _MAP = "logical_count", "physical_count", "physical_to_logical_map"
_KNOWN_KEYS = {"ep_rank", "ep_size", _LOGICAL, _PHYSICAL, _MAP}


@dataclass(frozen=True, eq=False)
class _Part:
    """The counts of one rank, ``(L, E)``."""

    file: Path
    rank: int
    num_ranks: int
    counts: NDArray[np.int64]
    notes: tuple[str, ...]


def is_part(path: Path) -> bool:
    """Whether a file is the load of one rank; reads no numbers."""
    try:
        root = torch_archive.outline(path)
    except FormatError:
        return False
    return (
        isinstance(root, dict) and "ep_rank" in root and bool({_LOGICAL, _PHYSICAL} & root.keys())
    )


def _matches(path: Path) -> bool:
    try:
        return is_part(path) if path.is_file() else any(is_part(file) for file in _named(path))
    except OSError:
        return False


def _read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    with naming(path):
        files = _files(path)
        parts = []
        for done, file in enumerate(files):
            progress(done, len(files))
            with naming(file):
                parts.append(_load(file, options))
        progress(len(files), len(files))
        return _joined(path, parts, options)


def _named(path: Path) -> list[Path]:
    return [file for file in sorted(path.iterdir()) if _NAME.fullmatch(file.name)]


def _files(path: Path) -> list[Path]:
    """Return the file itself, or the files of the only recording in a folder."""
    if path.is_file():
        return [path]
    recordings: dict[str, list[Path]] = defaultdict(list)
    for file in _named(path):
        recordings[file.name.rpartition("-TP")[0]].append(file)
    if len(recordings) == 1:
        return next(iter(recordings.values()))
    found = ", ".join(f"{name} ({len(files)} files)" for name, files in recordings.items())
    raise FormatError(
        f"{path} holds {len(recordings)} recordings: {found[:200] or 'none'}. Move the files of "
        "each to a folder of its own, and give that folder."
    )


def _load(file: Path, options: TraceOptions) -> _Part:
    root = torch_archive.load(file)
    if not isinstance(root, dict):
        raise FormatError(f"{file} holds a {type(root).__name__}; expected counts of one rank.")
    rank, num_ranks = root.get("ep_rank"), root.get("ep_size", 1 << 16)
    if type(rank) is not int or type(num_ranks) is not int or not 0 <= rank < num_ranks <= 1 << 16:
        raise FormatError(f"{file} is of ep_rank {str(rank)[:20]} of {str(num_ranks)[:20]}.")
    counts, notes = _logical(file, root, options)
    unknown = sorted(str(key)[:40] for key in root.keys() - _KNOWN_KEYS)[:8]
    if unknown:
        notes.append(f"Keys not used: {', '.join(unknown)}.")
    return _Part(file, rank, num_ranks if "ep_size" in root else 0, counts, tuple(notes))


def _logical(
    file: Path, root: dict[Any, Any], options: TraceOptions
) -> tuple[NDArray[np.int64], list[str]]:
    """Return counts of experts, ``(L, E)``: as recorded, or folded from slots by the run's map."""
    if root.get(_LOGICAL) is not None:
        if options.placement is not None:
            raise EquipoiseError(
                f"The file counts experts, which needs no map; leave {argument('placement')} out."
            )
        return _table(file, root, _LOGICAL), []
    slots = _table(file, root, _PHYSICAL)
    if options.placement is not None:
        return fold_slots(slots, options.placement), ["Slots were folded with the map given."]
    if root.get(_MAP) is None:
        raise EquipoiseError(
            f"The file counts {slots.shape[1]} slots without their map; give the map of the run "
            f"({argument('placement')})."
        )
    slot_expert = _table(file, root, _MAP)
    if slot_expert.shape != slots.shape or slot_expert.max() >= slots.shape[1]:
        raise FormatError(f"{file}: {_MAP} {slot_expert.shape} does not fit {slots.shape} slots.")
    counts = np.zeros((len(slots), int(slot_expert.max()) + 1), dtype=np.int64)
    np.add.at(counts, (np.arange(len(slots))[:, None], slot_expert), slots)
    return counts, ["Slots were folded with the map in each file."]


def _table(file: Path, root: dict[Any, Any], key: str) -> NDArray[np.int64]:
    table = root.get(key)
    if not isinstance(table, np.ndarray) or table.ndim != 2 or not table.size:
        raise FormatError(f"{file}: {key} is not a table (layers, columns).")
    whole = table.dtype.kind in "iuf" and bool((np.rint(table) == table).all())
    if not whole or not 0 <= table.min() <= table.max() < MAX_COUNT:
        raise FormatError(f"{file}: {key} holds something other than whole numbers from 0 to 2^48.")
    return table.astype(np.int64)


def _joined(path: Path, parts: list[_Part], options: TraceOptions) -> Trace:
    first = parts[0]
    by_rank: dict[int, _Part] = {}
    for part in parts:
        if (part.counts.shape, part.num_ranks) != (first.counts.shape, first.num_ranks):
            raise FormatError(
                f"{part.file} has (layers, experts) {part.counts.shape} of {part.num_ranks} ranks, "
                f"{first.file.name} {first.counts.shape} of {first.num_ranks}; these are different "
                "recordings."
            )
        if part.rank in by_rank:
            other = by_rank[part.rank].file.name
            raise FormatError(f"{part.file} and {other} are both of rank {part.rank}; keep one.")
        by_rank[part.rank] = part
    R = first.num_ranks or max(by_rank) + 1
    size = sum(part.file.stat().st_size for part in parts)
    refuse_oversize((R, *first.counts.shape), 8, "Loads (ranks, layers, experts)", size)
    cube = np.zeros((1, R, *first.counts.shape), dtype=np.int64)
    for rank, part in by_rank.items():
        cube[0, rank] = part.counts
    notes = [*dict.fromkeys(note for part in parts for note in part.notes)]
    if path.is_file() and R > 1:
        notes.append(
            f"The file is the part of rank {first.rank} of {R}. To read all ranks, give the folder "
            "of their files."
        )
    else:
        notes += missing_ranks(list(by_rank), R)
    return Trace(
        counts=cube.sum(axis=1),
        layer_ids=agreed_layer_ids(None, options.layer_ids, cube.shape[2]),
        source_counts=cube if len(parts) > 1 else None,
        provenance=Provenance("rank-loads", str(path), tuple(notes)),
    )


FORMAT = TraceFormat(
    name="rank-loads",
    summary="torch archives of one rank's load each, NAME-TP<rank>.expert-load.pt: a folder of "
    "them, or one",
    matches=_matches,
    read=_read,
    options=frozenset({"layer_ids", "placement"}),
)
