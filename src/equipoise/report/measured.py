"""The layout that a report measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import rank_loads as loads_of_placement
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.evaluate import ranks_without_balancing
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Uneven:
    """A layout of every expert once, in order, for ranks that do not divide the experts.

    The first ``E mod R`` ranks hold one expert more, as in the engines; a ``Placement`` cannot
    express that. The attributes have the names of those of ``Placement``.
    """

    num_layers: int
    num_experts: int
    num_ranks: int
    num_redundant: int = 0

    @property
    def num_slots(self) -> int:
        """Number of slots: one for each expert."""
        return self.num_experts

    @property
    def copies_on_rank(self) -> NDArray[np.int64]:
        """Number of slots of each rank that hold each expert, 0 or 1, ``(L, R, E)``."""
        rank_E = ranks_without_balancing(self.num_experts, self.num_ranks)
        held_RE = (rank_E == np.arange(self.num_ranks)[:, None]).astype(np.int64)
        return np.broadcast_to(held_RE, (self.num_layers, *held_RE.shape))


Layout = Placement | Uneven


def rank_loads(load_TLE: NDArray[Any], layout: Layout) -> NDArray[np.float64]:
    """Compute the load of each rank if copies take equal shares, ``(T, L, R)``."""
    if isinstance(layout, Placement):
        return loads_of_placement(load_TLE, layout)
    loads: NDArray[np.float64] = load_TLE.astype(np.float64) @ layout.copies_on_rank[0].T
    return loads


def contiguous(trace: Trace, num_ranks: int) -> Placement:
    """Place every expert once, ``E / R`` on each rank in ascending order, as engines start.

    Raises
    ------
    EquipoiseError
        A number of ranks that does not divide the experts.
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


def unbalanced(trace: Trace, num_ranks: int) -> Layout:
    """Place every expert once, in ascending order, as evenly as possible, as engines start."""
    if num_ranks >= 1 and trace.num_experts % num_ranks:
        return Uneven(
            num_layers=trace.num_layers, num_experts=trace.num_experts, num_ranks=num_ranks
        )
    return contiguous(trace, num_ranks)


def aligned(placement: Placement, trace: Trace, num_ranks: int | None = None) -> Placement:
    """Select the rows of a placement for the layers of a trace, in their order.

    Raises
    ------
    EquipoiseError
        Another number of experts or ranks, or a layer that the placement does not have.
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
    """Return the number of ranks that recorded the trace, if it is known."""
    return None if trace.source_counts is None else int(trace.source_counts.shape[1])
