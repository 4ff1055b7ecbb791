"""Moving experts between ranks: the blocking transfer, which specifies what a transfer does.

A layer moves as a whole or not at all. First the new content of its slots is gathered in a buffer
of one layer, in the rounds of the migration, and the slots stay as they are. Then every expert that
arrived is checked against its checksum, and the ranks agree that all are right. Only then are the
slots written and the placement replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.migration import Migration, Receive
from equipoise.runtime.members.agreement import ProcessGroup, agree, gather
from equipoise.runtime.moving.checksum import expert_checksum, slot_bytes
from equipoise.runtime.moving.store import SlotStore, device_of

CHUNK_BYTES = 1 << 20
"""Largest message in bytes: a transfer can be slowed down between two messages."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a transfer, the same on every rank.

    Parameters
    ----------
    moved
        The model's numbers of the layers in which experts have moved.
    failures
        Reasons why it ended early, one sentence each; empty if it did not. The layer that failed
        and those after it serve the old placement from the old weights.
    """

    moved: tuple[int, ...]
    failures: tuple[str, ...] = ()


def transfer(migration: Migration, layers: Sequence[SlotStore]) -> Outcome:
    """Move experts while nothing is served, layer by layer.

    Every rank of the process group has to call it, between the same forward passes.

    Parameters
    ----------
    migration
        Migration from what the layers hold now.
    layers
        Slots of the layers of the migration, in its order.

    Raises
    ------
    EquipoiseError
        On every rank, before anything moves: the migration does not start from what the layers
        hold, differs between ranks, or needs experts that no live rank has.
    """
    check_migration(migration, layers)
    moved: list[int] = []
    for row in rows_that_move(migration):
        layer = layers[row]
        move = LayerMove(migration, row, layer)
        staged, wrong = move.stage(layer.group)
        if _anywhere(bool(wrong), layer):
            every = gather(wrong, list[str], layer.group)
            return Outcome(tuple(moved), tuple(text for texts in every for text in texts))
        move.commit(staged)
        moved.append(layer.layer_id)
    return Outcome(tuple(moved))


def rows_that_move(migration: Migration) -> list[int]:
    """Rows of the layers in which a slot changes, ascending."""
    moves = (migration.receive != Receive.UNCHANGED).any(axis=1)
    rows: list[int] = np.flatnonzero(moves).tolist()
    return rows


def check_migration(migration: Migration, layers: Sequence[SlotStore]) -> None:
    """Make sure that the migration fits the layers, and is the same on every rank.

    Every rank has to call it; it takes one small collective if all is well.

    Raises
    ------
    EquipoiseError
        See ``transfer``; on every rank.
    """
    refusal = _refusal(migration, layers)
    what = refusal or _digest(migration)
    if not _same_everywhere(what, layers[0]):
        agree("the migration", what, layers[0].group)  # says who has what
    if refusal:
        raise EquipoiseError(refusal)


@dataclass(frozen=True, eq=False)
class LayerMove:
    """A rank's part in moving one layer.

    Parameters
    ----------
    migration, row
        Migration, and the row of the layer in it.
    layer
        Slots of the layer, which hold the old placement.
    """

    migration: Migration
    row: int
    layer: SlotStore

    def stage(
        self, group: ProcessGroup, pace: Callable[[int], None] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Gather what this rank's slots are to hold, without changing the slots.

        Every rank of the layer's process group has to call it.

        Parameters
        ----------
        group
            Process group over which messages travel: the layer's ranks in their order.
        pace
            Function called with the bytes of each message sent; it returns when the next may be
            sent.

        Returns
        -------
        Buffers by name, ``(C, ...)``, in which only the slots that change are filled; and one
        sentence for each expert that is wrong.
        """
        staged = {name: torch.empty_like(tensor) for name, tensor in self.layer.weights.items()}
        wrong: list[str] = []
        for number in range(int(self.migration.num_rounds[self.row])):
            arrived = self._exchange(number, staged, group, pace)
            wrong += self._check(staged, arrived)  # one by one: forward passes run in between
        wrong += self._check(staged, self._copy_on_rank(staged))
        return staged, wrong

    def commit(self, staged: dict[str, Tensor]) -> None:
        """Write what was gathered to the slots that change, and serve the new placement."""
        slots = [slot for slot, _ in self._changed]
        self.layer.commit(self.migration.new.rows([self.row]), slots, staged)

    def _exchange(
        self,
        number: int,
        staged: dict[str, Tensor],
        group: ProcessGroup,
        pace: Callable[[int], None] | None,
    ) -> list[int]:
        """Send and receive this rank's part of one round: at most one expert each way.

        Returns the slots that were filled, numbered within the rank.
        """
        C, rank = self.migration.new.slots_per_rank, self.layer.rank
        sending: list[Tensor] = []
        taking: list[Tensor] = []
        filled: list[int] = []
        to = source = -1
        for slot in np.flatnonzero(self.migration.round[self.row] == number).tolist():
            if self.migration.source[self.row, slot] == rank:
                to = slot // C
                at = _first(self._old, self.migration.new.slots[self.row, slot])
                sending = _messages(self.layer.weights, at)
            if slot // C == rank:
                source = int(self.migration.source[self.row, slot])
                taking = _messages(staged, slot % C)
                filled = [slot % C]
        for out, into in zip_longest(sending, taking):
            operations = []
            if out is not None:
                operations.append(dist.P2POp(dist.isend, out, group=group, group_peer=to))
            if into is not None:
                operations.append(dist.P2POp(dist.irecv, into, group=group, group_peer=source))
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            if pace is not None and out is not None:
                pace(out.numel())
        return filled

    def _copy_on_rank(self, staged: dict[str, Tensor]) -> list[int]:
        """Fill slots whose expert the rank has, in an old slot or in a new one that received it.

        Returns the slots that were filled, numbered within the rank.
        """
        filled = []
        for slot, expert in self._changed:
            if self._receive[slot] == Receive.SAME_RANK:
                origin: Mapping[str, Tensor] = self.layer.weights
                at = _first(self._old, expert)
            elif self._receive[slot] == Receive.FREE_RIDER:
                origin, at = staged, _first(self._new, expert)
            else:
                continue
            for name, tensor in staged.items():
                tensor[slot] = origin[name][at]
            filled.append(slot)
        return filled

    def _check(self, staged: dict[str, Tensor], slots: list[int]) -> list[str]:
        """One sentence for each filled slot whose expert is not what was loaded."""
        return [
            f"Rank {self.layer.rank}, layer {self.layer.layer_id}: expert {self._new[slot]} "
            "arrived with another checksum than it was loaded with."
            for slot in slots
            if int(expert_checksum(staged, slot)) != self.layer.checksums[self._new[slot]]
        ]

    @property
    def _old(self) -> NDArray[np.int64]:
        """The experts in this rank's slots now, ``(C,)``."""
        held: NDArray[np.int64] = self.migration.old.by_rank[self.row, self.layer.rank]
        return held

    @property
    def _new(self) -> NDArray[np.int64]:
        """The experts that this rank's slots are to hold, ``(C,)``."""
        held: NDArray[np.int64] = self.migration.new.by_rank[self.row, self.layer.rank]
        return held

    @property
    def _receive(self) -> NDArray[np.int8]:
        """Return the way in which each of this rank's slots receives its expert, ``(C,)``."""
        by_rank = self.migration.receive[self.row].reshape(-1, len(self._new))
        receive: NDArray[np.int8] = by_rank[self.layer.rank]
        return receive

    @property
    def _changed(self) -> list[tuple[int, int]]:
        """Slots of this rank that change, numbered within the rank, and their new experts."""
        slots = np.flatnonzero(self._receive != Receive.UNCHANGED)
        return list(zip(slots.tolist(), self._new[slots].tolist(), strict=True))


def _first(experts: NDArray[np.int64], expert: int) -> int:
    """The first slot that holds an expert."""
    return int((experts == expert).argmax())


def _messages(weights: Mapping[str, Tensor], slot: int) -> list[Tensor]:
    """The bytes of an expert, views of at most ``CHUNK_BYTES``, in an order all ranks share."""
    chunks: list[Tensor] = []
    for name in sorted(weights):
        chunks += torch.split(slot_bytes(weights[name], slot), CHUNK_BYTES)
    return chunks


def _digest(migration: Migration) -> str:
    """A text that differs between any two migrations, also if only the sources differ."""
    source = hashlib.sha256(migration.source.tobytes()).hexdigest()
    parts = (migration.old.checksum, migration.new.checksum, source)
    return " ".join(part[:12] for part in parts)


def _same_everywhere(text: str, layer: SlotStore) -> bool:
    """Whether all ranks have the same text; the same answer on every rank."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    ends = torch.tensor([number, -number], device=device_of(layer))
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=layer.group)
    return int(ends[0]) == -int(ends[1])  # the greatest equals the least


def _anywhere(here: bool, layer: SlotStore) -> bool:
    """Whether something is true on any rank."""
    flag = torch.tensor(int(here), device=device_of(layer))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=layer.group)
    return bool(flag)


def _refusal(migration: Migration, layers: Sequence[SlotStore]) -> str | None:
    """Return the reason why this migration cannot be made on these layers; ``None`` if it can."""
    ids = tuple(layer.layer_id for layer in layers)
    if ids != migration.old.layer_ids:
        return (
            f"The migration is of layers {format_ids(migration.old.layer_ids)}, but layers "
            f"{format_ids(ids)} are given; give those of the migration."
        )
    for row, layer in enumerate(layers):
        if layer.placement != migration.old.rows([row]):
            return (
                f"Layer {layer.layer_id} does not hold what the migration starts from; "
                "make a migration from the placement that is served."
            )
    lost = np.argwhere(migration.lost)
    if len(lost):
        row, slot = lost[0]
        return (
            f"Layer {ids[row]}: no live rank has expert {migration.new.slots[row, slot]} "
            f"({len(lost)} slots in all are to receive such experts); load them from storage first."
        )
    return None
