"""vLLM's placement in memory: the three tensors of its EPLB state, as NumPy arrays.

No released vLLM reads a map from a file. A policy plug-in returns the first of these arrays, and
the engine derives the others from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

MAX_COPIES = 1024
"""Width of ``logical_to_physical``: an expert has at most this many copies."""


@dataclass(frozen=True, eq=False)
class MapTensors:
    """A placement as vLLM's tensors.

    Parameters
    ----------
    physical_to_logical
        Expert of each slot, ``(L, S)`` int64.
    logical_to_physical
        Slots of each expert, ascending, padded with -1, ``(L, E, 1024)`` int64.
    replica_count
        Copies of each expert, ``(L, E)`` int64.
    """

    physical_to_logical: NDArray[np.int64]
    logical_to_physical: NDArray[np.int64]
    replica_count: NDArray[np.int64]


def to_tensors(placement: Placement) -> MapTensors:
    """Return the tensors that the engine keeps for a placement.

    Raises
    ------
    EquipoiseError
        An expert has more than 1024 copies.
    """
    compact, count = compute_logical_maps(placement.slots, placement.num_experts)
    width = compact.shape[-1]
    if width > MAX_COPIES:
        raise EquipoiseError(
            f"An expert has {width} copies; vLLM holds at most {MAX_COPIES}. "
            "Plan with fewer redundant slots."
        )
    padding = [(0, 0), (0, 0), (0, MAX_COPIES - width)]
    return MapTensors(
        physical_to_logical=placement.slots.copy(),
        logical_to_physical=np.pad(compact, padding, constant_values=-1),
        replica_count=count,
    )


def to_placement(
    physical_to_logical: ArrayLike,
    *,
    num_ranks: int,
    num_experts: int,
    layer_ids: Sequence[int] | None = None,
) -> Placement:
    """Return the placement in a ``physical_to_logical`` tensor, ``(L, S)``.

    Raises
    ------
    EquipoiseError
        vLLM would accept the map in silence and then answer wrongly: an expert is missing, a slot
        holds -1 (as in elastic scaling), or an id is unknown.
    """
    return Placement(
        np.asarray(physical_to_logical),
        num_ranks=num_ranks,
        num_experts=num_experts,
        layer_ids=layer_ids,
    )


def compute_logical_maps(
    physical_to_logical: ArrayLike, num_experts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Invert a map: return the slots of each expert, and their number.

    Follows the engine's own function of this name, which also skips slots that hold -1.

    Parameters
    ----------
    physical_to_logical
        ``(L, S)`` or ``(S,)`` integers in ``[-1, E)``; not changed.

    Returns
    -------
    Ascending slots padded with -1, ``(L, E, X)`` with ``X`` the most copies (at least 1), and
    counts ``(L, E)``; without the layer axis if it was not given.

    Raises
    ------
    EquipoiseError
        Shape or type differ, or an id is outside ``[-1, E)``.
    """
    given = np.asarray(physical_to_logical)
    if given.ndim not in (1, 2) or not given.size or not np.issubdtype(given.dtype, np.integer):
        raise EquipoiseError(
            f"A map of shape {given.shape} and type {given.dtype}; expected integers, "
            "(layers, slots) or (slots,), none of them 0."
        )
    if num_experts < 1:
        raise EquipoiseError(f"num_experts is {num_experts}; expected at least 1.")
    slots = np.atleast_2d(given).astype(np.int64)
    outside = (slots < -1) | (slots >= num_experts)
    if outside.any():
        row, slot = np.argwhere(outside)[0]
        raise EquipoiseError(
            f"Layer row {row}, slot {slot} holds expert {slots[row, slot]}; expected an id from 0 "
            f"to {num_experts - 1}, or -1 for an unused slot."
        )
    table, count = _invert(slots, num_experts)
    return (table[0], count[0]) if given.ndim == 1 else (table, count)


def _invert(
    slots: NDArray[np.int64], num_experts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num_layers = len(slots)
    layer, slot = np.nonzero(slots >= 0)
    cell = layer * num_experts + slots[layer, slot]
    count = np.bincount(cell, minlength=num_layers * num_experts)
    order = np.argsort(cell, kind="stable")  # by layer and expert, slots ascending
    ordinal = np.arange(len(cell)) - (np.cumsum(count) - count)[cell[order]]
    table = np.full((num_layers * num_experts, max(int(count.max()), 1)), -1, dtype=np.int64)
    table[cell[order], ordinal] = slot[order]
    return table.reshape(num_layers, num_experts, -1), count.reshape(num_layers, num_experts)
