"""Helpers of trace readers: from file content to a trace's arrays."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.placement import Placement

MAX_EXPERTS = 1 << 16
"""Largest number of experts in a table or token recording; models of today have at most 1024."""

MAX_LABEL = 256
"""Length of the longest accepted label of a step, in characters."""

MAX_BYTES = 4 << 30
"""Largest array, in bytes, that a reader allocates because a file says so."""

_SMALL_BYTES, _MOST_GROWTH = 256 << 20, 64
"""Bytes that an array may take whatever the file's size, and bytes per byte of the file."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of the system and of our classes into a ``FormatError`` that names the file."""
    try:
        yield
    except FormatError:
        raise
    except EquipoiseError as error:
        raise FormatError(f"{path}: {error.message.marked}") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def compact_dtype(largest: int) -> np.dtype[np.integer]:
    """Choose the smallest unsigned type up to 32 bits that holds ``largest``, else int64.

    uint64 is avoided because numpy combines it with int64 to floating point.
    """
    for dtype in (np.uint8, np.uint16, np.uint32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def compact(counts: NDArray[np.integer]) -> NDArray[np.integer]:
    """Convert counts (>= 0) to the smallest type; they are not copied if they have it already."""
    return counts.astype(compact_dtype(int(counts.max()) if counts.size else 0), copy=False)


def numbers(row: Sequence[Any], where: str) -> NDArray[np.float64]:
    """Convert a list of numbers to an array; refuse a list that holds anything else.

    NumPy would convert every entry to text, each as long as the longest.
    """
    if not set(map(type, row)) <= {int, float}:
        raise EquipoiseError(f"{where} holds something other than numbers.")
    try:
        return np.frombuffer(array("d", row), dtype=np.float64)
    except OverflowError as error:
        raise EquipoiseError(f"{where} holds an enormous number.") from error


def refuse_oversize(
    shape: Sequence[int], itemsize: int, what: str, file_bytes: int | None = None
) -> None:
    """Refuse an array before it is allocated.

    Parameters
    ----------
    file_bytes
        Size of the file, if a few numbers or references in it can ask for a large array.

    Raises
    ------
    EquipoiseError
        An array of more than ``MAX_BYTES``, or far larger than the file.
    """
    size = prod(int(n) for n in shape) * itemsize
    limit = MAX_BYTES
    if file_bytes is not None:
        limit = min(MAX_BYTES, max(_SMALL_BYTES, _MOST_GROWTH * file_bytes))
    if size > limit:
        raise EquipoiseError(
            f"{what} of shape {tuple(int(n) for n in shape)} would take {size / 2**30:.1f} GiB; "
            f"at most {limit / 2**30:.3g} GiB are read at once"
            + (f" from {file_bytes} bytes. " if limit < MAX_BYTES else ". ")
            + "Check the numbers, or split the recording."
        )


def refuse_map(table: NDArray[Any]) -> None:
    """Refuse a bare table ``(L, n)`` that is almost certainly a map (the experts in slots).

    Raises
    ------
    EquipoiseError
        Rows that hold each number from 0 to their largest, or that hold -1.
    """
    if table.size and table.dtype.kind == "i" and table.min() == -1 and table.max() >= 0:
        raise EquipoiseError(
            "The table holds -1, as maps do where there is no expert; counts are 0 or more. "
            "That is a map, not a recording."
        )
    if (
        table.ndim == 2
        and table.size
        and all(
            3 <= row.max() < len(row) and np.array_equal(np.unique(row), np.arange(row.max() + 1))
            for row in table
        )
    ):
        raise EquipoiseError(
            "Every row holds each number from 0 to its largest: that is a map, the experts in the "
            "slots of each layer, not a recording."
        )


def fold_slots(load: NDArray[np.int64], placement: Placement) -> NDArray[np.int64]:
    """Convert counts per slot ``(L, S)`` to counts per expert ``(L, E)``, by the run's map.

    Raises
    ------
    EquipoiseError
        Another number of layers or slots than the placement.
    """
    L, S = placement.num_layers, placement.num_slots
    if load.shape != (L, S):
        raise EquipoiseError(
            f"The file counts (layers, slots) {load.shape}, the placement given has {(L, S)}; "
            "give the map of the recorded run."
        )
    counts = np.zeros((L, placement.num_experts), dtype=np.int64)
    np.add.at(counts, (np.arange(L)[:, None], placement.slots), load)
    return counts


def refuse_long_labels(values: Collection[str], num_steps: int, file_bytes: int) -> None:
    """Refuse labels that would take much memory, since NumPy stores all as long as the longest.

    Raises
    ------
    EquipoiseError
        A label longer than ``MAX_LABEL``, or a column far larger than the file.
    """
    longest = max(map(len, values), default=0)
    if longest > MAX_LABEL:
        raise EquipoiseError(
            f"A label has {longest} characters; expected at most {MAX_LABEL}. Shorten it."
        )
    rows = max(num_steps, len(values))
    refuse_oversize((rows, longest), 4, "A column of labels (steps, characters)", file_bytes)


def agreed_layer_ids(
    stated: Sequence[int] | None, given: tuple[int, ...] | None, num_layers: int
) -> tuple[int, ...]:
    """Choose the layer numbers of a file: its own, else the user's, else from 0.

    If the user gave fewer numbers than there are rows, and all are row numbers, they choose among
    decoder layers. Then rows are numbered from 0, and the others are left out later.

    Raises
    ------
    EquipoiseError
        A number of layer ids other than ``num_layers``.
    """
    chosen = stated if stated is not None else given or range(num_layers)
    if stated is None and len(chosen) < num_layers and max(chosen) < num_layers:
        chosen = range(num_layers)
    ids = tuple(int(i) for i in chosen)
    if len(ids) != num_layers:
        raise EquipoiseError(f"{len(ids)} layer ids for {num_layers} layers; give one a layer.")
    return ids


def agreed_num_experts(largest_id: int, given: int | None) -> tuple[int, tuple[str, ...]]:
    """Choose ``E`` for a recording that names single experts; also return notes.

    Raises
    ------
    EquipoiseError
        An expert id beyond the given ``E``, or too large to be an id.
    """
    if given is not None and largest_id >= given:
        raise EquipoiseError(
            f"Expert {largest_id} occurs, but {argument('num_experts')} is {given}; "
            f"give the model's number of routed experts, at least {largest_id + 1}."
        )
    wanted = largest_id + 1 if given is None else given
    if wanted > MAX_EXPERTS:
        raise EquipoiseError(
            f"The recording has {wanted} experts; at most {MAX_EXPERTS} are read. "
            f"Check the ids and {argument('num_experts')}."
        )
    if given is not None:
        return given, ()
    note = (
        f"The file does not state the number of experts; {largest_id + 1} is the largest id seen "
        "plus one."
    )
    return largest_id + 1, (note,)
