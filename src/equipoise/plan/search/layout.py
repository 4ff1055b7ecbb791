"""Layouts that a search starts from: every expert placed, and copies made by load."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.evaluate import ranks_without_balancing
from equipoise.plan.problem import Problem
from equipoise.plan.search.anneal import fill_up
from equipoise.topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def first_layout(load_LE: Floats, num_slots: int, topology: Topology) -> Ints:
    """Make the layout of ``Greedy``, or one that respects speed and room if ranks are not equal.

    Returns
    -------
    Expert ids ``(L, S)``; -1 in slots that a rank has no room for.

    Raises
    ------
    EquipoiseError
        Ranks that have no room for all experts together.
    """
    from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

    if topology.speed is None and topology.room is None:
        slots: Ints = _kernels.distinct_slots(load_LE, num_slots, topology.num_ranks)
        return slots
    size, num_experts = num_slots // topology.num_ranks, load_LE.shape[1]
    room = topology.distinct_experts(size)
    check_room(room, num_experts)
    layout = np.full((len(load_LE), topology.num_ranks, size), -1, dtype=np.int64)
    for row, load in zip(layout, load_LE, strict=True):
        _deal(load, room, topology.relative_speed, row)
    return layout.reshape(len(load_LE), num_slots)


def check_room(room: Ints, num_experts: int) -> None:
    """Raise ``EquipoiseError`` unless the ranks together have room for all experts of a layer."""
    if room.sum() < num_experts:
        raise EquipoiseError(
            f"The ranks have room for {room.sum()} experts of a layer, the model has "
            f"{num_experts}; give them more room, or more slots where slots are the limit."
        )


def _deal(load: Floats, room: Ints, speed: Floats, layout_RC: Ints) -> None:
    """Fill a layer: every expert once, the heaviest first; then copies of the largest share.

    Each goes to the rank that finishes first, among those with room that do not have the expert.
    """
    used, carried = np.zeros_like(room), np.zeros(len(room))
    copies = np.zeros(len(load), dtype=np.int64)
    held = np.zeros((len(room), len(load)), dtype=np.bool_)

    def place(e: int, share: float) -> bool:
        free = (used < room) & ~held[:, e]
        if not free.any():
            return False
        r = int(np.where(free, (carried + share) / speed, np.inf).argmin())
        layout_RC[r, used[r]] = e
        used[r] += 1
        carried[r] += share
        copies[e] += 1
        held[r, e] = True
        return True

    for e in np.argsort(-load, kind="stable"):
        place(int(e), float(load[e]))
    share = load.astype(np.float64)
    while (used < room).any() and (share >= 0).any():
        e = int(share.argmax())
        share[e] = load[e] / (copies[e] + 1) if place(e, share[e] / 2) else -1.0


def unbalanced_layout(active_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """Make the layout without balancing, with copies where they cost the least time.

    In decode, a copy means one more set of weights to read in every step in which its expert is
    active. So the redundant slots hold the experts that are active least often, the same on all
    ranks: in steps in which these are idle, the copies cost nothing.

    Parameters
    ----------
    active_LE
        Number of steps in which each expert is active, ``(L, E)``; only the order matters.

    Returns
    -------
    Expert ids ``(L, S)``.
    """
    num_experts, size = active_LE.shape[1], num_slots // num_ranks
    layout = np.empty((len(active_LE), num_ranks, size), dtype=np.int64)
    rank_E = ranks_without_balancing(num_experts, num_ranks)
    for row, active in zip(layout, active_LE, strict=True):
        idlest = np.argsort(active, kind="stable")
        for rank, slots in enumerate(row):
            own = np.flatnonzero(rank_E == rank)
            others = idlest[rank_E[idlest] != rank]
            slots[:] = np.concatenate([own, others])[:size]
    return layout.reshape(len(active_LE), num_slots)


def unsearched_placement(problem: Problem) -> Placement:
    """Make a placement for the problem without any search: experts in order, repeated.

    If ranks have less room than slots, their other slots repeat experts that the rank holds.
    """
    topology, num_slots = problem.topology, problem.num_slots
    slots = np.tile(np.arange(num_slots) % problem.num_experts, (problem.num_layers, 1))
    if topology.room is not None:
        slots = fill_up(first_layout(problem.total, num_slots, topology), topology.num_ranks)
    return problem.placement(slots)
