"""Min-max dispatch, compiled. What it computes has plain twins in ``tests/reference/dispatch.py``.

A layer is a bipartite graph: an *edge* joins an expert to a rank that holds it, however many copies
that rank has. Edges are numbered expert by expert, ranks ascending. Only *shared* experts, those
on two ranks or more, leave a choice.

The optimum is found as a maximum flow with a rising level (discrete Newton): ranks above their
capacity, the level times their speed, push load along chains of shared experts to ranks below
theirs. Where no chain leads on, the ranks that were reached hold every copy of the experts that
load them, so no split can bring them below their load over their speed; that is the next level.
When no rank is above its capacity, the split is optimal and the ranks reached last are the proof.

Everything is deterministic: fixed visiting order, the lowest index where values tie. Loads are
finite, non-negative, sum to less than 2**53 in a layer, and shapes fit: the callers have checked.
Workspace is allocated once a call and serves all its layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Differences of rank load that count as none, relative to the level. Rounding in some hundred
# updates is below it; all that it can leave unbalanced, R times as much, is far below 1e-9.
ROUNDING = 1e-13

# Where speeds differ, load that only passes through a slow rank can be far more than it carries,
# and rounding with it. Relative peak above the proven one from which that is mended, and how often.
MENDED = 1e-12
MENDINGS = 8

# Of the starting split only its quality depends on these, and with it the time; measured on real
# windows of 256 experts, where 2 sweeps leave the median layer without a single chain to push.
SWEEPS = 2
NEARLY_SLOWEST = 0.999

_compiled = njit(nogil=True)


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
    speed: Floats  # (R,)
    capacity: Floats  # (R,): what each rank may carry at the present level


class Search(NamedTuple):
    """State of a breadth-first search over ranks."""

    queue: Ints  # (R,)
    seen: Bools  # (R,)
    into: Ints  # (R,): the edge by which a rank was reached; -1 for a start
    out_of: Ints  # (E,): the edge by which an expert was reached; -1 while it was not
    untried: Ints  # (E,): the first of a reached expert's edges that was not followed yet


@_compiled
def _workspace(num_experts: int, num_slots: int, speed: Floats) -> tuple[Graph, Search]:
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
    """Build the graph of a layer from its slots; ``newest`` is scratch, ``(E,)``."""
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
    """Share an expert's load again over its ranks, filling them to a common level as water does."""
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
    while True:  # ranks above the level take nothing, and without them it is lower
        total, below, num_below = amount, 0.0, 0
        for k in range(lo, hi):
            r = g.rank[k]
            if g.load[r] < level * g.speed[r]:
                total += g.load[r]
                below += g.speed[r]
                num_below += 1
        if num_below == 0 or num_below >= num:  # none or more only by rounding
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
    """Pour every shared expert in turn."""
    for e in range(load.size):
        lo, hi = g.first_edge[e], g.first_edge[e + 1]
        if hi - lo > 1:
            _pour(load[e], lo, hi, g)


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
        _sweep(load, g)


@_compiled
def _refill(load: Floats, g: Graph) -> None:
    """A first split near that of the step before: its proportions, then one sweep."""
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
    """Begin a search at the ranks over their capacity; how many there are in ``s.queue``.

    Less than the tolerance, relative to capacities, counts as nothing.
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
    """Go on with a search, breadth first, along chains of load that can move.

    A chain leads from a rank to its shared experts with flow and on to all their ranks. Ranks in
    ``s.queue`` before ``head`` are done with; there are ``tail``.

    Returns
    -------
    The first rank met below its capacity, or -1, and always if not to ``find``; ``head``; ``tail``.
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
    return bool(g.load[r] < g.capacity[r] - g.capacity[r] * tolerance)


@_compiled
def _push(target: int, tolerance: float, g: Graph, s: Search) -> bool:
    """Move load along the chain found to ``target``, as much as its narrowest place lets pass.

    Returns
    -------
    Whether a new search would do all as the present one did, but for ``target``, now full.
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
    """Give each rank the capacity it has at that level; ``whole`` loads must not take longer."""
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
    """The least level at which some ranks can carry what they carry together.

    With ``whole`` loads the least whose whole capacities suffice; capacities are overwritten.
    """
    total, speed = 0.0, 0.0
    for r in ranks:
        total += g.load[r]
        speed += g.speed[r]
    level = total / speed
    if not whole:
        return level
    missing = total
    for r in ranks:  # too little, whatever rounding does; each step below is the next least level
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
    """Bring every rank down to the level, raising the level where that cannot be.

    With ``whole``, flows and capacities are whole numbers and the arithmetic is exact.
    ``bottleneck`` ``(R,)`` receives the ranks that raised the level last; it is left alone if
    nothing did.
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
            if raised <= level:  # the ranks reached are level up to rounding
                return
            level = raised
            _set_level(level, whole, g)
            bottleneck[:] = s.seen
        head, tail = 0, _begin(tolerance, g, s)


@_compiled
def _slowest(g: Graph) -> float:
    """Load over speed of the rank where it is most."""
    most = 0.0
    for r in range(g.load.size):
        most = max(most, g.load[r] / g.speed[r])
    return most


@_compiled
def _proven_level(load: Floats, bottleneck: Bools, g: Graph) -> float:
    """Load of the experts that are on these ranks only, over the speed of the ranks."""
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
    """Remove what rounding has left on ranks: add up their flows and relieve them once more.

    Other ranks take a little more than the proven level, which for a fast one is far more than a
    slow one has too much.
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
    """Make the split in ``g`` optimal; the ranks that prove it in ``bottleneck``."""
    level = g.load.sum() / g.speed.sum()
    bottleneck[:] = True
    # Chains from the slowest ranks end in a set of ranks whose level is already valid, and mostly
    # the final one. Without it time goes into chains that a later level makes pointless.
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
    """The split whose largest load over speed is the least.

    Copies of an expert on one rank get equal parts of what the rank gets.

    Returns
    -------
    Load of each slot, ``(L, S)``; ranks whose load over speed, taken together, is the least peak
    there can be, ``(L, R)``.
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
    """The least peak of every step and layer, ``(T, L)``, as load over speed.

    Each step starts from the split of the one before, which may change the last digit of its peak
    but never the optimum. Splits that are used start afresh: they must not depend on the past.
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
    """Make the flows whole: rounded down, then what is missing one by one to ranks soonest done.

    ``done`` is scratch, ``(S,)``: when the rank of an edge would be done with one more.
    """
    g.load[:] = 0.0
    for e in range(load.size):
        missing = load[e]  # a limit too: flows of huge loads may sum to more, by rounding
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
    """A level that no whole split is below: the proven one, rounded up where ranks are equal."""
    level = _proven_level(load, bottleneck, g)
    if g.speed.min() == g.speed.max() == 1.0:
        return float(np.ceil(level))
    return float(level * (1.0 - ROUNDING))


@_compiled
def minmax_quotas(
    load_LE: Floats, share_LS: Floats, bottleneck_LR: Bools, slots_LS: Ints, speed: Floats
) -> Ints:
    """Whole-number shares with the least peak a whole-number split can have.

    Loads are whole. Starts from ``share_LS`` and from what ``bottleneck_LR`` proves of the peak, so
    that little has to move. Of copies on one rank the lower slots get the odd tokens.

    Returns
    -------
    ``(L, S)`` int64; over the slots of an expert they sum to its load.
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
    """Share whole flows over the copies on each rank; flows and copies are used up."""
    for i in range(quota.size):
        k = g.edge_of_slot[i]
        part = int(g.flow[k]) // g.copies[k]
        if part * g.copies[k] < g.flow[k]:
            part += 1
        quota[i] = part
        g.flow[k] -= part
        g.copies[k] -= 1
