"""A placement: which expert every slot holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import MAX_WHOLE, as_array, check_whole
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import check_layer_ids
from equipoise.showing import heat_html


@dataclass(frozen=True, eq=False)
class Placement:
    """The logical expert held by each slot, valid by construction.

    Slots belong to ranks in equal contiguous blocks: the rank of slot ``s`` is ``s // (S // R)``.

    Parameters
    ----------
    slots
        Expert ids, ``(L, S)`` integers in ``[0, E)``; every expert has a slot in every layer. The
        array is copied; the copy is read-only.
    num_ranks
        Number of ranks, ``R``; it divides ``S``.
    num_experts
        Number of logical experts, ``E``.
    layer_ids
        Layer numbers of the model, ascending, ``L`` of them; ``None`` numbers the rows from 0.
        Engines number layers differently: see ``docs/reference/formats``.

    Raises
    ------
    EquipoiseError
        A placement that is not valid; the message names the layer, the slot and the expert.
    """

    slots: NDArray[np.int64]
    num_ranks: int
    num_experts: int
    layer_ids: tuple[int, ...]

    def __init__(
        self,
        slots: ArrayLike,
        *,
        num_ranks: int,
        num_experts: int,
        layer_ids: Sequence[int] | None = None,
    ) -> None:
        array = _as_slots(slots)
        ids = range(len(array)) if layer_ids is None else layer_ids
        object.__setattr__(self, "slots", array)
        object.__setattr__(self, "num_ranks", check_whole("num_ranks", num_ranks, low=1))
        object.__setattr__(self, "num_experts", check_whole("num_experts", num_experts, low=1))
        object.__setattr__(self, "layer_ids", check_layer_ids(ids, len(array)))
        self._check()

    def _check(self) -> None:
        check_slot_count(self.num_slots, num_ranks=self.num_ranks, num_experts=self.num_experts)
        outside = (self.slots < 0) | (self.slots >= self.num_experts)
        if outside.any():
            row, slot = np.argwhere(outside)[0]
            raise EquipoiseError(
                f"Layer {self.layer_ids[row]}, slot {slot} holds expert {self.slots[row, slot]}; "
                f"expected an id from 0 to {self.num_experts - 1}."
            )
        missing = self.copies == 0
        if missing.any():
            row, expert = np.argwhere(missing)[0]
            raise EquipoiseError(
                f"Layer {self.layer_ids[row]}: expert {expert} has no slot "
                f"({int(missing.sum())} missing in all); every expert needs at least one."
            )

    @property
    def num_layers(self) -> int:
        """Number of MoE layers, ``L``."""
        return int(self.slots.shape[0])

    @property
    def num_slots(self) -> int:
        """Number of slots of a layer, all ranks together, ``S``."""
        return int(self.slots.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Number of slots of a layer on each rank, ``S / R``."""
        return self.num_slots // self.num_ranks

    @property
    def num_redundant(self) -> int:
        """Number of redundant slots of a layer, all ranks together, ``S - E``."""
        return self.num_slots - self.num_experts

    @property
    def rank_of_slot(self) -> NDArray[np.int64]:
        """Rank that each slot belongs to, ``(S,)``."""
        return np.arange(self.num_slots, dtype=np.int64) // self.slots_per_rank

    @property
    def by_rank(self) -> NDArray[np.int64]:
        """Slots by rank, ``(L, R, S / R)``: a view."""
        return self.slots.reshape(self.num_layers, self.num_ranks, self.slots_per_rank)

    @cached_property
    def copies(self) -> NDArray[np.int64]:
        """Number of slots that hold each expert, ``(L, E)``."""
        return self._count_per_layer(self.slots, self.num_experts)

    @cached_property
    def copies_on_rank(self) -> NDArray[np.int64]:
        """Number of slots of each rank that hold each expert, ``(L, R, E)``."""
        cell = self.rank_of_slot * self.num_experts + self.slots
        counts = self._count_per_layer(cell, self.num_ranks * self.num_experts)
        return counts.reshape(self.num_layers, self.num_ranks, self.num_experts)

    def _count_per_layer(self, keys: NDArray[np.int64], num_keys: int) -> NDArray[np.int64]:
        """Count each key in each row of ``keys`` ``(L, S)``; the result is ``(L, num_keys)``."""
        offset = np.arange(self.num_layers)[:, None] * num_keys
        counts = np.bincount((offset + keys).ravel(), minlength=self.num_layers * num_keys)
        return counts.reshape(self.num_layers, num_keys)

    def rows(self, rows: Sequence[int]) -> Placement:
        """Return the placement of some layers only, chosen by their row numbers."""
        return Placement(
            self.slots[list(rows)],
            num_ranks=self.num_ranks,
            num_experts=self.num_experts,
            layer_ids=[self.layer_ids[row] for row in rows],
        )

    @property
    def duplicates(self) -> NDArray[np.int64]:
        """Number of slots wasted on a further copy of an expert on the same rank, ``(L,)``."""
        wasted: NDArray[np.int64] = np.maximum(self.copies_on_rank - 1, 0).sum(axis=(1, 2))
        return wasted

    def slots_of_experts(self) -> NDArray[np.int64]:
        """List the ascending slots of each expert, ``(L, E, X)``, padded with -1 to ``X`` slots."""
        width = int(self.copies.max())
        table = np.full((self.num_layers, self.num_experts, width), -1, dtype=np.int64)
        small = self.slots.astype(np.min_scalar_type(self.num_experts))  # numpy radix-sorts these
        order = np.argsort(small, axis=1, kind="stable")
        expert = np.take_along_axis(self.slots, order, axis=1)
        first = np.cumsum(self.copies, axis=1) - self.copies
        ordinal = np.arange(self.num_slots) - np.take_along_axis(first, expert, axis=1)
        table[np.arange(self.num_layers)[:, None], expert, ordinal] = order
        return table

    @property
    def checksum(self) -> str:
        """SHA-256 of shape and content; equal placements have equal checksums."""
        head = f"{self.num_ranks},{self.num_experts},{self.layer_ids},{self.slots.shape};"
        return hashlib.sha256(head.encode() + self.slots.astype("<i8").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            self.num_ranks == other.num_ranks
            and self.num_experts == other.num_experts
            and self.layer_ids == other.layer_ids
            and np.array_equal(self.slots, other.slots)
        )

    def __hash__(self) -> int:
        return hash(self.checksum)

    def __repr__(self) -> str:
        return (
            f"Placement({self.num_layers} layers, {self.num_experts} experts in "
            f"{self.num_slots} slots on {self.num_ranks} ranks)"
        )

    def _repr_html_(self) -> str:
        return heat_html(
            repr(self),
            self.copies,
            "Copies of every expert: a row for each layer, a column for each expert.",
        )


def _as_slots(slots: ArrayLike) -> NDArray[np.int64]:
    array = as_array(slots, "Slots")
    if array.ndim != 2 or not array.size:
        raise EquipoiseError(
            f"Slots have shape {array.shape}; expected (layers, slots), neither of them 0."
        )
    if array.dtype.kind not in "iu":
        raise EquipoiseError(f"Slots have type {array.dtype}; expected integer expert ids.")
    if array.max() > MAX_WHOLE:
        raise EquipoiseError(f"The slots hold {array.max()}; expected expert ids.")
    array = array.astype(np.int64, order="C")  # always a copy: the caller may change his array
    array.flags.writeable = False
    return array


def check_slot_count(num_slots: int, *, num_ranks: int, num_experts: int) -> None:
    """Check that ``S >= E`` and that ``R`` divides ``S``; raise ``EquipoiseError`` otherwise."""
    check_whole("num_slots", num_slots)
    if not check_whole("num_ranks", num_ranks) or not check_whole("num_experts", num_experts):
        raise EquipoiseError(
            f"{num_experts} experts on {num_ranks} ranks; expected at least one of each."
        )
    if num_slots < num_experts:
        raise EquipoiseError(
            f"{num_slots} slots cannot hold {num_experts} experts; "
            f"use at least {-(-num_experts // num_ranks) * num_ranks} slots on {num_ranks} ranks."
        )
    if num_slots % num_ranks:
        below = num_slots // num_ranks * num_ranks
        legal = [s for s in (below, below + num_ranks) if s >= num_experts]
        raise EquipoiseError(
            f"{num_slots} slots do not divide over {num_ranks} ranks; nearest legal: "
            + " or ".join(f"{s} slots ({s - num_experts} redundant)" for s in legal)
            + "."
        )
