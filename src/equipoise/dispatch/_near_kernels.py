"""Keeping assignments near their source, compiled. Plain twins: ``tests/reference/dispatch.py``.

An *edge* joins an expert to a rank that holds it. Edges of one expert to ranks of one node form a
*group*. An assignment stays on its rank if an edge leads there, else on its node if a group is
there. Among all whole flows with the least peak, the one that keeps most assignments near is a flow
of minimum cost.

It is found by successive shortest paths, all paths of one length at a time. The start is the
nearest flow of all, whatever the ranks then carry. From there load moves from ranks above their
capacity to others: first where moving costs nothing, then where it costs least.

Results are deterministic: the visiting order is fixed and the lowest index wins a tie. The callers
have checked that loads are whole and sum to less than 2**53 in a layer, that nodes are consecutive
ranks, and that shapes fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Costs of taking one assignment off its node, and off its rank. A chain of moves passes fewer than
# 2**32 experts, so no saving on nodes outweighs one assignment off its rank.
NODE = 1
RANK = 2**33
ENDLESS = 2**62  # room of an arc without limit
MOST_LOAD = 2.0**53  # limit of a layer's load

# Columns of ``Network.arc``, ``Network.order`` and ``Network.point``, one line each.
TAIL, HEAD, COST, EDGE = range(4)
ARC, END = range(2)
PRICE, EXCESS, NEXT = range(3)

_compiled = njit(nogil=True)


class Edges(NamedTuple):
    """Ranks that hold each expert of one layer; edges expert by expert, ranks ascending."""

    listed: Ints  # (S,): slots, expert by expert, ascending
    first_edge: Ints  # (E + 1,): edges of expert e are first_edge[e] ... first_edge[e + 1] - 1
    start: Ints  # (S + 1,): slots of edge k are listed[start[k]] ... listed[start[k + 1] - 1]
    rank: Ints  # (S,): rank of each edge
    flow: Ints  # (S,): load on each edge
    wanted: Ints  # (S,): a flow with the least peak; the search stays close to it


class Network(NamedTuple):
    """Moves that are still possible, as arcs between *points*.

    Points are ranks, shared experts and groups of edges. Arcs come in pairs, ``a`` and ``a ^ 1``:
    load that moved along one can move back along the other. Prices are such that no arc with room
    costs less than the price difference of its ends. Loops take arrays out of the tuple first,
    because each access takes time, and keep what they read most in one array.
    """

    size: Ints  # (2,): number of points and of arcs
    arc: Ints  # (A, 4): points at both ends, cost, and the edge whose flow it adds to or -1
    room: Ints  # (A,): load that may still move along an arc
    first_arc: Ints  # (P + 1,): arcs out of point p are order[first_arc[p]] ...
    order: Ints  # (A, 2): usable arcs (cost equals the price difference) by tail, and their head
    point: Ints  # (P, 3): price; excess, the load above a rank's capacity; position in order of the
    #   first arc still worth trying
    level: Ints  # (P,): distance from the ranks with excess, in arcs, or -1
    onward: Ints  # (P,): the same where a chain may lead on to a rank with room, else -1
    queue: Ints  # (P,): points of a search
    chain: Ints  # (P,): arcs of the present chain


@_compiled
def _workspace(num_experts: int, num_slots: int, num_ranks: int) -> tuple[Edges, Network]:
    """Allocate edges and network without filling them."""
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
    """List the slots of each expert ``e``: ``listed[first[e]] ... listed[first[e + 1] - 1]``.

    Fills ``first`` ``(E + 1,)`` and ``listed`` ``(S,)``, ascending for each expert.
    """
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
    """Fill ``x`` with the edges of a layer and the load that its quotas ``(S,)`` send over each."""
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
    """Give edges ``lo`` to ``hi - 1`` the flow they lack, up to ``amount``; return the rest."""
    for k in range(lo, hi):
        part = min(amount, max(0, wanted[k] - flow[k]))
        flow[k] += part
        amount -= part
    return amount


@_compiled
def _end_of_group(first: int, hi: int, node_of_rank: Ints, rank: Ints) -> int:
    """Return the edge after the last one that leads to the same node as edge ``first``."""
    end = first + 1
    while end < hi and node_of_rank[rank[end]] == node_of_rank[rank[first]]:
        end += 1
    return end


@_compiled
def _stay(source_RE: Floats, on_node_NE: Floats, node_of_rank: Ints, x: Edges) -> None:
    """Fill ``x.flow`` with the nearest flow: on the source's rank, else on its node, else anywhere.

    Where that leaves a choice, it follows the wanted flow, so that little has to move afterwards.
    ``source_RE`` ``(R, E)`` has the assignments of each source rank, ``on_node_NE`` ``(N, E)``
    their sums by node.
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
        _take_wanted(far, lo, hi, flow, wanted)  # takes all: the wanted flows sum to the load


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
    """Add a pair of arcs unless neither has room; return the number of arcs there are then.

    ``ahead`` and ``back`` are the room of the arc from ``tail`` to ``head`` and of its reverse.
    """
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
    """Add the arcs of each shared expert: to its groups, and from these to the ranks.

    In the nearest flow, all load that can be near is near. Moving it away costs.
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
            if end - first == 1:  # most groups; chains are shorter if these have no point
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
    """List each point's arcs that cost exactly the price difference of their ends.

    While prices stay, load moves only along these. Parallel arcs have different costs, so at most
    one of them is listed.
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
    """Find the points that overloaded ranks can reach at the present prices, breadth first.

    Fills ``n.level`` and stops at the last rank with room, because nothing beyond it is of use.
    Returns whether any rank with room was reached.
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
    """Mark in ``n.onward`` the points from which a chain leads to a rank with room.

    Few points do, and trying all others one by one would take longer.
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
    """Return the arc on which a chain leads on from point ``p`` to a rank with room; -1 if none."""
    for i in range(point[p, NEXT], end):
        if onward[order[i, END]] == onward[p] + 1 and room[order[i, ARC]] > 0:
            point[p, NEXT] = i
            return int(order[i, ARC])
    point[p, NEXT] = end
    return -1


@_compiled
def _move(start: int, end: int, length: int, chain: Ints, room: Ints, point: Ints) -> int:
    """Move as much load as the chain allows; return how many of its first arcs still have room.

    Changes the room of its arcs and the excess of both ends.
    """
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
    """Move the excess of rank ``start`` along the chains of the last search, as far as possible."""
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
    """Raise the prices of points that the last search missed until it can reach one of them."""
    arc, point, level, room = n.arc, n.point, n.level, n.room
    more = ENDLESS
    for a in range(n.size[1]):
        p, q = arc[a, TAIL], arc[a, HEAD]
        if room[a] > 0 and level[p] >= 0 and level[q] < 0:
            more = min(more, point[p, PRICE] + arc[a, COST] - point[q, PRICE])
    assert more < ENDLESS  # a whole flow with this peak exists
    for p in range(n.size[0]):
        if level[p] < 0:
            point[p, PRICE] += more
    _arrange(n)


@_compiled
def _bring_down(num_ranks: int, n: Network) -> None:
    """Move load from ranks above their capacity to others at the least cost."""
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
    """Return the largest whole load that takes a rank no longer than ``level``."""
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
    """Fill ``x`` with the nearest flow and ``n`` with its network.

    The ranks' capacities are those at the peak of the wanted flow. ``on_node_NE`` ``(N, E)`` is
    overwritten.
    """
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
    """Fill ``x.flow`` of shared experts with the load that can move back over each edge."""
    arc, flow = n.arc, x.flow
    for a in range(0, n.size[1], 2):
        if arc[a, EDGE] >= 0:
            flow[arc[a, EDGE]] = 0
    for a in range(0, n.size[1], 2):
        if arc[a, EDGE] >= 0:
            flow[arc[a, EDGE]] += n.room[a + 1]


@_compiled
def _deal(x: Edges, quota: Ints) -> None:
    """Share each edge's flow over the copies on its rank; the lower slots get the odd ones.

    Fills ``quota`` ``(S,)``.
    """
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
    """Keep most assignments on their source's rank in a split no slower than ``quota_LS``.

    Among the whole splits that do, the result is one that keeps most on the source's node.

    Parameters
    ----------
    source_LRE
        Assignments of each source rank, ``(L, R, E)``, whole.
    quota_LS
        Whole split with the least peak, ``(L, S)``; not changed.
    slots_LS
        Expert of each slot, ``(L, S)``.
    speed
        Relative speed of each rank, ``(R,)``.
    node_of_rank
        Node of each rank, ``(R,)``, ascending.

    Returns
    -------
    Assignments of each slot, ``(L, S)`` int64; over the slots of an expert they sum to its load.
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
    """Fill slot ``i`` from source rank ``r``, as far as the slot has quota and the source has load.

    ``left`` ``(R, C)`` is the load left of each source, ``free`` ``(S,)`` the quota left of each
    slot and ``filled`` ``(R, S)`` the result; all change in place.
    """
    amount = min(free[i], left[r, column])
    filled[r, i] += amount
    left[r, column] -= amount
    free[i] -= amount


@_compiled
def _end_of_node(r: int, node_of_rank: Ints) -> int:
    """Return the rank after the last one on the node of rank ``r``."""
    end = r + 1
    while end < node_of_rank.size and node_of_rank[end] == node_of_rank[r]:
        end += 1
    return end


@_compiled
def _fill_from_nodes(
    shared: Ints, column: Ints, node_of_rank: Ints, left: Ints, free: Ints, filled: Ints
) -> None:
    """Fill the ``shared`` slots, ascending, from sources on their node; low ranks fill low slots.

    The last three arrays change as in ``_fill``.
    """
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
    """Fill the slots of experts with one slot; the sources' loads for other experts go to ``left``.

    ``only`` ``(S,)`` has the expert of each slot that is its expert's only one, ``E`` for others.
    ``several`` lists the experts with two slots or more. ``left`` and ``filled`` are overwritten.
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
    """Fill the remaining quota of each expert's slots in turn, from low source ranks first.

    ``next_slot`` has each expert's first place in ``listed``; it advances in place. ``left`` and
    ``free`` are only read.
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
    """Decide which source rank fills which quota: own rank first, then own node, then in order.

    It goes source by source, because a source's row lies together in memory.

    Parameters
    ----------
    quota_LS
        Assignments of each slot, ``(L, S)``; not changed.
    source_LRE
        Assignments of each source rank, ``(L, R, E)``; summed over the sources they equal an
        expert's quotas.
    slots_LS
        Expert of each slot, ``(L, S)``.
    node_of_rank
        Node of each rank, ``(R,)``, ascending.

    Returns
    -------
    Assignments from each source to each slot, ``(L, R, S)`` int64.
    """
    (L, R, E), S = source_LRE.shape, slots_LS.shape[1]
    filled_LRS = np.empty((L, R, S), np.int64)
    first, listed = np.empty(E + 1, np.int64), np.empty(S, np.int64)
    column = np.empty(S, np.int64)  # number of a slot's expert among those with several slots
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
    """Advance each expert's range of slots to the next ones, those below slot ``end``.

    The range is ``listed[lo[e]] ... listed[hi[e] - 1]``; ``lo`` and ``hi`` ``(E,)`` change in
    place.
    """
    for e in range(lo.size):
        lo[e] = hi[e]
        while hi[e] < first[e + 1] and listed[hi[e]] < end:
            hi[e] += 1


@_compiled
def _spread(load: Floats, lo: Ints, hi: Ints, listed: Ints, share: Floats) -> None:
    """Add equal parts of each expert's load to its slots in ``share``; set the load to 0."""
    for e in range(load.size):
        part = load[e] / max(1, hi[e] - lo[e])
        for p in range(lo[e], hi[e]):
            share[listed[p]] += part
        load[e] = 0.0


@_compiled
def serve_nearest(source_LRE: Floats, slots_LS: Ints, node_of_rank: Ints) -> Floats:
    """Serve every source evenly from the copies on its rank, else on its node, else from all.

    Parameters
    ----------
    source_LRE
        Load of each source rank, ``(L, R, E)``; not changed.
    slots_LS
        Expert of each slot, ``(L, S)``.
    node_of_rank
        Node of each rank, ``(R,)``, ascending.

    Returns
    -------
    Load of each slot, ``(L, S)`` float64.
    """
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
    """Deal ``load`` assignments in turns to places ``lo`` to ``hi - 1``, starting at ``begin``.

    ``more`` holds the difference of each place's count to the place before it; it changes in place.

    Returns
    -------
    Number that every place gets in addition.
    """
    every = load // (hi - lo)
    end = begin + load - every * (hi - lo)
    around = end > hi  # from the last place on to the first
    more[begin] += 1
    more[end - (hi - lo) if around else end] -= 1
    return every + around


@_compiled
def _add_everywhere(several: Ints, lo: Ints, hi: Ints, every: Ints, more: Ints) -> None:
    """Add ``every[e]`` to each of expert ``e``'s places, ``lo[e]`` to ``hi[e] - 1``; reset it."""
    for e in several:
        more[lo[e]] += every[e]
        more[hi[e]] -= every[e]
        every[e] = 0


@_compiled
def _serve_node(
    several: Ints, first: Ints, node_lo: Ints, node_hi: Ints, lo: Ints, hi: Ints
) -> None:
    """Set the copies that serve sources without one on their rank: those on the node, else all.

    ``lo`` and ``hi`` ``(E,)`` receive the range of listed slots.
    """
    for e in several:
        on_node = node_hi[e] > node_lo[e]
        lo[e] = node_lo[e] if on_node else first[e]
        hi[e] = node_hi[e] if on_node else first[e + 1]


@_compiled
def deal_nearest(source_LRE: Floats, slots_LS: Ints, node_of_rank: Ints) -> Ints:
    """Serve sources as ``serve_nearest`` does, in whole assignments dealt in turns.

    A source without a copy on its rank starts one copy later than the source before it. Arguments
    are as in ``serve_nearest``, with whole loads.

    Returns
    -------
    Assignments of each slot, ``(L, S)`` int64.
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
    """Copy loads ``(L, R, E)`` as float64, sum them over the sources and check them.

    Returns
    -------
    Copy, ``(L, R, E)``; sum, ``(L, E)``; whether all loads are finite and non-negative.
    """
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
    """Return whether all loads are whole numbers."""
    whole = True
    for load in source_LRE.flat:
        whole &= load == np.floor(load)
    return whole
