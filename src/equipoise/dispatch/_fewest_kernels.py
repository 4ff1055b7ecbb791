"""Evening out the load of ranks that serve experts whole, compiled.

A plain twin is in ``tests/reference/active.py``. Every active expert is served by one slot, its
*home*. Where ranks have all the homes that they may, a home can move only along a chain: an expert
moves to another of its ranks, one of that rank's moves on, and so forth, until a rank has room for
one more or the chain closes where it began.

Deterministic: breadth first, the lowest slot first. Shapes fit: the callers have checked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What a chain must gain, relative to the slowest rank. Far above rounding in some hundred updates,
# so that none can undo another and the search ends.
LEAST_GAIN = 1e-9

_compiled = njit(nogil=True)


class Homes(NamedTuple):
    """Who serves what in one layer."""

    load: Floats  # (E,): of each expert
    slots: Ints  # (S,): expert of each slot
    slots_of: Ints  # (E, X): slots of each expert, padded with -1
    home: Ints  # (E,): the slot that serves each expert, -1 without load
    active: Ints  # (R,): homes on each rank
    on_rank: Floats  # (R,): load of each rank
    speed: Floats  # (R,)


class Chain(NamedTuple):
    """State of a search for a chain, by rank."""

    queue: Ints  # (R,)
    into: Ints  # (R,): the slot by which a rank was reached, -1 while it was not
    first: Ints  # (R,): the expert that left the start on the way here


@_compiled
def _settle(serving: Ints, h: Homes) -> None:
    """Homes and ranks as ``serving`` ``(S,)`` has them: 1 for a home, 0 for an idle slot."""
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
    """The slot in which a chain from the slowest rank, ``start``, ends; -1 if there is none.

    All ranks on it end up faster than the slowest is now, and with at most ``most`` homes.
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
    """Move the experts of the chain that ends in slot ``end``, the last one first."""
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
    """Move homes, while that makes the slowest rank faster, with at most ``most_L`` on a rank.

    Parameters
    ----------
    serving_LS
        1 for the slot that serves an expert with load, 0 for all others, ``(L, S)``.

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
