"""Keeping assignments near their source, compiled. Plain twins in ``tests/reference/dispatch.py``.

An *edge* joins an expert to a rank that holds it; edges of one expert to ranks of one node form a
*group*. What flows over an edge and was on its rank already is kept there, what flows to a group
and was on its node is kept there. Of all whole flows with the least peak the one that keeps most
is a flow of minimum cost. It is found by successive shortest paths, all of one length at a time: in
the nearest flow of all, whatever the ranks then carry, load moves from ranks over their capacity to
others, first where that costs nothing, then where it costs least.

Deterministic: fixed visiting order, the lowest index where values tie. Loads are whole and sum to
less than 2**53 in a layer, nodes are consecutive ranks, and shapes fit: the callers have checked.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What it costs to take one assignment off its node, and off its rank. A chain of moves passes
# fewer than 2**32 experts, so whatever it saves on nodes is not worth a rank.
NODE = 1
RANK = 2**33
ENDLESS = 2**62
MOST_LOAD = 2.0**53  # of a layer

# Columns of ``Network.arc``, of ``Network.order`` and of ``Network.point``.
TAIL, HEAD, COST, EDGE = range(4)
ARC, END = range(2)
PRICE, EXCESS, NEXT = range(3)

_compiled = njit(nogil=True)


class Edges(NamedTuple):
    """Which rank holds which expert in one layer; edges expert by expert, ranks ascending."""

    listed: Ints  # (S,): slots, expert by expert, ascending
    first_edge: Ints  # (E + 1,): edges of expert e are first_edge[e] ... first_edge[e + 1] - 1
    start: Ints  # (S + 1,): slots of edge k are listed[start[k]] ... listed[start[k + 1] - 1]
    rank: Ints  # (S,)
    flow: Ints  # (S,)
    wanted: Ints  # (S,): a flow with the least peak, to start near


class Network(NamedTuple):
    """Moves that remain, as arcs between *points*: ranks, shared experts and groups of edges.

    Arcs come in pairs, ``a`` and ``a ^ 1``: what moves along one can move back along the other.
    Prices are such that no arc with room costs less than the difference between its ends.
    Loops take arrays out of the tuple first, as every look into it takes time, and what they look
    at most lies close together.
    """

    size: Ints  # (2,): points and arcs there are
    arc: Ints  # (A, 4): points at both ends, cost, and the edge whose flow it adds to or -1
    room: Ints  # (A,)
    first_arc: Ints  # (P + 1,): arcs out of point p are order[first_arc[p]] ...
    order: Ints  # (A, 2): arcs that cost the difference between their ends, by tail, with the head
    point: Ints  # (P, 3): price; load beyond the capacity of a rank; position in order of the first
    #   arc still worth trying
    level: Ints  # (P,): distance from the ranks with load beyond their capacity, in arcs, or -1
    onward: Ints  # (P,): the same where a chain may lead on to a rank with room, else -1
    queue: Ints  # (P,)
    chain: Ints  # (P,): arcs of the chain at hand


@_compiled
def _workspace(num_experts: int, num_slots: int, num_ranks: int) -> tuple[Edges, Network]:
    num_points, num_arcs = num_ranks + 2 * num_slots, 6 * num_slots
    edges = Edges(
        np.empty(num_slots, np.int64),
        np.empty(num_experts + 1, np.int64),
        np.empty(num_slots + 1, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
    )
    network = Network(
        np.empty(2, np.int64),
        np.empty((num_arcs, 4), np.int64),
        np.empty(num_arcs, np.int64),
        np.empty(num_points + 1, np.int64),
        np.empty((num_arcs, 2), np.int64),
        np.empty((num_points, 3), np.int64),
        np.empty(num_points, np.int64),
        np.empty(num_points, np.int64),
        np.empty(num_points, np.int64),
        np.empty(num_points, np.int64),
    )
    return edges, network


@_compiled
def _list_slots(slots: Ints, first: Ints, listed: Ints) -> None:
    """Slots of expert ``e``, ascending: ``listed[first[e]] ... listed[first[e + 1] - 1]``."""
    first[:] = 0
    for e in slots:
        first[e + 1] += 1
    for e in range(first.size - 1):
        first[e + 1] += first[e]
    for i in range(slots.size - 1, -1, -1):  # from each expert's end to its start
        first[slots[i] + 1] -= 1
        listed[first[slots[i] + 1]] = i
    first[:-1] = first[1:]
    first[-1] = slots.size


@_compiled
def _connect(slots: Ints, quota: Ints, num_ranks: int, x: Edges) -> None:
    """Find the edges of a layer and what its quotas want to flow over each."""
    per_rank = slots.size // num_ranks
    _list_slots(slots, x.first_edge, x.listed)
    num = 0
    for e in range(x.first_edge.size - 1):
        lo, hi = x.first_edge[e], x.first_edge[e + 1]
        x.first_edge[e] = num
        for p in range(lo, hi):
            i = x.listed[p]
            r = i // per_rank
            if p == lo or r != x.rank[num - 1]:
                x.start[num] = p
                x.rank[num] = r
                x.wanted[num] = 0
                num += 1
            x.wanted[num - 1] += quota[i]
    x.first_edge[-1] = num
    x.start[num] = slots.size


@_compiled
def _take_wanted(amount: int, lo: int, hi: int, flow: Ints, wanted: Ints) -> int:
    """Give edges what they lack of the wanted flow; what is left."""
    for k in range(lo, hi):
        part = min(amount, max(0, wanted[k] - flow[k]))
        flow[k] += part
        amount -= part
    return amount


@_compiled
def _end_of_group(first: int, hi: int, node_of_rank: Ints, rank: Ints) -> int:
    """The edge after the last one to the same node."""
    end = first + 1
    while end < hi and node_of_rank[rank[end]] == node_of_rank[rank[first]]:
        end += 1
    return end


@_compiled
def _stay(source_RE: Floats, on_node_NE: Floats, node_of_rank: Ints, x: Edges) -> None:
    """The nearest flow of each expert: on its own rank, else on its own node, else anywhere.

    Of those one near the wanted flow, so that little has to move.
    """
    first_edge, rank, flow, wanted = x.first_edge, x.rank, x.flow, x.wanted
    for e in range(first_edge.size - 1):
        lo, hi = first_edge[e], first_edge[e + 1]
        if hi - lo == 1:
            flow[lo] = wanted[lo]
            continue
        far = 0
        for k in range(lo, hi):
            flow[k] = int(source_RE[rank[k], e])
            far += wanted[k]
        first = lo
        while first < hi:
            end = _end_of_group(first, hi, node_of_rank, rank)
            on_node = int(on_node_NE[node_of_rank[rank[first]], e])
            left = on_node
            for k in range(first, end):
                left -= flow[k]
            left = _take_wanted(left, first, end, flow, wanted)
            flow[first] += left
            far -= on_node
            first = end
        _take_wanted(far, lo, hi, flow, wanted)  # takes all, as the wanted flow is the load


@_compiled
def _add_arcs(
    arc: Ints,
    room: Ints,
    num: int,
    tail: int,
    head: int,
    cost: int,
    ahead: int,
    back: int,
    edge: int,
) -> int:
    """A pair of arcs, unless nothing can move along either; how many there are then."""
    if ahead == 0 and back == 0:
        return num
    there, again = arc[num], arc[num + 1]
    there[TAIL], there[HEAD], there[COST], there[EDGE], room[num] = tail, head, cost, edge, ahead
    again[TAIL], again[HEAD], again[COST], again[EDGE], room[num + 1] = head, tail, -cost, -1, back
    return num + 2


@_compiled
def _add_experts(
    source_RE: Floats, on_node_NE: Floats, node_of_rank: Ints, x: Edges, n: Network
) -> None:
    """The arcs of each shared expert: to its groups, and from these to the ranks.

    What is kept already costs to move off again; all of it is, in the nearest flow.
    """
    first_edge, rank, flow, arc, room = x.first_edge, x.rank, x.flow, n.arc, n.room
    expert, num = n.size
    for e in range(first_edge.size - 1):
        first, hi = first_edge[e], first_edge[e + 1]
        if hi - first == 1:
            continue
        group = expert + 1
        while first < hi:
            end = _end_of_group(first, hi, node_of_rank, rank)
            on_node = int(on_node_NE[node_of_rank[rank[first]], e])
            if end - first == 1:  # most groups; without a point of their own chains are shorter
                r = rank[first]
                own = int(source_RE[r, e])
                num = _add_arcs(arc, room, num, expert, r, -RANK - NODE, 0, own, first)
                num = _add_arcs(arc, room, num, expert, r, -NODE, 0, on_node - own, first)
                num = _add_arcs(arc, room, num, expert, r, 0, ENDLESS, flow[first] - on_node, first)
            else:
                beyond = -on_node
                for k in range(first, end):
                    own = int(source_RE[rank[k], e])
                    num = _add_arcs(arc, room, num, group, rank[k], -RANK, 0, own, k)
                    num = _add_arcs(arc, room, num, group, rank[k], 0, ENDLESS, flow[k] - own, k)
                    beyond += flow[k]
                num = _add_arcs(arc, room, num, expert, group, -NODE, 0, on_node, -1)
                num = _add_arcs(arc, room, num, expert, group, 0, ENDLESS, beyond, -1)
                group += 1
            first = end
        expert = group
    n.size[:] = expert, num


@_compiled
def _arrange(n: Network) -> None:
    """List the arcs of each point that cost the difference between their ends.

    Load moves only along these while prices stay. Of parallel arcs, which have different costs, one
    at most is among them.
    """
    arc, point, first_arc, order = n.arc, n.point, n.first_arc, n.order
    num_points, num_arcs = n.size
    first_arc[: num_points + 1] = 0
    for a in range(0, num_arcs, 2):
        p, q = arc[a, TAIL], arc[a, HEAD]
        if point[p, PRICE] + arc[a, COST] == point[q, PRICE]:
            first_arc[p + 1] += 1
            first_arc[q + 1] += 1
    for p in range(num_points):
        first_arc[p + 1] += first_arc[p]
    num = first_arc[num_points]
    for a in range(num_arcs - 1, -1, -1):  # from each point's end to its start
        p, q = arc[a, TAIL], arc[a, HEAD]
        if point[p, PRICE] + arc[a, COST] == point[q, PRICE]:
            first_arc[p + 1] -= 1
            order[first_arc[p + 1], ARC] = a
            order[first_arc[p + 1], END] = q
    for p in range(num_points):
        first_arc[p] = first_arc[p + 1]
    first_arc[num_points] = num


@_compiled
def _search(num_ranks: int, n: Network) -> bool:
    """Find what ranks in excess can reach at these prices, breadth first; whether that is room.

    It ends with the last rank that has room: beyond are dead ends.
    """
    point, level, room, order, queue = n.point, n.level, n.room, n.order, n.queue
    first_arc = n.first_arc
    level[: n.size[0]] = -1
    tail, missing = 0, 0
    for r in range(num_ranks):
        missing += point[r, EXCESS] < 0
        if point[r, EXCESS] > 0:
            level[r] = 0
            queue[tail] = r
            tail += 1
    found, head = 0, 0
    while head < tail and found < missing:
        p = queue[head]
        head += 1
        for i in range(first_arc[p], first_arc[p + 1]):
            q = order[i, END]
            if level[q] < 0 and room[order[i, ARC]] > 0:
                level[q] = level[p] + 1
                queue[tail] = q
                tail += 1
                found += point[q, EXCESS] < 0
    return found > 0


@_compiled
def _look_back(num_ranks: int, n: Network) -> None:
    """Find from where chains lead on to ranks with room that the last search has found.

    Few points do, and to try the others one by one would take longer.
    """
    point, level, onward, room, order = n.point, n.level, n.onward, n.room, n.order
    first_arc, queue = n.first_arc, n.queue
    onward[: n.size[0]] = -1
    tail = 0
    for r in range(num_ranks):
        if level[r] > 0 and point[r, EXCESS] < 0:
            onward[r] = level[r]
            queue[tail] = r
            tail += 1
    head = 0
    while head < tail:
        q = queue[head]
        head += 1
        point[q, NEXT] = first_arc[q]
        if level[q] == 0:
            continue
        for i in range(first_arc[q], first_arc[q + 1]):
            p = order[i, END]
            if level[p] == level[q] - 1 and onward[p] < 0 and room[order[i, ARC] ^ 1] > 0:
                onward[p] = level[p]
                queue[tail] = p
                tail += 1


@_compiled
def _step(p: int, room: Ints, point: Ints, onward: Ints, order: Ints, end: int) -> int:
    """The arc by which a chain goes on from a point, away from the ranks in excess; -1 if none."""
    for i in range(point[p, NEXT], end):
        if onward[order[i, END]] == onward[p] + 1 and room[order[i, ARC]] > 0:
            point[p, NEXT] = i
            return int(order[i, ARC])
    point[p, NEXT] = end
    return -1


@_compiled
def _move(start: int, end: int, length: int, chain: Ints, room: Ints, point: Ints) -> int:
    """Move what passes along the chain; how much of the chain still has room."""
    amount = min(point[start, EXCESS], -point[end, EXCESS])
    for i in range(length):
        amount = min(amount, room[chain[i]])
    point[start, EXCESS] -= amount
    point[end, EXCESS] += amount
    still_open = length
    for i in range(length - 1, -1, -1):
        a = chain[i]
        room[a] -= amount
        room[a ^ 1] += amount
        if room[a] == 0:
            still_open = i
    return still_open


@_compiled
def _drain(start: int, n: Network) -> None:
    """Move a rank's excess along chains that the last search left open, until none is."""
    arc, point, onward, room, order = n.arc, n.point, n.onward, n.room, n.order
    first_arc, chain = n.first_arc, n.chain
    length, p = 0, start
    while point[start, EXCESS] > 0:
        if point[p, EXCESS] < 0:
            length = _move(start, p, length, chain, room, point)
            p = start if length == 0 else arc[chain[length - 1], HEAD]
            continue
        a = _step(p, room, point, onward, order, first_arc[p + 1])
        if a >= 0:
            chain[length] = a
            length += 1
            p = arc[a, HEAD]
        elif length == 0:
            return
        else:
            onward[p] = -1
            length -= 1
            p = arc[chain[length], TAIL]


@_compiled
def _raise_prices(n: Network) -> None:
    """Raise what the last search did not reach, until an arc from what it reached is open."""
    arc, point, level, room = n.arc, n.point, n.level, n.room
    more = ENDLESS
    for a in range(n.size[1]):
        p, q = arc[a, TAIL], arc[a, HEAD]
        if room[a] > 0 and level[p] >= 0 and level[q] < 0:
            more = min(more, point[p, PRICE] + arc[a, COST] - point[q, PRICE])
    assert more < ENDLESS  # some whole flow has the peak
    for p in range(n.size[0]):
        if level[p] < 0:
            point[p, PRICE] += more
    _arrange(n)


@_compiled
def _bring_down(num_ranks: int, n: Network) -> None:
    """Move load from ranks over their capacity to others at the least cost."""
    point, onward = n.point, n.onward
    while (point[:num_ranks, EXCESS] > 0).any():
        if not _search(num_ranks, n):
            _raise_prices(n)
            continue
        _look_back(num_ranks, n)
        for r in range(num_ranks):
            if point[r, EXCESS] > 0 and onward[r] == 0:
                _drain(r, n)


@_compiled
def _capacity(level: float, speed: float) -> int:
    """The most whole load that takes a rank no longer than ``level``."""
    capacity = np.floor(min(level * speed, MOST_LOAD))
    if (capacity + 1.0) / speed <= level:
        capacity += 1.0
    elif capacity / speed > level:
        capacity -= 1.0
    return int(capacity)


@_compiled
def _build(
    source_RE: Floats, speed: Floats, node_of_rank: Ints, on_node_NE: Floats, x: Edges, n: Network
) -> None:
    """The nearest flow and its network, with capacities of the ranks at the wanted flow's peak."""
    point = n.point
    num_ranks = speed.size
    for p in range(num_ranks + 2 * x.rank.size):
        point[p, PRICE] = point[p, EXCESS] = 0
    n.size[:] = num_ranks, 0
    on_node_NE[:] = 0.0
    for r in range(num_ranks):
        on_node = on_node_NE[node_of_rank[r]]
        for e in range(on_node.size):
            on_node[e] += source_RE[r, e]
    _stay(source_RE, on_node_NE, node_of_rank, x)
    _add_experts(source_RE, on_node_NE, node_of_rank, x, n)
    _arrange(n)
    wanted = np.zeros(num_ranks, np.int64)
    for k in range(x.first_edge[-1]):
        wanted[x.rank[k]] += x.wanted[k]
        point[x.rank[k], EXCESS] += x.flow[k]
    level = (wanted / speed).max()
    for r in range(num_ranks):
        point[r, EXCESS] -= _capacity(level, speed[r])


@_compiled
def _read(x: Edges, n: Network) -> None:
    """The flows of shared experts, as what can move back over the arcs of their edges."""
    arc, flow = n.arc, x.flow
    for a in range(0, n.size[1], 2):
        if arc[a, EDGE] >= 0:
            flow[arc[a, EDGE]] = 0
    for a in range(0, n.size[1], 2):
        if arc[a, EDGE] >= 0:
            flow[arc[a, EDGE]] += n.room[a + 1]


@_compiled
def _deal(x: Edges, quota: Ints) -> None:
    """Share flows over the copies on each rank; the lower slots get what is odd."""
    listed, start, flow = x.listed, x.start, x.flow
    for k in range(x.first_edge[-1]):
        left = flow[k]
        for p in range(start[k], start[k + 1]):
            copies = start[k + 1] - p
            part = (left + copies - 1) // copies
            quota[listed[p]] = part
            left -= part


@_compiled
def nearest_quotas(
    source_LRE: Floats, quota_LS: Ints, slots_LS: Ints, speed: Floats, node_of_rank: Ints
) -> Ints:
    """Of the whole splits no slower than ``quota_LS`` one that keeps most on the source's own rank.

    Of those one that keeps most on its node.

    Returns
    -------
    ``(L, S)`` int64; over the slots of an expert they sum to its load.
    """
    (L, R, E), S = source_LRE.shape, slots_LS.shape[1]
    x, n = _workspace(E, S, R)
    on_node_NE = np.empty((node_of_rank[-1] + 1, E))
    nearest_LS = np.empty((L, S), np.int64)
    for layer in range(L):
        _connect(slots_LS[layer], quota_LS[layer], R, x)
        _build(source_LRE[layer], speed, node_of_rank, on_node_NE, x, n)
        _bring_down(R, n)
        _read(x, n)
        _deal(x, nearest_LS[layer])
    return nearest_LS


@_compiled
def _fill(i: int, r: int, column: int, left: Ints, free: Ints, filled: Ints) -> None:
    """Fill slot ``i`` from rank ``r``, as much as there is on both sides."""
    amount = min(free[i], left[r, column])
    filled[r, i] += amount
    left[r, column] -= amount
    free[i] -= amount


@_compiled
def _end_of_node(r: int, node_of_rank: Ints) -> int:
    """The rank after the last one on the node of rank ``r``."""
    end = r + 1
    while end < node_of_rank.size and node_of_rank[end] == node_of_rank[r]:
        end += 1
    return end


@_compiled
def _fill_from_nodes(
    shared: Ints, column: Ints, node_of_rank: Ints, left: Ints, free: Ints, filled: Ints
) -> None:
    """Fill shared slots, ascending, from their own node, low ranks to low slots."""
    num_ranks = node_of_rank.size
    per_rank = column.size // num_ranks
    first, lo = 0, 0
    while lo < num_ranks:
        hi = _end_of_node(lo, node_of_rank)
        last = first
        while last < shared.size and shared[last] < hi * per_rank:
            last += 1
        for r in range(lo, hi):
            for i in shared[first:last]:
                _fill(i, r, column[i], left, free, filled)
        first, lo = last, hi


@_compiled
def _take_rows(source_RE: Floats, only: Ints, several: Ints, left: Ints, filled: Ints) -> None:
    """Fill the only slots of experts; what sources have for the others is left.

    ``only`` has the expert of such slots, for others ``E``.
    """
    R, E = source_RE.shape
    row = np.zeros(E + 1, np.int64)
    for r in range(R):
        source, into, rest = source_RE[r], filled[r], left[r]
        for e in range(E):
            row[e] = int(source[e])
        for i in range(only.size):
            into[i] = row[only[i]]
        for c in range(several.size):
            rest[c] = row[several[c]]


@_compiled
def _fill_in_order(next_slot: Ints, listed: Ints, left: Ints, free: Ints, filled: Ints) -> None:
    """Fill the slots of each expert in turn, from low ranks first.

    ``next_slot`` says where in ``listed`` they begin; it is used up.
    """
    slot = listed[next_slot]
    room = free[slot]
    for r in range(left.shape[0]):
        rests, row = left[r], filled[r]
        for c in range(slot.size):
            rest = rests[c]
            while rest > room[c]:
                row[slot[c]] += room[c]
                rest -= room[c]
                next_slot[c] += 1
                slot[c] = listed[next_slot[c]]
                room[c] = free[slot[c]]
            row[slot[c]] += rest
            room[c] -= rest


@_compiled
def fill_from_sources(
    quota_LS: Ints, source_LRE: Floats, slots_LS: Ints, node_of_rank: Ints
) -> Ints:
    """Which source fills which quota: own rank first, then own node, then in order, ``(L, R, S)``.

    Sources and quotas of an expert sum to the same. Source by source, as a row lies together.
    """
    (L, R, E), S = source_LRE.shape, slots_LS.shape[1]
    filled_LRS = np.empty((L, R, S), np.int64)
    first, listed = np.empty(E + 1, np.int64), np.empty(S, np.int64)
    column = np.empty(S, np.int64)  # of a slot: its expert's number among those with several slots
    for layer in range(L):
        source_RE, filled, free = source_LRE[layer], filled_LRS[layer], quota_LS[layer].copy()
        _list_slots(slots_LS[layer], first, listed)
        several = np.flatnonzero(first[1:] - first[:-1] > 1)
        column[:] = -1
        for c in range(several.size):
            for p in range(first[several[c]], first[several[c] + 1]):
                column[listed[p]] = c
        left = np.empty((R, several.size), np.int64)
        _take_rows(source_RE, np.where(column < 0, slots_LS[layer], E), several, left, filled)
        shared = np.flatnonzero(column >= 0)
        for i in shared:
            _fill(int(i), int(i) * R // S, column[i], left, free, filled)
        if node_of_rank[-1] > 0:
            _fill_from_nodes(shared, column, node_of_rank, left, free, filled)
        _fill_in_order(first[several], listed, left, free, filled)
    return filled_LRS


@_compiled
def _advance(end: int, first: Ints, listed: Ints, lo: Ints, hi: Ints) -> None:
    """Go on to the next slots of each expert, those below ``end``: listed from ``lo`` to ``hi``."""
    for e in range(lo.size):
        lo[e] = hi[e]
        while hi[e] < first[e + 1] and listed[hi[e]] < end:
            hi[e] += 1


@_compiled
def _spread(load: Floats, lo: Ints, hi: Ints, listed: Ints, share: Floats) -> None:
    """Give each expert's slots equal parts of its load; the load is used up."""
    for e in range(load.size):
        part = load[e] / max(1, hi[e] - lo[e])
        for p in range(lo[e], hi[e]):
            share[listed[p]] += part
        load[e] = 0.0


@_compiled
def serve_nearest(source_LRE: Floats, slots_LS: Ints, node_of_rank: Ints) -> Floats:
    """Every source to the copies on its rank, else on its node, else to all, evenly, ``(L, S)``."""
    (L, R, E), S = source_LRE.shape, slots_LS.shape[1]
    per_rank = S // R
    share_LS = np.zeros((L, S))
    first, listed = np.empty(E + 1, np.int64), np.empty(S, np.int64)
    own = np.zeros(E, np.int64)  # copies on the source's rank
    node_lo, node_hi = np.empty(E, np.int64), np.empty(E, np.int64)
    near, far = np.zeros(E), np.zeros(E)
    for layer in range(L):
        slots, share = slots_LS[layer], share_LS[layer]
        _list_slots(slots, first, listed)
        node_hi[:] = first[:-1]
        node_end = 0
        for r in range(R):
            if r == node_end:
                node_end = _end_of_node(r, node_of_rank)
                _advance(node_end * per_rank, first, listed, node_lo, node_hi)
            here, load = slice(r * per_rank, (r + 1) * per_rank), source_LRE[layer, r]
            for e in slots[here]:
                own[e] += 1
            for e in range(E):
                near[e] += load[e] if own[e] == 0 and node_hi[e] > node_lo[e] else 0.0
                far[e] += load[e] if node_hi[e] == node_lo[e] else 0.0
            for i in range(r * per_rank, (r + 1) * per_rank):
                share[i] += load[slots[i]] / own[slots[i]]
            own[slots[here]] = 0
            if r + 1 == node_end:
                _spread(near, node_lo, node_hi, listed, share)
        _spread(far, first[:-1], first[1:], listed, share)
    return share_LS


@_compiled
def _add_turns(load: int, begin: int, lo: int, hi: int, more: Ints) -> int:
    """Deal assignments in turns to the places from ``lo`` to ``hi - 1``, beginning at one of them.

    ``more`` says how much more each place gets than the one before it.

    Returns
    -------
    What every place gets besides.
    """
    every = load // (hi - lo)
    end = begin + load - every * (hi - lo)
    around = end > hi  # from the last place on to the first
    more[begin] += 1
    more[end - (hi - lo) if around else end] -= 1
    return every + around


@_compiled
def _add_everywhere(several: Ints, lo: Ints, hi: Ints, every: Ints, more: Ints) -> None:
    """Give every place from ``lo`` to ``hi - 1`` of each expert what it gets; that is used up."""
    for e in several:
        more[lo[e]] += every[e]
        more[hi[e]] -= every[e]
        every[e] = 0


@_compiled
def _serve_node(
    several: Ints, first: Ints, node_lo: Ints, node_hi: Ints, lo: Ints, hi: Ints
) -> None:
    """Which copies serve sources without one on their rank: those on the node, else all."""
    for e in several:
        on_node = node_hi[e] > node_lo[e]
        lo[e] = node_lo[e] if on_node else first[e]
        hi[e] = node_hi[e] if on_node else first[e + 1]


@_compiled
def deal_nearest(source_LRE: Floats, slots_LS: Ints, node_of_rank: Ints) -> Ints:
    """As ``serve_nearest`` in whole assignments, ``(L, S)``: each source deals its own in turns.

    A source without a copy on its rank begins one copy later than the one before it.
    """
    (L, R, E), S = source_LRE.shape, slots_LS.shape[1]
    per_rank = S // R
    quota_LS = np.empty((L, S), np.int64)
    first, listed = np.empty(E + 1, np.int64), np.empty(S, np.int64)
    own_lo, own_hi = np.empty(E, np.int64), np.empty(E, np.int64)
    node_lo, node_hi = np.empty(E, np.int64), np.empty(E, np.int64)
    lo, hi, begin = np.empty(E, np.int64), np.empty(E, np.int64), np.empty(E, np.int64)
    turn, every, total = np.empty(E, np.int64), np.empty(E, np.int64), np.empty(E, np.int64)
    more = np.empty(S + 1, np.int64)
    for layer in range(L):
        slots, quota = slots_LS[layer], quota_LS[layer]
        _list_slots(slots, first, listed)
        several = np.flatnonzero(first[1:] - first[:-1] > 1)
        own_lo[:] = own_hi[:] = node_hi[:] = first[:-1]
        lo[:], hi[:] = first[:-1], first[1:]
        turn[:] = every[:] = total[:] = more[:] = 0
        node_end = 0
        for r in range(R):
            if r == node_end:
                node_end = _end_of_node(r, node_of_rank)
                _advance(node_end * per_rank, first, listed, node_lo, node_hi)
                _add_everywhere(several, lo, hi, every, more)
                _serve_node(several, first, node_lo, node_hi, lo, hi)
                for e in several:
                    begin[e] = lo[e] + turn[e] % (hi[e] - lo[e])
            here, source = slots[r * per_rank : (r + 1) * per_rank], source_LRE[layer, r]
            for e in here:
                own_hi[e] += 1
            for each in range(E):
                total[each] += int(source[each])
            for e in several:
                load = int(source[e])
                if own_hi[e] == own_lo[e]:
                    turn[e] += 1
                    begin[e] = begin[e] + 1 if begin[e] + 1 < hi[e] else lo[e]
                    if load > 0:
                        every[e] += _add_turns(load, begin[e], lo[e], hi[e], more)
                elif load > 0:
                    own_begin = own_lo[e] + turn[e] % (own_hi[e] - own_lo[e])
                    all_get = _add_turns(load, own_begin, own_lo[e], own_hi[e], more)
                    more[own_lo[e]] += all_get
                    more[own_hi[e]] -= all_get
            for e in here:
                own_lo[e] = own_hi[e]
        _add_everywhere(several, lo, hi, every, more)
        dealt = 0
        for p in range(S):
            dealt += more[p]
            i = listed[p]
            shared = first[slots[i] + 1] - first[slots[i]] > 1
            quota[i] = dealt if shared else total[slots[i]]
    return quota_LS


@_compiled
def add_sources(source_LRE: Floats | Ints) -> tuple[Floats, Floats, bool]:
    """A copy as float64, the sum over sources ``(L, E)``, and whether all are finite and >= 0."""
    L, R, E = source_LRE.shape
    copy_LRE, total_LE = np.empty((L, R, E)), np.zeros((L, E))
    good = True
    for layer in range(L):
        total = total_LE[layer]
        for r in range(R):
            given, copy = source_LRE[layer, r], copy_LRE[layer, r]
            for e in range(E):
                load = float(given[e])
                copy[e] = load
                total[e] += load
                good &= 0.0 <= load < np.inf
    return copy_LRE, total_LE, good


@_compiled
def are_whole(source_LRE: Floats) -> bool:
    """Whether all loads are whole numbers."""
    whole = True
    for load in source_LRE.flat:
        whole &= load == np.floor(load)
    return whole
