"""Evening out the load of ranks that serve experts whole, compiled.

Plain twin: ``tests/reference/active.py``. Every active expert is served by one slot, its *home*.
Where ranks have reached their largest number of homes, a home can move only along a chain: an
expert moves to another rank that holds it, one of that rank's experts moves on, and so on, until a
rank has room for one more or the chain returns to its start.

Results are deterministic: the search is breadth first and takes the lowest slot first. The callers
have checked that shapes fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Least gain of a chain, relative to the slowest rank. It is far above the rounding of some hundred
# updates, so that no chain can undo another and the search ends.
LEAST_GAIN = 1e-9

_compiled = njit(nogil=True)


class Homes(NamedTuple):
    """The slot that serves each expert of one layer, and the resulting load of the ranks."""

    load: Floats  # (E,): load of each expert
    slots: Ints  # (S,): expert of each slot
    slots_of: Ints  # (E, X): slots of each expert, padded with -1
    home: Ints  # (E,): the slot that serves each expert, -1 without load
    active: Ints  # (R,): number of homes on each rank
    on_rank: Floats  # (R,): load of each rank
    speed: Floats  # (R,): relative speed of each rank


class Chain(NamedTuple):
    """State of a search for a chain, by rank."""

    queue: Ints  # (R,): ranks in the order in which they were reached
    into: Ints  # (R,): the slot by which a rank was reached, -1 while it was not
    first: Ints  # (R,): the expert that left the start on the way here


@_compiled
def _settle(serving: Ints, h: Homes) -> None:
    """Fill the homes and the ranks' loads in ``h`` from ``serving``.

    ``serving`` ``(S,)`` is 1 for a home and 0 for an idle slot.
    """
    slots_per_rank = serving.size // h.active.size
    h.home[:] = -1
    h.active[:] = 0
    h.on_rank[:] = 0.0
    for s in range(serving.size):
        if serving[s]:
            h.home[h.slots[s]] = s
            h.active[s // slots_per_rank] += 1
            h.on_rank[s // slots_per_rank] += h.load[h.slots[s]]


@_compiled
def _find(start: int, most: int, h: Homes, c: Chain) -> int:
    """Return the slot in which a chain from the slowest rank, ``start``, ends; -1 if there is none.

    All ranks on the chain end up faster than the slowest is now, with at most ``most`` homes each.
    Fills ``c``.
    """
    slots_per_rank = h.slots.size // h.active.size
    limit = h.on_rank[start] / h.speed[start] * (1.0 - LEAST_GAIN)
    c.into[:] = -1
    c.queue[0] = start
    head, tail = 0, 1
    while head < tail:
        r = c.queue[head]
        head += 1
        on_rank = h.on_rank[r] if r == start else h.on_rank[r] + h.load[h.slots[c.into[r]]]
        for s in range(r * slots_per_rank, (r + 1) * slots_per_rank):
            e = h.slots[s]
            if h.home[e] != s or (on_rank - h.load[e]) / h.speed[r] >= limit:
                continue
            first = e if r == start else c.first[r]
            for t in h.slots_of[e]:
                q = t // slots_per_rank
                if t < 0 or q == r or c.into[q] >= 0:
                    continue
                left = h.load[first] if q == start else 0.0
                has_room = q == start or h.active[q] < most
                if has_room and (h.on_rank[q] - left + h.load[e]) / h.speed[q] < limit:
                    return int(t)
                if q != start:
                    c.into[q], c.first[q], c.queue[tail] = t, first, q
                    tail += 1
    return -1


@_compiled
def _move(start: int, end: int, h: Homes, c: Chain) -> None:
    """Move the experts of the chain that ends in slot ``end``, last one first; changes ``h``."""
    slots_per_rank = h.slots.size // h.active.size
    t, r = end, -1
    while r != start:
        e = h.slots[t]
        r = h.home[e] // slots_per_rank
        h.home[e] = t
        h.active[r] -= 1
        h.on_rank[r] -= h.load[e]
        h.active[t // slots_per_rank] += 1
        h.on_rank[t // slots_per_rank] += h.load[e]
        t = c.into[r]


@_compiled
def lighten(
    load_LE: Floats,
    serving_LS: Ints,
    most_L: Ints,
    slots_LS: Ints,
    slots_of_LEX: Ints,
    speed: Floats,
) -> Floats:
    """Move homes as long as that makes the slowest rank faster.

    Parameters
    ----------
    load_LE
        Load of each expert, ``(L, E)``; not changed.
    serving_LS
        1 for the slot that serves an expert with load, 0 for all others, ``(L, S)``.
    most_L
        Largest number of homes on a rank, ``(L,)``.
    slots_LS
        Expert of each slot, ``(L, S)``.
    slots_of_LEX
        Slots of each expert, ``(L, E, X)``, padded with -1.
    speed
        Relative speed of each rank, ``(R,)``.

    Returns
    -------
    Load of each slot, ``(L, S)``: an expert's whole load or 0.
    """
    (L, E), S, R = load_LE.shape, slots_LS.shape[1], speed.size
    home, active, on_rank = np.empty(E, np.int64), np.empty(R, np.int64), np.empty(R)
    c = Chain(np.empty(R, np.int64), np.empty(R, np.int64), np.empty(R, np.int64))
    share_LS = np.zeros((L, S))
    for layer in range(L):
        h = Homes(
            load_LE[layer], slots_LS[layer], slots_of_LEX[layer], home, active, on_rank, speed
        )
        _settle(serving_LS[layer], h)
        while True:
            start = int((on_rank / speed).argmax())
            end = _find(start, most_L[layer], h, c)
            if end < 0:
                break
            _move(start, end, h, c)
        for e in range(E):
            if home[e] >= 0:
                share_LS[layer, home[e]] = load_LE[layer, e]
    return share_LS
