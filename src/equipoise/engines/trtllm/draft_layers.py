"""Rows for speculative (MTP) layers, which run after the decoder layers and are seldom recorded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.placement import Placement


def default_row(num_experts: int, num_slots: int, num_ranks: int) -> NDArray[np.int64]:
    """The slots of a layer as TensorRT-LLM fills them without a map, ``(S,)``.

    Rank ``r`` holds ``S / R`` experts in a row, from ``r E // R`` on and around the end.
    """
    first = np.arange(num_ranks)[:, None] * num_experts // num_ranks
    row: NDArray[np.int64] = (first + np.arange(num_slots // num_ranks)) % num_experts
    return row.ravel()


def with_draft_layers(placement: Placement, num_layers: int) -> Placement:
    """The placement with rows for further layers, numbered on from its last one.

    Nothing is known of their load: experts of different layers have nothing in common but their
    number. So they are laid out as the engine lays out a layer without a map.
    """
    row = default_row(placement.num_experts, placement.num_slots, placement.num_ranks)
    return Placement(
        np.vstack([placement.slots, np.tile(row, (num_layers, 1))]),
        num_ranks=placement.num_ranks,
        num_experts=placement.num_experts,
        layer_ids=(*placement.layer_ids, *draft_layer_ids(placement, num_layers)),
    )


def draft_layer_ids(placement: Placement, num_layers: int) -> range:
    """The numbers of the layers that ``with_draft_layers`` adds."""
    first = placement.layer_ids[-1] + 1
    return range(first, first + num_layers)
