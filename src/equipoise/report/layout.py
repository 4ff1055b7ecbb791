"""Which placement a report measures."""

from __future__ import annotations

import numpy as np

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.trace import Trace


def contiguous(trace: Trace, num_ranks: int) -> Placement:
    """Every expert once, ``E / R`` to a rank in ascending order: how engines start.

    Raises
    ------
    EquipoiseError
        The ranks do not divide the experts.
    """
    if num_ranks < 1 or trace.num_experts % num_ranks:
        raise EquipoiseError(
            f"{trace.num_experts} experts do not divide over {num_ranks} ranks; "
            "give a number of ranks that divides them, or a placement."
        )
    experts = np.arange(trace.num_experts)
    return Placement(
        np.broadcast_to(experts, (trace.num_layers, trace.num_experts)),
        num_ranks=num_ranks,
        num_experts=trace.num_experts,
        layer_ids=trace.layer_ids,
    )


def aligned(placement: Placement, trace: Trace, num_ranks: int | None = None) -> Placement:
    """The rows of a placement for the layers of a trace, in their order.

    Raises
    ------
    EquipoiseError
        Another number of experts or ranks, or a layer the placement does not have.
    """
    if num_ranks not in (None, placement.num_ranks):
        raise EquipoiseError(
            f"{num_ranks} ranks were asked for, but the placement has {placement.num_ranks}; "
            "leave the number of ranks out."
        )
    if placement.num_experts != trace.num_experts:
        raise EquipoiseError(
            f"The placement has {placement.num_experts} experts and the trace "
            f"{trace.num_experts}; give a placement made for this model."
        )
    if placement.layer_ids == trace.layer_ids:
        return placement
    row_of = {layer: row for row, layer in enumerate(placement.layer_ids)}
    missing = [layer for layer in trace.layer_ids if layer not in row_of]
    if missing:
        raise EquipoiseError(
            f"The placement has no layer {missing[0]} ({len(missing)} missing in all); "
            "it needs every layer of the trace."
        )
    return Placement(
        placement.slots[[row_of[layer] for layer in trace.layer_ids]],
        num_ranks=placement.num_ranks,
        num_experts=placement.num_experts,
        layer_ids=trace.layer_ids,
    )


def source_ranks(trace: Trace) -> int | None:
    """The ranks that recorded the trace, if it says so."""
    return None if trace.source_counts is None else int(trace.source_counts.shape[1])
