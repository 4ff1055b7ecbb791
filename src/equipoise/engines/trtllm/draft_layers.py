"""Rows of speculative (MTP) layers, which run after the decoder layers and are seldom recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.placement import Placement


def default_row(num_experts: int, num_slots: int, num_ranks: int) -> NDArray[np.int64]:
    """Return the slots of a layer as TensorRT-LLM fills them without a map, ``(S,)``.

    Rank ``r`` holds ``S / R`` experts in a row, from ``r E // R`` on and around the end.
    """
    first = np.arange(num_ranks)[:, None] * num_experts // num_ranks
    row: NDArray[np.int64] = (first + np.arange(num_slots // num_ranks)) % num_experts
    return row.ravel()


def with_draft_layers(placement: Placement, layer_ids: Sequence[int]) -> Placement:
    """Return the placement with rows for further layers, which come after its own.

    Nothing is known of their load, because experts of different layers share only their number.
    Their experts are therefore placed as the engine places them in a layer without a map.
    """
    row = default_row(placement.num_experts, placement.num_slots, placement.num_ranks)
    return Placement(
        np.vstack([placement.slots, np.tile(row, (len(layer_ids), 1))]),
        num_ranks=placement.num_ranks,
        num_experts=placement.num_experts,
        layer_ids=(*placement.layer_ids, *layer_ids),
    )
