"""Min-max dispatch, compiled. Plain twins: ``tests/reference/dispatch.py``.

A layer is a bipartite graph. An *edge* joins an expert to a rank that holds it, whatever the number
of copies on that rank. Edges are numbered expert by expert, with ranks ascending. Only *shared*
experts, those on two ranks or more, leave a choice.

The optimum is found as a maximum flow with a rising level (discrete Newton). A rank's capacity is
the level times its speed. Ranks above their capacity push load along chains of shared experts to
ranks below theirs. Where no chain leads on, the ranks reached hold every copy of the experts that
load them. No split can then bring their mean load over speed any lower, so that mean is the next
level. When no rank is above its capacity, the split is optimal, and the ranks reached last prove
it.

Results are deterministic: the visiting order is fixed and the lowest index wins a tie. The callers
have checked that loads are finite, non-negative and sum to less than 2**53 in a layer, and that
shapes fit. Workspace is allocated once a call and serves all its layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Relative differences of rank load below this count as none. Rounding in some hundred updates stays
# below it, and R times this tolerance is still far below 1e-9.
ROUNDING = 1e-13

# Where speeds differ, far more load can pass through a slow rank than it carries, and the rounding
# of that load stays on it. Such a peak is mended if it is above the proven one by this share.
MENDED = 1e-12
MENDINGS = 8  # number of times

# These set how good the starting split is, and so the time of the solution, but not its result.
# Measured on real windows of 256 experts: after 2 sweeps the median layer has no chain to push.
SWEEPS = 2
NEARLY_SLOWEST = 0.999  # share of the slowest rank's time from which a rank starts a first search

_compiled = njit(nogil=True)


class Graph(NamedTuple):
    """Ranks that hold each expert of one layer, and the load that flows over each edge."""

    first_edge: Ints  # (E + 1,): edges of expert e are first_edge[e] ... first_edge[e + 1] - 1
    rank: Ints  # (S,): rank of each edge
    expert: Ints  # (S,): expert of each edge
    copies: Ints  # (S,): number of slots of each edge
    edge_of_slot: Ints  # (S,)
    first_shared: Ints  # (R + 1,): rank r has shared_edge[first_shared[r]] and those after it
    shared_edge: Ints  # (S,): edges of shared experts, rank by rank
    flow: Floats  # (S,): load on each edge
    load: Floats  # (R,): load of each rank
    speed: Floats  # (R,): relative speed of each rank
    capacity: Floats  # (R,): load that each rank may carry at the present level


class Search(NamedTuple):
    """State of a breadth-first search over ranks."""

    queue: Ints  # (R,): ranks in the order in which they were reached
    seen: Bools  # (R,): whether a rank was reached
    into: Ints  # (R,): the edge by which a rank was reached; -1 for a start
    out_of: Ints  # (E,): the edge by which an expert was reached; -1 while it was not
    untried: Ints  # (E,): the first of a reached expert's edges that was not followed yet


@_compiled
def _workspace(num_experts: int, num_slots: int, speed: Floats) -> tuple[Graph, Search]:
    """Allocate a graph and a search without filling them; ``speed`` ``(R,)`` is not copied."""
    num_ranks = speed.size
    graph = Graph(
        np.empty(num_experts + 1, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_ranks + 1, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.float64),
        np.empty(num_ranks, np.float64),
        speed,
        np.empty(num_ranks, np.float64),
    )
    search = Search(
        np.empty(num_ranks, np.int64),
        np.empty(num_ranks, np.bool_),
        np.empty(num_ranks, np.int64),
        np.empty(num_experts, np.int64),
        np.empty(num_experts, np.int64),
    )
    return graph, search


@_compiled
def _connect(slots: Ints, g: Graph, newest: Ints) -> None:
    """Build the graph of a layer from its slots ``(S,)``; ``newest`` ``(E,)`` is scratch."""
    num_ranks = g.load.size
    slots_per_rank = slots.size // num_ranks
    g.first_edge[:] = 0
    newest[:] = -1  # the last rank seen to hold each expert
    for r in range(num_ranks):
        for s in range(r * slots_per_rank, (r + 1) * slots_per_rank):
            e = slots[s]
            if newest[e] != r:
                newest[e] = r
                g.first_edge[e + 1] += 1
    for e in range(newest.size):
        newest[e] = g.first_edge[e] - 1  # from here on: the last edge made for each expert
        g.first_edge[e + 1] += g.first_edge[e]
    num_shared = 0
    for r in range(num_ranks):
        g.first_shared[r] = num_shared
        for s in range(r * slots_per_rank, (r + 1) * slots_per_rank):
            e = slots[s]
            k = newest[e]
            if k >= g.first_edge[e] and g.rank[k] == r:
                g.copies[k] += 1
            else:
                k += 1
                newest[e] = k
                g.rank[k] = r
                g.expert[k] = e
                g.copies[k] = 1
                if g.first_edge[e + 1] - g.first_edge[e] > 1:
                    g.shared_edge[num_shared] = k
                    num_shared += 1
            g.edge_of_slot[s] = k
    g.first_shared[num_ranks] = num_shared


@_compiled
def _pour(amount: float, lo: int, hi: int, g: Graph) -> None:
    """Share an expert's load ``amount`` over its ranks again, filling the least loaded ones first.

    The ranks are filled to a common level of load over speed, as water would. The expert's edges
    are ``lo`` to ``hi - 1``; their flow and the ranks' loads change in place.
    """
    total, speed = amount, 0.0
    lightest = lo
    for k in range(lo, hi):
        r = g.rank[k]
        g.load[r] -= g.flow[k]
        total += g.load[r]
        speed += g.speed[r]
        if g.load[r] < g.load[g.rank[lightest]]:
            lightest = k
    num = hi - lo
    level = total / speed
    while True:  # ranks above the level take nothing, and the level falls without them
        total, below, num_below = amount, 0.0, 0
        for k in range(lo, hi):
            r = g.rank[k]
            if g.load[r] < level * g.speed[r]:
                total += g.load[r]
                below += g.speed[r]
                num_below += 1
        if num_below == 0 or num_below >= num:  # 0, or more than before, only through rounding
            break
        speed = below
        num = num_below
        level = total / speed
    for k in range(lo, hi):
        r = g.rank[k]
        g.flow[k] = min(amount, max(0.0, level * g.speed[r] - g.load[r]))
        amount -= g.flow[k]
    g.flow[lightest] += amount  # what rounding left over: no load is lost
    for k in range(lo, hi):
        g.load[g.rank[k]] += g.flow[k]


@_compiled
def _sweep(load: Floats, g: Graph) -> None:
    """Pour every shared expert once, in turn; ``load`` is ``(E,)``."""
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        if hi - lo > 1:
            _pour(load[e], lo, hi, g)


@_compiled
def _fill(load: Floats, g: Graph) -> None:
    """Build a good first split in ``g``: every shared expert poured in turn, ``SWEEPS`` times."""
    g.load[:] = 0.0
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        if hi - lo == 1:
            g.flow[lo] = load[e]
            g.load[g.rank[lo]] += load[e]
        else:
            g.flow[lo:hi] = 0.0
    for _ in range(SWEEPS):
        _sweep(load, g)


@_compiled
def _refill(load: Floats, g: Graph) -> None:
    """Build a first split close to the one in ``g``: keep its proportions, then sweep once."""
    g.load[:] = 0.0
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        before = g.flow[lo:hi].sum()
        for k in range(lo, hi):
            part = g.flow[k] / before if before > 0.0 else 1.0 / (hi - lo)
            g.flow[k] = load[e] * part
            g.load[g.rank[k]] += g.flow[k]
    _sweep(load, g)


@_compiled
def _begin(tolerance: float, g: Graph, s: Search) -> int:
    """Start a search at the ranks above their capacity; return how many are in ``s.queue``.

    An excess below ``tolerance``, relative to the capacity, counts as none.
    """
    tail = 0
    for r in range(g.load.size):
        s.seen[r] = g.load[r] > g.capacity[r] + g.capacity[r] * tolerance
        if s.seen[r]:
            s.into[r] = -1
            s.queue[tail] = r
            tail += 1
    if tail > 0:
        s.out_of[:] = -1
    return tail


@_compiled
def _reach(
    head: int, tail: int, tolerance: float, find: bool, g: Graph, s: Search
) -> tuple[int, int, int]:
    """Continue a search, breadth first, along chains of load that can move.

    A chain leads from a rank to its shared experts with flow, and from these to all their ranks.
    The queue holds ``tail`` ranks; those before ``head`` are done. With ``find`` the search stops
    at the first rank below its capacity.

    Returns
    -------
    That rank, or -1 if there is none or without ``find``; the new ``head``; the new ``tail``.
    """
    while head < tail:
        start = s.queue[head]
        least = g.capacity[start] * tolerance
        for i in range(g.first_shared[start], g.first_shared[start + 1]):
            k = g.shared_edge[i]
            e = g.expert[k]
            if s.out_of[e] < 0 and g.flow[k] > least:
                s.out_of[e] = k
                s.untried[e] = g.first_edge[e]
            if s.out_of[e] != k:
                continue
            for j in range(s.untried[e], g.first_edge[e + 1]):
                r = g.rank[j]
                if s.seen[r]:
                    continue
                s.seen[r] = True
                s.into[r] = j
                s.queue[tail] = r
                tail += 1
                if find and _has_room(r, tolerance, g):
                    s.untried[e] = j + 1
                    return r, head, tail
            s.untried[e] = g.first_edge[e + 1]
        head += 1
    return -1, head, tail


@_compiled
def _has_room(r: int, tolerance: float, g: Graph) -> bool:
    """Return whether rank ``r`` is below its capacity by more than the tolerance."""
    return bool(g.load[r] < g.capacity[r] - g.capacity[r] * tolerance)


@_compiled
def _push(target: int, tolerance: float, g: Graph, s: Search) -> bool:
    """Move load along the chain found to rank ``target``, as much as its narrowest edge allows.

    Returns
    -------
    Whether the present search can continue: a new one would find the same chains, except that
    ``target`` is now full.
    """
    amount = g.capacity[target] - g.load[target]
    r = target
    while s.into[r] >= 0:
        k = s.out_of[g.expert[s.into[r]]]
        amount = min(amount, g.flow[k])
        r = g.rank[k]
    amount = min(amount, g.load[r] - g.capacity[r])
    g.load[r] -= amount
    g.load[target] += amount
    same = not _has_room(target, tolerance, g)
    same &= g.load[r] > g.capacity[r] + g.capacity[r] * tolerance
    r = target
    while s.into[r] >= 0:
        j = s.into[r]
        k = s.out_of[g.expert[j]]
        g.flow[j] += amount
        g.flow[k] -= amount
        r = g.rank[k]
        same &= g.flow[k] > g.capacity[r] * tolerance
    return bool(same)


@_compiled
def _set_level(level: float, whole: bool, g: Graph) -> None:
    """Set the capacity of each rank: ``level`` times its speed.

    With ``whole`` it is the largest whole load that takes the rank no longer than ``level``.
    """
    for r in range(g.load.size):
        capacity = level * g.speed[r]
        if whole:
            capacity = np.floor(capacity)
            if (capacity + 1.0) / g.speed[r] <= level:
                capacity += 1.0
            elif capacity / g.speed[r] > level:
                capacity -= 1.0
        g.capacity[r] = capacity


@_compiled
def _level_of(ranks: Ints, whole: bool, g: Graph) -> float:
    """Return the least level at which the listed ranks can carry their present load together.

    With ``whole`` it is the least level whose whole capacities suffice; ``g.capacity`` is
    overwritten.
    """
    total, speed = 0.0, 0.0
    for r in ranks:
        total += g.load[r]
        speed += g.speed[r]
    level = total / speed
    if not whole:
        return level
    missing = total
    for r in ranks:  # start surely too low; each step below goes to the next higher level
        g.capacity[r] = max(0.0, np.floor(level * g.speed[r]) - 1.0)
        missing -= g.capacity[r]
    while missing > 0.0:
        best = ranks[0]
        for r in ranks:
            if (g.capacity[r] + 1.0) / g.speed[r] < (g.capacity[best] + 1.0) / g.speed[best]:
                best = r
        g.capacity[best] += 1.0
        level = g.capacity[best] / g.speed[best]
        missing -= 1.0
    return level


@_compiled
def _relieve(level: float, whole: bool, bottleneck: Bools, g: Graph, s: Search) -> None:
    """Bring every rank down to ``level``; raise the level where that is impossible.

    With ``whole``, flows and capacities are whole numbers and the arithmetic is exact.
    ``bottleneck`` ``(R,)`` receives the ranks that last raised the level; it is unchanged if none
    did.
    """
    tolerance = 0.0 if whole else ROUNDING
    _set_level(level, whole, g)
    head, tail = 0, _begin(tolerance, g, s)
    while tail > 0:
        target, head, tail = _reach(head, tail, tolerance, True, g, s)
        if target >= 0:
            if _push(target, tolerance, g, s):
                continue
        else:
            raised = _level_of(s.queue[:tail], whole, g)
            if raised <= level:  # the ranks reached are at the level, up to rounding
                return
            level = raised
            _set_level(level, whole, g)
            bottleneck[:] = s.seen
        head, tail = 0, _begin(tolerance, g, s)


@_compiled
def _slowest(g: Graph) -> float:
    """Return the largest load over speed of any rank."""
    most = 0.0
    for r in range(g.load.size):
        most = max(most, g.load[r] / g.speed[r])
    return most


@_compiled
def _proven_level(load: Floats, bottleneck: Bools, g: Graph) -> float:
    """Return the load of the experts that only ``bottleneck`` ranks hold, over those ranks' speed.

    No split has a peak below it. ``load`` is ``(E,)`` and ``bottleneck`` ``(R,)``.
    """
    total, speed = 0.0, 0.0
    for e in range(load.size):
        confined = True
        for k in range(g.first_edge[e], g.first_edge[e + 1]):
            confined = confined and bottleneck[g.rank[k]]
        if confined:
            total += load[e]
    for r in range(bottleneck.size):
        if bottleneck[r]:
            speed += g.speed[r]
    return total / speed


@_compiled
def _mend(load: Floats, bottleneck: Bools, g: Graph, s: Search) -> None:
    """Remove excess that rounding has left on ranks: sum their flows and relieve them again.

    The level is raised by half of ``MENDED``: for a fast rank that is far more load than rounding
    has left on a slow one.
    """
    for _ in range(MENDINGS):
        g.load[:] = 0.0
        for k in range(g.first_edge[-1]):
            g.load[g.rank[k]] += g.flow[k]
        level = _proven_level(load, bottleneck, g)
        if _slowest(g) <= level * (1.0 + MENDED):
            return
        _relieve(level * (1.0 + MENDED / 2.0), False, bottleneck, g, s)


@_compiled
def _solve(load: Floats, bottleneck: Bools, g: Graph, s: Search) -> None:
    """Make the split in ``g`` optimal; ``bottleneck`` ``(R,)`` receives the ranks that prove it."""
    level = g.load.sum() / g.speed.sum()
    bottleneck[:] = True
    # Chains from the slowest ranks end in a set of ranks whose level is valid, and usually final.
    # Starting without it wastes time on chains that a later, higher level makes unnecessary.
    _set_level(_slowest(g) * NEARLY_SLOWEST, False, g)
    num = _begin(0.0, g, s)
    if num:
        _, _, num = _reach(0, num, 0.0, False, g, s)
        reached = _level_of(s.queue[:num], False, g)
        if reached > level:
            level = reached
            bottleneck[:] = s.seen
    _relieve(level, False, bottleneck, g, s)
    if g.speed.min() < g.speed.max():
        _mend(load, bottleneck, g, s)


@_compiled
def minmax(load_LE: Floats, slots_LS: Ints, speed: Floats) -> tuple[Floats, Bools]:
    """Split each layer's load so that the largest load over speed of any rank is least.

    Copies of an expert on one rank get equal parts of the rank's share.

    Parameters
    ----------
    load_LE
        Assignments of each expert, ``(L, E)``; not changed.
    slots_LS
        Expert of each slot, ``(L, S)``; not changed.
    speed
        Relative speed of each rank, ``(R,)``.

    Returns
    -------
    Load of each slot, ``(L, S)``, and the ranks that prove the peak, ``(L, R)``: their summed load
    over their summed speed is the least peak there can be.
    """
    (L, E), S = load_LE.shape, slots_LS.shape[1]
    g, s = _workspace(E, S, speed)
    share_LS = np.empty((L, S))
    bottleneck_LR = np.empty((L, speed.size), np.bool_)
    for layer in range(L):
        _connect(slots_LS[layer], g, s.out_of)
        _fill(load_LE[layer], g)
        _solve(load_LE[layer], bottleneck_LR[layer], g, s)
        for i in range(S):
            k = g.edge_of_slot[i]
            share_LS[layer, i] = g.flow[k] / g.copies[k]
    return share_LS, bottleneck_LR


@_compiled
def minmax_peaks(load_TLE: Floats, slots_LS: Ints, speed: Floats) -> Floats:
    """Return the least peak of every step and layer, ``(T, L)``, as load over speed.

    Each step starts from the split of the step before. That may change the last digit of a peak but
    never the optimum. Splits that are put to use start from scratch instead: they must not depend
    on the past. Arguments are as in ``minmax``, with loads ``(T, L, E)``.
    """
    (T, L, E), S = load_TLE.shape, slots_LS.shape[1]
    g, s = _workspace(E, S, speed)
    bottleneck = np.empty(speed.size, np.bool_)
    peak_TL = np.empty((T, L))
    for layer in range(L):
        _connect(slots_LS[layer], g, s.out_of)
        for step in range(T):
            if step == 0:
                _fill(load_TLE[step, layer], g)
            else:
                _refill(load_TLE[step, layer], g)
            _solve(load_TLE[step, layer], bottleneck, g, s)
            peak_TL[step, layer] = _slowest(g)
    return peak_TL


@_compiled
def _round(load: Floats, done: Floats, g: Graph) -> None:
    """Make the flows in ``g`` whole: round down, then add what is missing, soonest rank first.

    ``load`` ``(E,)`` is whole. ``done`` ``(S,)`` is scratch: the time at which an edge's rank would
    finish one more assignment.
    """
    g.load[:] = 0.0
    for e in range(load.size):
        missing = load[e]  # also limits the flows, which rounding may make larger than a huge load
        for k in range(g.first_edge[e], g.first_edge[e + 1]):
            g.flow[k] = min(np.floor(g.flow[k]), missing)
            g.load[g.rank[k]] += g.flow[k]
            missing -= g.flow[k]
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        missing = int(load[e] - g.flow[lo:hi].sum())
        if missing == 0:
            continue
        for k in range(lo, hi):
            done[k] = (g.load[g.rank[k]] + 1.0) / g.speed[g.rank[k]]
        for _ in range(missing):
            best = lo
            for k in range(lo + 1, hi):
                best = k if done[k] < done[best] else best
            r = g.rank[best]
            g.flow[best] += 1.0
            g.load[r] += 1.0
            done[best] = (g.load[r] + 1.0) / g.speed[r]


@_compiled
def _whole_level(load: Floats, bottleneck: Bools, g: Graph) -> float:
    """Return a level that no whole split is below: the proven one, rounded up for equal speeds."""
    level = _proven_level(load, bottleneck, g)
    if g.speed.min() == g.speed.max() == 1.0:
        return float(np.ceil(level))
    return float(level * (1.0 - ROUNDING))


@_compiled
def minmax_quotas(
    load_LE: Floats, share_LS: Floats, bottleneck_LR: Bools, slots_LS: Ints, speed: Floats
) -> Ints:
    """Split whole loads into whole numbers so that the largest load over speed is least.

    It starts from the fractional optimum, so that little has to move. Where several copies of an
    expert are on one rank, the lower slots get the odd assignments.

    Parameters
    ----------
    load_LE
        Assignments of each expert, ``(L, E)``, whole; not changed.
    share_LS, bottleneck_LR
        Result of ``minmax`` for these loads.
    slots_LS
        Expert of each slot, ``(L, S)``.
    speed
        Relative speed of each rank, ``(R,)``.

    Returns
    -------
    Assignments of each slot, ``(L, S)`` int64; over the slots of an expert they sum to its load.
    """
    (L, E), S = load_LE.shape, slots_LS.shape[1]
    g, s = _workspace(E, S, speed)
    unused, done = np.empty(speed.size, np.bool_), np.empty(S)
    quota_LS = np.empty((L, S), np.int64)
    for layer in range(L):
        _connect(slots_LS[layer], g, s.out_of)
        g.flow[:] = 0.0
        for i in range(S):
            g.flow[g.edge_of_slot[i]] += share_LS[layer, i]
        _round(load_LE[layer], done, g)
        level = _whole_level(load_LE[layer], bottleneck_LR[layer], g)
        _relieve(level, True, unused, g, s)
        _deal(quota_LS[layer], g)
    return quota_LS


@_compiled
def _deal(quota: Ints, g: Graph) -> None:
    """Share whole flows over the copies on each rank; fills ``quota`` ``(S,)``.

    Uses up ``g.flow`` and ``g.copies``.
    """
    for i in range(quota.size):
        k = g.edge_of_slot[i]
        part = int(g.flow[k]) // g.copies[k]
        if part * g.copies[k] < g.flow[k]:
            part += 1
        quota[i] = part
        g.flow[k] -= part
        g.copies[k] -= 1
