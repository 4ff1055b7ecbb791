"""Files of bare tensors: saved arrays of vLLM, and arrays that look like them.

People save vLLM's arrays, ``phy2log`` of DeepSeek's EPLB and the table of ranks that an early
proposal for vLLM read. Such files are read if their meaning is certain; they are never written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.map_layers import check_ordered
from equipoise.engines._shared.map_rows import build_ordered
from equipoise.engines._shared.map_slots import Rules
from equipoise.engines._shared.map_text import MAX_ENTRIES, peek_json, stated
from equipoise.engines.formats import Finding, MapContext, MapFormat, RawMap
from equipoise.engines.tabular.npy import load_npy
from equipoise.engines.vllm.tensors import compute_logical_maps
from equipoise.errors import EquipoiseError, FormatError

_NAMES = ("phy2log", "physical_to_logical", "p2l_map")
_STATE = "physical_to_logical_map"  # with the other two of the state; alone it is SGLang's file
_COPIES = ("logcnt", "replica_count", "logical_replica_count")
_RULES = Rules(ids="X1", missing="X1", width="X2", slots="X3", stated="X3", redundancy="X2")


@dataclass(frozen=True)
class _Found:
    """The experts by slot, ``(L, S)``, that a file holds, and the way they were recognised."""

    slots: NDArray[np.integer]
    note: str
    num_ranks: int | None = None
    num_experts: int | None = None
    copies: NDArray[np.integer] | None = None


def holds_a_map(path: Path) -> bool:
    """Return whether the values in a tensor file can only be a placement."""
    try:
        return _find(_root(path)) is not None
    except FormatError:
        return False


def _root(path: Path) -> Any:
    """Return the content of a small ``.pt``, ``.npy`` or JSON file; ``None`` for any other."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if head == b"\x93NUMPY":
            small = path.stat().st_size <= 8 * MAX_ENTRIES
            return load_npy(path.read_bytes(), str(path)) if small else None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error}).") from error
    if not head.startswith(b"PK\x03\x04"):
        return peek_json(path)
    if _num_values(torch_archive.outline(path)) > MAX_ENTRIES:
        return None
    return torch_archive.load(path)


def _num_values(root: Any) -> int:
    if isinstance(root, dict):
        return sum(map(_num_values, root.values()))
    return root.size if isinstance(root, np.ndarray) else 0


def _find(root: Any) -> _Found | None:
    """Return the map in a file's content, if its names or values leave no doubt."""
    if isinstance(root, dict):
        return None if stated(root) is not None else _named(root)
    if not isinstance(root, np.ndarray) or root.dtype.kind not in "iu" or not root.size:
        return None
    if root.ndim == 2 and _covers(root):
        return _Found(
            root, "Read as the experts of slots, (layers, slots): each row holds every id from 0."
        )
    if root.ndim == 3 and root.shape[1] > 1:
        return _of_ranks(root)
    return None


def _named(root: dict[Any, Any]) -> _Found | None:
    """Return the map under one of the names that programs use for it."""
    copies = _first(root, _COPIES)
    names = _NAMES if copies is None else (*_NAMES, _STATE)
    slots = _first(root, names)
    if slots is None:
        return None
    num_experts = None if copies is None else copies.shape[1]
    name = next(name for name in names if name in root)
    return _Found(slots, f"Read from {name}.", num_experts=num_experts, copies=copies)


def _first(root: dict[Any, Any], names: Iterable[str]) -> NDArray[np.integer] | None:
    """Return the table of integers, ``(L, ...)``, under the first of the names that is there."""
    value = next((root[name] for name in names if name in root), None)
    if isinstance(value, list):
        try:
            value = np.array(value)
        except ValueError:  # rows of unequal length
            return None
    found = isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind in "iu"
    return value if found else None


def _covers(slots: NDArray[np.integer]) -> bool:
    """Return whether every row holds every id from 0 to the highest; loads never do."""
    highest = int(slots.max())
    if int(slots.min()) < 0 or not 0 < highest < slots.shape[1]:
        return False
    _, count = compute_logical_maps(slots, highest + 1)
    return bool(count.all())


def _of_ranks(table: NDArray[np.integer]) -> _Found | None:
    """Read a table ``(L, R, E)`` of local slots, -1 for none, or ``(L, R, S / R)`` of experts."""
    num_ranks = table.shape[1]
    if int(table.min()) < 0:
        slots = _from_positions(table)
        note = "Read as the slot of each expert on each rank, (layers, ranks, experts); -1 is none."
        held = int(np.nonzero((table >= 0).any(axis=(0, 1)))[0].max(initial=-1)) + 1
        num_experts = held if held == table.shape[2] else None  # else the last may be padding
        return None if slots is None else _Found(slots, note, num_ranks, num_experts)
    flat = table.reshape(len(table), -1)
    if not _covers(flat) or all(_covers(rank) for rank in np.moveaxis(table, 1, 0)):
        return None  # every rank with every expert: positions and experts cannot be told apart
    return _Found(
        flat, "Read as the experts of each rank's slots, (layers, ranks, slots).", num_ranks
    )


def _from_positions(table: NDArray[np.integer]) -> NDArray[np.int64] | None:
    """Return the experts by slot, -1 for slots that no expert names; ``None`` for other tables."""
    num_layers, num_ranks, _ = table.shape
    width = int(table.max()) + 1
    layer, rank, expert = np.nonzero(table >= 0)
    if int(table.min()) < -1 or not 0 < width <= table.shape[2]:
        return None
    slots = np.full((num_layers, num_ranks, width), -1, dtype=np.int64)
    slots[layer, rank, table[layer, rank, expert]] = expert
    if np.count_nonzero(slots >= 0) < len(layer):  # two experts in one slot
        return None
    return slots.reshape(num_layers, -1)


def _parse(path: Path) -> RawMap:
    found = _find(_root(path))
    if found is None:
        raise FormatError(
            f"{path}: expected a tensor (layers, slots) of experts under one of the names "
            f"{', '.join(_NAMES)}, or one whose values can be nothing else."
        )
    if found.num_ranks is not None:
        _refuse_holes(found.slots, found.num_ranks, path)
    rows = found.slots.tolist()
    return RawMap(
        rows=rows,
        layer_keys=range(len(rows)),
        num_ranks=found.num_ranks,
        num_experts=found.num_experts,
        findings=tuple(_check_copies(found)),
        notes=(found.note,),
    )


def _refuse_holes(slots: NDArray[np.integer], num_ranks: int, path: Path) -> None:
    """Refuse a table of one slot per expert and rank if it lost a second copy on the same rank."""
    if (slots >= 0).all():
        return
    layer, slot = np.argwhere(slots < 0)[0]
    rank, position = divmod(int(slot), slots.shape[1] // num_ranks)
    raise FormatError(
        f"{path}: is a table of the slot that each expert has on each rank, (layers, ranks, "
        f"experts), and does not say what layer {layer}, rank {rank} holds in slot {position}: a "
        "second copy of one of its experts, or nothing. Save the experts by slot instead, "
        "(layers, slots)."
    )


def _check_copies(found: _Found) -> list[Finding]:
    """Check the numbers of copies that a file states against its slots."""
    if found.copies is None:
        return []
    try:
        _, count = compute_logical_maps(found.slots, found.copies.shape[1])
    except EquipoiseError:  # an id out of range, told by the check of rows
        return []
    if found.copies.shape != count.shape:
        message = f"The copies are counted in a table {found.copies.shape}; expected {count.shape}."
    elif (count != found.copies).any():
        layer, expert = np.argwhere(count != found.copies)[0]
        message = (
            f"Layer {layer}: the slots hold {count[layer, expert]} copies of expert {expert}, and "
            f"the file counts {found.copies[layer, expert]}."
        )
    else:
        return []
    remedy = "Save the slots and the count of one plan, or the slots alone."
    return [Finding(code="X6", message=message, remedy=remedy)]


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    return check_ordered(raw, context, _RULES, "X5")


FORMAT = MapFormat(
    name="tensors",
    summary="phy2log, physical_to_logical or a table of rank and expert, as a tensor in a .pt or "
    ".npy file or by name in JSON (read only)",
    matches=holds_a_map,
    parse=_parse,
    check=_check,
    to_placement=build_ordered,
)
