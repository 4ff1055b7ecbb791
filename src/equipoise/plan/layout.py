"""Where a search starts: every expert placed, copies by load, nothing searched yet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError
from equipoise.topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def first_layout(load_LE: Floats, num_slots: int, topology: Topology) -> Ints:
    """What ``Greedy`` makes of the loads; on unequal ranks, the same with room and speed respected.

    Returns
    -------
    Expert ids ``(L, S)``; -1 in slots that a rank has no room for.

    Raises
    ------
    EquipoiseError
        Ranks that have no room for all experts together.
    """
    from equipoise.plan import _kernels  # numba takes long to import

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
    """Raise ``EquipoiseError`` unless the ranks have room for all experts of a layer together."""
    if room.sum() < num_experts:
        raise EquipoiseError(
            f"The ranks have room for {room.sum()} experts of a layer, the model has "
            f"{num_experts}; give them more room, or more slots where slots are the limit."
        )


def _deal(load: Floats, room: Ints, speed: Floats, layout_RC: Ints) -> None:
    """Fill a layer: every expert once, the heaviest first; then copies of the largest share.

    Each goes to the rank that will finish first among those with room that lack the expert.
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
