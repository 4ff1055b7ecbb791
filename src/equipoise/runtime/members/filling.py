"""One rank's part in filling slots: keep, copy from other ranks, read from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.errors import EquipoiseError
from equipoise.plan.weigh.failover import Content
from equipoise.runtime.members.agreement import ProcessGroup
from equipoise.runtime.members.decision import Decision
from equipoise.runtime.members.holdings import dtype_of
from equipoise.runtime.moe.checkpoint import Checkpoint
from equipoise.runtime.moving.checksum import expert_checksum, slot_bytes


@dataclass(eq=False)
class Filling:
    """One rank's part in filling the slots of a layer.

    Parameters
    ----------
    decision, row
        Decision, and the row of the layer in it.
    rank
        Rank of this process.
    old
        Weights in the slots of this rank so far; empty on a new rank.
    device
        Device of the weights.
    """

    decision: Decision
    row: int
    rank: int
    old: dict[str, Tensor]
    device: torch.device

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Make ``new``: keep what stays, in place if the slots keep their number, and reload."""
        C = self.decision.placement.slots_per_rank
        if self.old and all(len(tensor) == C for tensor in self.old.values()):
            self.new = self.old
        else:
            tensors = self.decision.served.tensors[self.row].items()
            self.new = {
                name: torch.empty((C, *shape), dtype=dtype_of(dtype), device=self.device)
                for name, (shape, dtype) in tensors
            }
            for slot in self._slots(Content.KEPT):
                self._copy(slot, self.old, slot)
        if slots := self._slots(Content.RELOADED):
            assert checkpoint is not None  # rank 0 has made sure
            self._reload(slots, checkpoint)

    def exchange(self, group: ProcessGroup) -> None:
        """Copy experts between ranks: one batch of messages, in the same order on every rank."""
        source, position = self.decision.source[self.row], self.decision.position[self.row]
        C = self.decision.placement.slots_per_rank
        operations = []
        for slot in np.flatnonzero(source >= 0).tolist():
            giver, at, taker = int(source[slot]), int(position[slot]), slot // C
            if giver == self.rank:
                origin, at = (self.new, at) if at < C else (self.old, at - C)
                if taker == giver:
                    self._copy(slot % C, origin, at)
                else:
                    operations += _messages(dist.isend, origin, at, group, taker)
            elif taker == self.rank:
                operations += _messages(dist.irecv, self.new, slot % C, group, giver)
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()

    def _slots(self, content: Content) -> list[int]:
        """Slots of this rank whose expert comes from there."""
        by_rank = self.decision.content[self.row].reshape(self.decision.placement.num_ranks, -1)
        slots: list[int] = np.flatnonzero(by_rank[self.rank] == content).tolist()
        return slots

    def _copy(self, slot: int, origin: Mapping[str, Tensor], at: int) -> None:
        for name, tensor in self.new.items():
            tensor[slot] = origin[name][at]

    def _reload(self, slots: list[int], checkpoint: Checkpoint) -> None:
        served, layer_id = self.decision.served, self.decision.served.layer_ids[self.row]
        experts = self.decision.placement.by_rank[self.row, self.rank, slots].tolist()
        read = checkpoint.read_slots(layer_id, experts)
        for at, (slot, expert) in enumerate(zip(slots, experts, strict=True)):
            if int(expert_checksum(read, at)) != served.checksums[self.row][expert]:
                raise EquipoiseError(
                    f"Layer {layer_id}: expert {expert} is not in the checkpoint as it was served; "
                    "give the checkpoint that was loaded, in the same number format."
                )
            self._copy(slot, read, at)


def _messages(
    operation: Callable[..., object],
    weights: Mapping[str, Tensor],
    slot: int,
    group: ProcessGroup,
    peer: int,
) -> list[dist.P2POp]:
    """Messages that bring an expert to or from a rank, one for each tensor."""
    return [
        dist.P2POp(operation, slot_bytes(weights[name], slot), group=group, group_peer=peer)
        for name in sorted(weights)
    ]
