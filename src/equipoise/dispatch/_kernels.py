"""Min-max dispatch, compiled. What it computes has plain twins in ``tests/reference/dispatch.py``.

A layer is a bipartite graph: an *edge* joins an expert to a rank that holds it, however many copies
that rank has. Edges are numbered expert by expert, ranks ascending. Only *shared* experts, those
on two ranks or more, leave a choice.

The optimum is found as a maximum flow with a rising level (discrete Newton): ranks above the level
push load along chains of shared experts to ranks below it. Where no chain leads on, the ranks that
were reached hold every copy of the experts that load them, so no split can bring them below their
mean; that mean is the next level. When no rank is above the level, the split is optimal and the
ranks reached last are the proof.

Everything is deterministic: fixed visiting order, the lowest index where values tie. Loads are
finite, non-negative, sum to less than 2**53 in a layer, and shapes fit: the callers have checked.
Workspace is allocated once a call and serves all its layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Differences of rank load that count as none, relative to the level. Rounding in some hundred
# updates is below it; all that it can leave unbalanced, R times as much, is far below 1e-9.
ROUNDING = 1e-13

# Of the starting split only its quality depends on these, and with it the time; measured on real
# windows of 256 experts, where 2 sweeps leave the median layer without a single chain to push.
SWEEPS = 2
NEARLY_BUSIEST = 0.999

_compiled = njit(cache=True, nogil=True)


class Graph(NamedTuple):
    """Which rank holds which expert in one layer, and the load that flows between them."""

    first_edge: Ints  # (E + 1,): edges of expert e are first_edge[e] ... first_edge[e + 1] - 1
    rank: Ints  # (S,): rank of each edge
    expert: Ints  # (S,): expert of each edge
    copies: Ints  # (S,): slots behind each edge
    edge_of_slot: Ints  # (S,)
    first_shared: Ints  # (R + 1,): as first_edge, for ranks and into shared_edge
    shared_edge: Ints  # (S,): edges of shared experts, rank by rank
    flow: Floats  # (S,): load on each edge
    load: Floats  # (R,): load of each rank


class Search(NamedTuple):
    """State of a breadth-first search over ranks."""

    queue: Ints  # (R,)
    seen: Bools  # (R,)
    into: Ints  # (R,): the edge by which a rank was reached; -1 for a start
    out_of: Ints  # (E,): the edge by which an expert was reached; -1 while it was not


@_compiled
def _workspace(num_experts: int, num_slots: int, num_ranks: int) -> tuple[Graph, Search]:
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
    )
    search = Search(
        np.empty(num_ranks, np.int64),
        np.empty(num_ranks, np.bool_),
        np.empty(num_ranks, np.int64),
        np.empty(num_experts, np.int64),
    )
    return graph, search


@_compiled
def _connect(slots: Ints, g: Graph, newest: Ints) -> None:
    """Build the graph of a layer from its slots; ``newest`` is scratch, ``(E,)``."""
    num_ranks = g.load.size
    slots_per_rank = slots.size // num_ranks
    g.first_edge[:] = 0
    newest[:] = -1  # the last rank seen to hold each expert
    for s in range(slots.size):
        e, r = slots[s], s // slots_per_rank
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
    """Share an expert's load anew over its ranks, filling them to a common level as water does."""
    total = amount
    lightest = lo
    for k in range(lo, hi):
        g.load[g.rank[k]] -= g.flow[k]
        total += g.load[g.rank[k]]
        if g.load[g.rank[k]] < g.load[g.rank[lightest]]:
            lightest = k
    num = hi - lo
    level = total / num
    while True:  # ranks above the level take nothing, and without them it is lower
        total, num_below = amount, 0
        for k in range(lo, hi):
            if g.load[g.rank[k]] < level:
                total += g.load[g.rank[k]]
                num_below += 1
        if num_below == 0 or num_below >= num:  # none or more only by rounding
            break
        num = num_below
        level = total / num
    for k in range(lo, hi):
        g.flow[k] = min(amount, max(0.0, level - g.load[g.rank[k]]))
        amount -= g.flow[k]
    g.flow[lightest] += amount  # what rounding left over: no load is lost
    for k in range(lo, hi):
        g.load[g.rank[k]] += g.flow[k]


@_compiled
def _fill(load: Floats, g: Graph) -> None:
    """A good first split: every shared expert poured in turn, twice."""
    g.load[:] = 0.0
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        if hi - lo == 1:
            g.flow[lo] = load[e]
            g.load[g.rank[lo]] += load[e]
        else:
            g.flow[lo:hi] = 0.0
    for _ in range(SWEEPS):
        for e in range(load.size):
            lo, hi = g.first_edge[e], g.first_edge[e + 1]
            if hi - lo > 1:
                _pour(load[e], lo, hi, g)


@_compiled
def _reach(above: float, below: float, least: float, g: Graph, s: Search) -> tuple[int, int]:
    """Search, breadth first, along chains of load that can move, from ranks over ``above``.

    A chain leads from a rank to its shared experts with flow over ``least`` and on to all their
    ranks.

    Returns
    -------
    The first rank met whose load is under ``below``, or -1; the number of ranks in ``s.queue``.
    """
    tail = 0
    for r in range(g.load.size):
        s.seen[r] = g.load[r] > above
        if s.seen[r]:
            s.into[r] = -1
            s.queue[tail] = r
            tail += 1
    if tail == 0:
        return -1, 0
    s.out_of[:] = -1
    head = 0
    while head < tail:
        start = s.queue[head]
        head += 1
        for i in range(g.first_shared[start], g.first_shared[start + 1]):
            k = g.shared_edge[i]
            e = g.expert[k]
            if s.out_of[e] >= 0 or g.flow[k] <= least:
                continue
            s.out_of[e] = k
            for j in range(g.first_edge[e], g.first_edge[e + 1]):
                r = g.rank[j]
                if s.seen[r]:
                    continue
                s.seen[r] = True
                s.into[r] = j
                s.queue[tail] = r
                tail += 1
                if g.load[r] < below:
                    return r, tail
    return -1, tail


@_compiled
def _push(target: int, level: float, g: Graph, s: Search) -> None:
    """Move load along the chain found to ``target``, as much as its narrowest place lets pass."""
    amount = level - g.load[target]
    r = target
    while s.into[r] >= 0:
        k = s.out_of[g.expert[s.into[r]]]
        amount = min(amount, g.flow[k])
        r = g.rank[k]
    amount = min(amount, g.load[r] - level)
    g.load[r] -= amount
    g.load[target] += amount
    r = target
    while s.into[r] >= 0:
        j = s.into[r]
        k = s.out_of[g.expert[j]]
        g.flow[j] += amount
        g.flow[k] -= amount
        r = g.rank[k]


@_compiled
def _mean(ranks: Ints, g: Graph, whole: bool) -> float:
    """Mean load of some ranks; the next whole number if ``whole``, exactly."""
    total = 0.0
    for r in ranks:
        total += g.load[r]
    return float(-(-int(total) // ranks.size)) if whole else total / ranks.size


@_compiled
def _relieve(level: float, whole: bool, bottleneck: Bools, g: Graph, s: Search) -> None:
    """Bring every rank down to the level, raising the level where that cannot be.

    With ``whole``, flows and levels are whole numbers and the arithmetic is exact. ``bottleneck``
    ``(R,)`` receives the ranks that raised the level last; it is left alone if nothing did.
    """
    while True:
        tolerance = 0.0 if whole else level * ROUNDING
        target, num = _reach(level + tolerance, level - tolerance, tolerance, g, s)
        if target >= 0:
            _push(target, level, g, s)
            continue
        if num == 0:
            return
        raised = _mean(s.queue[:num], g, whole)
        if raised <= level:  # the ranks reached are level up to rounding
            return
        level = raised
        bottleneck[:] = s.seen


@_compiled
def _solve(load: Floats, bottleneck: Bools, g: Graph, s: Search) -> None:
    """An optimal split of one layer, in ``g``; the ranks that prove it in ``bottleneck``."""
    _fill(load, g)
    level = g.load.sum() / g.load.size
    bottleneck[:] = True
    # Chains from the busiest ranks end in a set of ranks whose mean is already a valid level, and
    # mostly the final one. Without it time goes into chains that a later level makes pointless.
    _, num = _reach(g.load.max() * NEARLY_BUSIEST, -1.0, 0.0, g, s)
    if num:
        mean = _mean(s.queue[:num], g, False)
        if mean > level:
            level = mean
            bottleneck[:] = s.seen
    _relieve(level, False, bottleneck, g, s)


@_compiled
def minmax(load_LE: Floats, slots_LS: Ints, num_ranks: int) -> tuple[Floats, Bools]:
    """The split with the least peak.

    Copies of an expert on one rank get equal parts of what the rank gets.

    Returns
    -------
    Load of each slot, ``(L, S)``; ranks whose mean load is the least peak there can be, ``(L, R)``.
    """
    (L, E), S = load_LE.shape, slots_LS.shape[1]
    g, s = _workspace(E, S, num_ranks)
    share_LS = np.empty((L, S))
    bottleneck_LR = np.empty((L, num_ranks), np.bool_)
    for layer in range(L):
        _connect(slots_LS[layer], g, s.out_of)
        _solve(load_LE[layer], bottleneck_LR[layer], g, s)
        for i in range(S):
            k = g.edge_of_slot[i]
            share_LS[layer, i] = g.flow[k] / g.copies[k]
    return share_LS, bottleneck_LR


@_compiled
def minmax_peaks(load_TLE: Floats, slots_LS: Ints, num_ranks: int) -> Floats:
    """The least peak of every step and layer, ``(T, L)``."""
    (T, L, E), S = load_TLE.shape, slots_LS.shape[1]
    g, s = _workspace(E, S, num_ranks)
    bottleneck = np.empty(num_ranks, np.bool_)
    peak_TL = np.empty((T, L))
    for layer in range(L):
        _connect(slots_LS[layer], g, s.out_of)
        for step in range(T):
            _solve(load_TLE[step, layer], bottleneck, g, s)
            peak_TL[step, layer] = g.load.max()
    return peak_TL


@_compiled
def _round(load: Floats, g: Graph) -> None:
    """Make the flows whole: rounded down, then what is missing token by token to lighter ranks."""
    g.load[:] = 0.0
    for e in range(load.size):
        missing = load[e]  # a limit too: flows of huge loads may sum to more, by rounding
        for k in range(g.first_edge[e], g.first_edge[e + 1]):
            g.flow[k] = min(np.floor(g.flow[k]), missing)
            g.load[g.rank[k]] += g.flow[k]
            missing -= g.flow[k]
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        for _ in range(int(load[e] - g.flow[lo:hi].sum())):
            best = lo
            for k in range(lo + 1, hi):
                if g.load[g.rank[k]] < g.load[g.rank[best]]:
                    best = k
            g.flow[best] += 1.0
            g.load[g.rank[best]] += 1.0


@_compiled
def minmax_quotas(
    load_LE: Floats, share_LS: Floats, level_L: Floats, slots_LS: Ints, num_ranks: int
) -> Ints:
    """Whole-number shares with the least peak a whole-number split can have.

    Loads are whole; ``level_L`` is whole and at most that peak. Starts from ``share_LS``, so that
    little has to move. Of copies on one rank the lower slots get the odd tokens.

    Returns
    -------
    ``(L, S)`` int64; over the slots of an expert they sum to its load.
    """
    (L, E), S = load_LE.shape, slots_LS.shape[1]
    g, s = _workspace(E, S, num_ranks)
    unused = np.empty(num_ranks, np.bool_)
    quota_LS = np.empty((L, S), np.int64)
    for layer in range(L):
        _connect(slots_LS[layer], g, s.out_of)
        g.flow[:] = 0.0
        for i in range(S):
            g.flow[g.edge_of_slot[i]] += share_LS[layer, i]
        _round(load_LE[layer], g)
        _relieve(level_L[layer], True, unused, g, s)
        for i in range(S):
            k = g.edge_of_slot[i]
            quota = int(g.flow[k]) // g.copies[k]
            if quota * g.copies[k] < g.flow[k]:
                quota += 1
            quota_LS[layer, i] = quota
            g.flow[k] -= quota
            g.copies[k] -= 1
    return quota_LS
