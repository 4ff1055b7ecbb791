"""DeepSeek's LPLB: the rule by which it chooses the copy for a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.dispatch.base import Batch, Shares
from equipoise.dispatch.minmax import MinMax
from equipoise.dispatch.split import Split
from equipoise.dispatch.tokens import checked_ids, earlier_equal, expert_counts
from equipoise.engines._shared.rules import EngineRule, copies_of_slots
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Lplb(EngineRule):
    """LPLB, first release: a linear program per batch, then quotas per rank.

    An expert has at most two copies. If it has ``t`` assignments on a rank, number ``j`` of them
    goes to the second copy if ``(499 j + 41) mod t >= o t``, where ``o`` is the first copy's share.
    If ``t`` is a multiple of 499, they all go to the same copy.

    The shares are the exact optimum here. LPLB takes five steps of an interior-point method on
    chosen topologies, which ends above it or falls back to halves (``equipoise explain dispatch``).
    """

    name: ClassVar[str] = "lplb"
    shares: ClassVar[Shares] = Shares.FOLLOWING
    version: ClassVar[str] = "LPLB, first release"

    def slots(self, topk_ids: ArrayLike, split: Split) -> NDArray[np.int64]:
        """The slot that serves each choice of the tokens of one rank.

        Parameters
        ----------
        topk_ids
            Expert ids, ``(D, L, K)``, or ``(D, K)`` for a placement of one layer: all tokens of the
            rank in this batch, in order.
        split
            The whole batch, all ranks together, as ``split`` answers it.

        Returns
        -------
        Slots in the shape of ``topk_ids``; -1 where the id is outside ``[0, E)``.
        """
        p = split.placement
        ids_DLK = checked_ids(topk_ids, p)
        known = (ids_DLK >= 0) & (ids_DLK < p.num_experts)
        layer = np.broadcast_to(np.arange(p.num_layers)[:, None], ids_DLK.shape)[known]
        expert = ids_DLK[known]
        number = earlier_equal(layer * p.num_experts + expert)
        total = expert_counts(ids_DLK, p.num_experts)[layer, expert]
        first = _first_share(split)[layer, expert]
        second = (number * 499 + 41) % total >= first * total
        slots = np.full(ids_DLK.shape, -1, np.int64)
        slots[known] = _two_slots(p)[layer, expert, second.astype(np.int64)]
        return slots.reshape(np.shape(topk_ids))

    def slot_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        """Return the same shares for all source ranks: those of the batch as a whole."""
        _two_slots(placement)
        load_LE = load_LRE.sum(axis=1)
        shares_LS = MinMax(topology=self.topology).split(Batch(load_LE), placement).shares
        load_LS = np.take_along_axis(load_LE, placement.slots, axis=1)
        even = 1 / copies_of_slots(placement)
        part_LS = np.divide(shares_LS, load_LS, out=even, where=load_LS > 0)
        return np.broadcast_to(part_LS[:, None], (*load_LRE.shape[:2], placement.num_slots))


def _first_share(split: Split) -> NDArray[np.float64]:
    """Return the share of each expert's load on its first copy, ``(L, E)``; 1 without load."""
    first_LE = _two_slots(split.placement)[:, :, 0]
    share = np.take_along_axis(split.shares, first_LE, axis=1)
    return np.divide(share, split.load, out=np.ones_like(share), where=split.load > 0)


def _two_slots(placement: Placement) -> NDArray[np.int64]:
    """Return first and second slot of each expert, ``(L, E, 2)``; twice the same if it has one."""
    table = placement.slots_of_experts()
    if table.shape[2] > 2:
        row, expert = np.argwhere(placement.copies > 2)[0]
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]}: expert {expert} has "
            f"{placement.copies[row, expert]} copies; LPLB supports at most 2 copies of an expert."
        )
    first = table[:, :, 0]
    second = np.where(table[:, :, -1] >= 0, table[:, :, -1], first)
    return np.stack([first, second], axis=2)
