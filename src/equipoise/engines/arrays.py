"""What several trace readers need on the way from file content to a trace's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError, FormatError

MAX_EXPERTS = 1 << 16
"""Most experts a table or a token recording may name; models of today have at most 1024."""

MAX_BYTES = 4 << 30
"""Largest array that a reader allocates on the word of a file alone."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of our nouns into a ``FormatError`` with the file."""
    try:
        yield
    except FormatError:
        raise
    except EquipoiseError as error:
        raise FormatError(f"{path}: {error}") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def compact_dtype(largest: int) -> np.dtype[np.integer]:
    """The smallest unsigned type up to 32 bits that holds ``largest``; beyond that, int64.

    64 unsigned bits are avoided because numpy mixes them with int64 to floating point.
    """
    for dtype in (np.uint8, np.uint16, np.uint32):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def compact(counts: NDArray[np.integer]) -> NDArray[np.integer]:
    """The same counts (>= 0) in the smallest type; not copied if they have it already."""
    return counts.astype(compact_dtype(int(counts.max()) if counts.size else 0), copy=False)


def refuse_oversize(shape: Sequence[int], itemsize: int, what: str) -> None:
    """Raise ``EquipoiseError`` for an array larger than ``MAX_BYTES``, before it is allocated."""
    size = prod(int(n) for n in shape) * itemsize
    if size > MAX_BYTES:
        raise EquipoiseError(
            f"{what} of shape {tuple(int(n) for n in shape)} would take {size / 2**30:.1f} GiB; "
            f"at most {MAX_BYTES / 2**30:.0f} GiB are read at once. "
            "Check the numbers, or split the recording."
        )


def agreed_layer_ids(
    stated: Sequence[int] | None, given: tuple[int, ...] | None, num_layers: int
) -> tuple[int, ...]:
    """The layer numbers of a file: what it states, else what the user gave, else from 0.

    Fewer given numbers than layers, all of them rows of the file, choose among decoder layers:
    then rows are numbered from 0, and the others are left out later.

    Raises
    ------
    EquipoiseError
        The number of layer ids is not ``num_layers``.
    """
    chosen = stated if stated is not None else given or range(num_layers)
    if stated is None and len(chosen) < num_layers and max(chosen) < num_layers:
        chosen = range(num_layers)
    ids = tuple(int(i) for i in chosen)
    if len(ids) != num_layers:
        raise EquipoiseError(f"{len(ids)} layer ids for {num_layers} layers; give one a layer.")
    return ids


def agreed_num_experts(largest_id: int, given: int | None) -> tuple[int, tuple[str, ...]]:
    """``E`` for a recording that names experts one by one, and the notes this needs.

    Raises
    ------
    EquipoiseError
        An expert id that the given ``E`` does not have, or one too large to be an id.
    """
    if given is not None and largest_id >= given:
        raise EquipoiseError(
            f"Expert {largest_id} occurs, but num_experts is {given}; "
            f"give the model's number of routed experts, at least {largest_id + 1}."
        )
    wanted = largest_id + 1 if given is None else given
    if wanted > MAX_EXPERTS:
        raise EquipoiseError(
            f"{wanted} experts are wanted; ids up to {MAX_EXPERTS - 1} are read. "
            "Check the ids and num_experts."
        )
    if given is not None:
        return given, ()
    note = f"The file does not state num_experts; {largest_id + 1} is the largest id seen plus one."
    return largest_id + 1, (note,)
