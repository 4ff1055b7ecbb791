"""TensorRT-LLM: the rule by which it chooses the copy for a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.dispatch.tokens import earlier_equal
from equipoise.engines._shared.rules import EngineRule, copies_of_slots, known_ids, nth_copy
from equipoise.placement import Placement

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Trtllm(EngineRule):
    """TensorRT-LLM: the copies of an expert take turns within blocks of 1,024 choices.

    A choice goes to copy number ``(block + rank + earlier choices of the expert in the block) mod
    copies``. Blocks are cut from the choices of a rank's tokens, token by token.

    Parameters
    ----------
    attention_dp
        True if attention is data-parallel, as online balancing needs it: turns then begin at the
        rank's number. Otherwise they begin at 0 on all ranks.
    """

    name: ClassVar[str] = "trtllm"
    version: ClassVar[str] = "TensorRT-LLM 1.x, main of 2026"

    attention_dp: bool = True

    def slots(
        self, topk_ids: ArrayLike, placement: Placement, *, rank: int = 0
    ) -> NDArray[np.int64]:
        """The slot that serves each choice of the tokens of one rank.

        Parameters
        ----------
        topk_ids
            Expert ids, ``(D, L, K)``, or ``(D, K)`` for a placement of one layer: all tokens of the
            rank in this batch, in order.
        rank
            The rank the tokens are on.

        Returns
        -------
        Slots in the shape of ``topk_ids``; where the id is outside ``[0, E)`` the engine's ``S``.
        """
        ids_DLK, known = known_ids(topk_ids, placement, rank)
        D, L, K = ids_DLK.shape
        layer = np.arange(L)[:, None]
        block = (np.arange(D * K) // _BLOCK).reshape(D, 1, K)
        expert = np.where(known, ids_DLK, placement.num_experts)
        key = (block * L + layer) * (placement.num_experts + 1) + expert
        in_line = np.moveaxis(key, 1, 0).ravel()
        seen = np.moveaxis(earlier_equal(in_line).reshape(L, D, K), 0, 1)
        turn = (block + self._first_turn(rank) + seen) % placement.copies[layer, ids_DLK]
        slots = placement.slots_of_experts()[layer, ids_DLK, turn]
        return np.where(known, slots, placement.num_slots).reshape(np.shape(topk_ids))

    def slot_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        """Return shares as if all choices of a rank were in one block: exact up to 1,024 choices.

        With more, every block gives a copy an even share, give or take less than one assignment.
        """
        copies_LRS = copies_of_slots(placement)[:, None]
        first = self._first_turn(np.arange(placement.num_ranks))
        turn_LRS = (nth_copy(placement)[:, None] - first[:, None]) % copies_LRS
        load_LRS = np.take_along_axis(load_LRE, placement.slots[:, None], axis=2)
        rounds, rest = np.divmod(load_LRS, copies_LRS)
        served = rounds + np.clip(rest - turn_LRS, 0, 1)
        idle = np.zeros_like(load_LRS)
        return np.asarray(np.divide(served, load_LRS, out=idle, where=load_LRS > 0))

    def _first_turn(self, rank: ArrayLike) -> NDArray[np.int64]:
        return np.asarray(rank) * int(self.attention_dp)
