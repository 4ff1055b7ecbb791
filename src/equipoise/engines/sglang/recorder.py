"""The files of SGLang's expert distribution recorder, and their rows that are MoE layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.findings import numbered
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.json_text import head_keys, read_json
from equipoise.layer_ids import format_ids

_FILE_NAME = re.compile(r"expert_distribution_recorder_(\d+(?:\.\d+)?)(?:_(\d+))?\.pt")


def dump_files(path: Path) -> list[Path]:
    """Return the file itself, or the recorder's files in a directory by time and rank."""
    if not path.is_dir():
        return [path]
    named = [(match, f) for f in path.iterdir() if (match := _FILE_NAME.fullmatch(f.name))]
    if not named:
        raise FormatError(f"{path} holds no expert_distribution_recorder_*.pt file.")
    return [f for _, f in sorted(named, key=lambda n: (float(n[0][1]), int(n[0][2] or 0)))]


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] == b"{"


def looks_like_dump(path: Path) -> bool:
    """Return whether a file is a recording; of JSON, only the head is read."""
    try:
        _kind_of(path, head_keys(path) if _is_json(path) else _keys(path))
    except (FormatError, OSError):
        return False
    return True


def kind(path: Path) -> str:
    """Return ``stat``, or ``passes`` for records of single passes; raises ``FormatError``."""
    return _kind_of(path, _keys(path))


def load(path: Path) -> dict[str, Any]:
    """Read the root of a dump."""
    root: dict[str, Any]
    root = read_json(path) if _is_json(path) else torch_archive.load(path)
    return root


def _kind_of(path: Path, keys: Sequence[str]) -> str:
    """Return the kind of a dump with these keys at its root."""
    if "physical_to_logical_map" in keys:
        raise FormatError(f"{path} is a map (physical_to_logical_map), not a recording.")
    if "logical_count" in keys:
        return "stat"
    if "records" in keys and not _is_json(path):  # the engine writes tensors
        return "passes"
    raise FormatError(
        f"{path} is not an SGLang dump: its root has neither logical_count (stat) nor, in a torch "
        "archive, records (per_pass, per_token)."
    )


def _keys(path: Path) -> list[str]:
    """Return the keys of the root that have a value."""
    root = read_json(path) if _is_json(path) else torch_archive.outline(path)
    return [k for k, v in root.items() if v is not None] if isinstance(root, dict) else []


@dataclass(frozen=True, eq=False)
class MoeLayers:
    """The rows that are MoE layers, and the decoder's numbers of them."""

    rows: NDArray[np.int64]
    ids: tuple[int, ...]
    notes: tuple[str, ...]


def moe_layers(loaded: NDArray[np.bool_], given: tuple[int, ...] | None) -> MoeLayers:
    """Choose the rows to keep; ``loaded`` marks those that ever had a token, ``(L,)``."""
    everywhere = np.arange(len(loaded))
    if given is None:
        rows, empty = np.flatnonzero(loaded), np.flatnonzero(~loaded)
        note = Message(
            f"Without load in the whole recording: decoder {numbered(empty.tolist())}. Such layers "
            "were taken as dense and left out. If they have experts, as hash-routed layers "
            f"that record nothing, give {argument('layer_ids')} 0-{len(loaded) - 1}."
        )
        return MoeLayers(rows, tuple(rows.tolist()), (note,) if len(empty) else ())
    if len(given) == len(loaded):  # a file with a row a MoE layer, or an engine's with all chosen
        return MoeLayers(everywhere, given, ())
    if not all(0 <= layer < len(loaded) for layer in given):
        raise EquipoiseError(
            f"{argument('layer_ids')} {format_ids(given)} do not fit {len(loaded)} rows; give "
            f"decoder layers from 0 to {len(loaded) - 1}, or one number for every row."
        )
    left_out = np.setdiff1d(np.flatnonzero(loaded), given)
    note = Message(
        f"Layers {format_ids(left_out.tolist())} have load but are not among the "
        f"{argument('layer_ids')} given."
    )
    return MoeLayers(np.array(given, np.int64), given, (note,) if len(left_out) else ())
