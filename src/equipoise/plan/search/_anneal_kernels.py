"""The inner loops of annealing, compiled. Plain twins: ``tests/reference/robust.py``.

The kernels search one layer at a time. ``load_ET`` and ``risk_ET`` describe ``T`` scenarios, both
in units of the mean rank's load. A slot whose expert has ``c`` copies counts ``load / c`` plus
``risk / c**2``, because the variance of a share falls with the square of the share.

Both kernels run the same loop: draw a proposal, compute its cost, then accept or refuse it. They
differ in how loads are split over the copies:

``anneal_fixed``   The number and the nodes of the copies set the shares, so a proposal is judged
                   before it is applied.
``anneal_minmax``  The shares follow the load and depend on each other. A proposal is applied
                   first and the shares settle; a refused proposal is taken back.

Results are deterministic: random numbers come from a seed, sums run in visiting order.

All functions that call each other are in this file, because numba's cache does not see a change in
another file. A proposal takes a fraction of a microsecond, so small things count in the loops: they
take arrays out of their named tuples first, functions return a number of ranks instead of a view of
them, and plain loops copy rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
State = NDArray[np.uint64]

_compiled = njit(nogil=True, error_model="numpy")

# Decorators for the small steps of the loops. A real call would pass each array of a named tuple
# separately and count references to it. LLVM merges ``_inlined`` functions into their callers after
# compilation. numba merges ``_merged`` ones before that, so that not even references are counted.
_inlined = njit(nogil=True, error_model="numpy", forceinline=True)
_merged = njit(nogil=True, error_model="numpy", inline="always")


class Ranks(NamedTuple):
    """Differences between the ranks, and the load that a rank counts for a share of an expert.

    ``floor`` and ``pad`` describe the time for an expert's weights and for incomplete blocks, in
    mean rank loads: a slot with load counts ``max(floor, share + pad)``.
    """

    slowness: Floats  # (R,): 1 over the relative speed
    node: Ints  # (R,)
    near: bool  # True: sources prefer copies on their node; False: all copies get equal shares
    floor: float
    pad: float


class Terms(NamedTuple):
    """Prices of a placement in addition to its peaks, in mean rank loads."""

    price: Floats  # (R, E): price of an expert on a rank
    homes: int  # number of ranks (nodes with ``by_node``) that each expert should live on
    by_node: bool
    missing: float  # price of each home that an expert lacks


class Objective(NamedTuple):
    """Rule by which the ranks' times become one number, the objective.

    In each scenario the ``2 ** bits``-norm over the ranks is taken. The objective is the weighted
    mean of the norms over all scenarios, or over the worst share ``tail`` of them. A norm also
    rewards progress on ranks that are not the busiest yet. With ``exact`` the search keeps the
    placement whose busiest rank, instead of the norm, is best.
    """

    weight: Floats  # (T,): weight of each scenario
    tail: float  # in (0, 1]; 1 counts all scenarios
    bits: int
    exact: bool


class Schedule(NamedTuple):
    """Number of proposals to try, and the temperatures at the first and the last of them."""

    proposals: int
    hot: float  # first temperature, in the unit of the objective
    cold: float  # last temperature


class Holding(NamedTuple):
    """The expert of each slot, with indexes for quick access. No rank holds an expert twice."""

    expert: Ints  # (S,): expert of each slot, -1 where there is no slot
    size: int  # number of slots per rank
    copies: Ints  # (E,): number of copies of each expert
    held: Bools  # (R, E): whether a rank holds an expert
    slot: Ints  # (E, R): slots of each expert; only the first ``copies[e]`` of row e are valid
    on_node: Ints  # (E, N): number of copies on each node


class Proposal(NamedTuple):
    """A candidate change: slot ``s`` of rank ``r`` gets expert ``b`` in place of expert ``a``.

    In an exchange, slot ``o`` of rank ``q``, which holds ``b``, gets ``a``. In a relabelling, ``a``
    loses this copy and ``b`` gains one; ``o`` and ``q`` then equal ``s`` and ``r``.
    """

    s: int
    r: int
    a: int
    o: int
    q: int
    b: int
    relabel: bool


class Norms(NamedTuple):
    """Times of the ranks and their norms, for the accepted placement and for a proposal.

    Sums over the ranks are kept, so that a proposal costs only the ranks that it changes. Only the
    rows of those ranks are valid in ``new_time``.
    """

    time: Floats  # (R, T): load that a rank counts, times its slowness
    power: Floats  # (R, T): time ** (2 ** bits)
    total: Floats  # (T,): sum of the powers over the ranks
    norm: Floats  # (T,): total ** (1 / 2 ** bits)
    new_time: Floats  # (R, T): time after the proposal
    new_total: Floats  # (T,): total after the proposal
    new_norm: Floats  # (T,): norm after the proposal; scratch at other times


class Shares(NamedTuple):
    """Shares of a proposal's two experts before and after it, on each rank visited."""

    before_a: Floats  # (R,), as all four; entry i is for the i-th rank visited
    after_a: Floats
    before_b: Floats
    after_b: Floats


class Split(NamedTuple):
    """Load of each slot and of each rank."""

    sums: Floats  # (R, T): load of each rank
    flow: Floats  # (S, T): load of each slot


_CLOSE = 1e-12  # a gain below this is rounding
_MOST_BITS = 6  # largest ``bits`` of a norm
_TINY = 1e-300  # least divisor in place of a total of 0
_AFRESH = 64  # number of accepted proposals after which totals are summed from scratch
_RELABEL = 0.3  # share of the proposals that give a slot to another expert
_STEADY = 256  # number of proposals at one temperature
_SWEEPS_AT_START = 50  # sweeps over all ranks that turn an even split into the first min-max split
_SWEEPS = 3  # sweeps over the ranks that a proposal touches
_VISITS = 12  # most ranks that even out after a proposal
_HOPE = 0.001  # largest gain expected from one more sweep, in the unit of the objective


@_inlined
def _random(state: State) -> Any:
    """Draw a float in [0, 1) with splitmix64; advances ``state``, ``(1,)``. Any seed is good."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@_inlined
def _below(state: State, n: int) -> Any:
    """Draw an integer in ``[0, n)``; advances ``state``."""
    return np.int64(_random(state) * n)


@_inlined
def _power(x: float, bits: int) -> Any:
    """Return ``x ** (2 ** bits)``; ``bits`` is at most ``_MOST_BITS``.

    It has no loop, because the loops around it become vector instructions only without one.
    """
    x = x * x if bits > 0 else x
    x = x * x if bits > 1 else x
    x = x * x if bits > 2 else x
    x = x * x if bits > 3 else x
    x = x * x if bits > 4 else x
    return x * x if bits > 5 else x


@_inlined
def _fill_norms(norm: Floats, total: Floats, bits: int) -> None:
    """Fill ``norm`` ``(T,)`` with the ``2 ** bits``-th roots of ``total`` ``(T,)``.

    Rounding may have made a total negative; it counts as 0.
    """
    for t in range(total.size):
        norm[t] = max(total[t], 0.0)
    for _ in range(bits):
        for t in range(total.size):
            norm[t] = np.sqrt(norm[t])


@_compiled
def _tail_level(norm: Floats, weight: Floats, tail: float) -> Any:
    """Return the norm above which the worst share ``tail`` of the weight lies; 0 if all count."""
    if tail >= 1.0:
        return 0.0
    order = np.argsort(-norm)
    left = tail * weight.sum()
    for t in order:
        left -= weight[t]
        if left <= 0.0:
            return norm[t]
    return 0.0


@_compiled
def _tail_weight(objective: Objective) -> Any:
    """Return the weight of each scenario in the mean over the worst share ``tail``, ``(T,)``."""
    return objective.weight / (min(objective.tail, 1.0) * objective.weight.sum())


@_merged
def _tail_mean(norm: Floats, tail_weight: Floats, level: float) -> Any:
    """Return the mean of ``norm`` ``(T,)`` over the worst share of the scenarios.

    The result is exact where ``level`` is the one of ``_tail_level`` and too high at any other.
    This form (Rockafellar and Uryasev, 2000) costs no more than a mean. It adds into four sums,
    because an addition has to wait for the one before it.
    """
    T = norm.size
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for t in range(0, T - 3, 4):
        a += tail_weight[t] * max(norm[t] - level, 0.0)
        b += tail_weight[t + 1] * max(norm[t + 1] - level, 0.0)
        c += tail_weight[t + 2] * max(norm[t + 2] - level, 0.0)
        d += tail_weight[t + 3] * max(norm[t + 3] - level, 0.0)
    for t in range(T - T % 4, T):
        a += tail_weight[t] * max(norm[t] - level, 0.0)
    return level + ((a + b) + (c + d))


@_compiled
def _no_norms(num_ranks: int, num_scenarios: int) -> Norms:
    """Allocate ``Norms`` without filling them."""
    return Norms(
        np.empty((num_ranks, num_scenarios)),
        np.empty((num_ranks, num_scenarios)),
        np.empty(num_scenarios),
        np.empty(num_scenarios),
        np.empty((num_ranks, num_scenarios)),
        np.empty(num_scenarios),
        np.empty(num_scenarios),
    )


@_inlined
def _add_new_powers(norms: Norms, visit: Ints, count: int, bits: int) -> None:
    """Fill ``norms.new_total`` from the new times of the first ``count`` ranks in ``visit``."""
    total, new_total = norms.total, norms.new_total
    for t in range(total.size):
        new_total[t] = total[t]
    for i in range(count):
        v = visit[i]
        for t in range(total.size):
            new_total[t] += _power(norms.new_time[v, t], bits) - norms.power[v, t]


@_inlined
def _least_value(norms: Norms, tail_weight: Floats, bits: int, level: float) -> Any:
    """Return a lower bound of ``_new_value`` that needs no roots; it refuses most proposals.

    ``x ** (-1 / p)`` is convex, so its tangent at the old total bounds each new norm from below.
    Overwrites ``norms.new_norm``.
    """
    total, norm, new_total, least = norms.total, norms.norm, norms.new_total, norms.new_norm
    part = 1.0 / (1 << bits)
    for t in range(total.size):
        least[t] = norm[t] * (1.0 + part * (1.0 - total[t] / max(new_total[t], _TINY)))
    return _tail_mean(least, tail_weight, level)


@_inlined
def _new_value(norms: Norms, tail_weight: Floats, bits: int, level: float) -> Any:
    """Return the objective after the proposal, without the terms; fills ``norms.new_norm``.

    The tail's level stays that of the accepted placement: finding the new one would take a sort.
    The result can then be too high but never too low.
    """
    _fill_norms(norms.new_norm, norms.new_total, bits)
    return _tail_mean(norms.new_norm, tail_weight, level)


@_inlined
def _adopt_new(norms: Norms, visit: Ints, count: int, bits: int) -> None:
    """Make a proposal's times, totals and norms the accepted ones.

    Faster than ``_adopt``, but rounding accumulates in the totals.
    """
    for i in range(count):
        v = visit[i]
        for t in range(norms.total.size):
            norms.time[v, t] = norms.new_time[v, t]
            norms.power[v, t] = _power(norms.time[v, t], bits)
    for t in range(norms.total.size):
        norms.total[t] = norms.new_total[t]
        norms.norm[t] = norms.new_norm[t]


@_compiled
def _adopt(norms: Norms, visit: Ints, count: int, bits: int) -> None:
    """Make a proposal's times the accepted ones, and compute totals and norms from scratch.

    Only the first ``count`` ranks in ``visit`` take their row of ``norms.new_time``.
    """
    time, power, total = norms.time, norms.power, norms.total
    for i in range(count):
        v = visit[i]
        for t in range(total.size):
            time[v, t] = norms.new_time[v, t]
            power[v, t] = _power(time[v, t], bits)
    for t in range(total.size):
        total[t] = 0.0
    for r in range(power.shape[0]):
        for t in range(total.size):
            total[t] += power[r, t]
    _fill_norms(norms.norm, total, bits)


@_compiled
def _level_and_value(
    norm: Floats, objective: Objective, tail_weight: Floats
) -> tuple[float, float]:
    """Return the level above which the tail of the norms lies, and the objective without terms."""
    level = _tail_level(norm, objective.weight, objective.tail)
    return level, _tail_mean(norm, tail_weight, level)


@_compiled
def _exact_value(time_RT: Floats, peak: Floats, objective: Objective) -> Any:
    """Return the objective with the busiest rank's time in place of the norm.

    ``time_RT`` is ``(R, T)``; ``peak`` ``(T,)`` is overwritten with the busiest rank's times.
    """
    for t in range(peak.size):
        peak[t] = time_RT[:, t].max()
    return _level_and_value(peak, objective, _tail_weight(objective))[1]


@_compiled
def _hold(slots: Ints, num_experts: int, ranks: Ranks) -> Holding:
    """Build the indexes of a placement's slots ``(S,)``, which are copied and not changed."""
    R, N = ranks.slowness.size, ranks.node.max() + 1
    holding = Holding(
        slots.copy(),
        slots.size // R,
        np.zeros(num_experts, np.int64),
        np.zeros((R, num_experts), np.bool_),
        np.empty((num_experts, R), np.int64),
        np.zeros((num_experts, N), np.int64),
    )
    for s in range(slots.size):
        e = slots[s]
        if e >= 0:
            holding.slot[e, holding.copies[e]] = s
            _gain(holding, e, s // holding.size, ranks)
    return holding


@_compiled
def _gain(holding: Holding, e: int, r: int, ranks: Ranks) -> None:
    """Count one more copy of expert ``e`` on rank ``r``; does not touch ``expert`` and ``slot``."""
    holding.copies[e] += 1
    holding.held[r, e] = True
    holding.on_node[e, ranks.node[r]] += 1


@_compiled
def _lose(holding: Holding, e: int, r: int, ranks: Ranks) -> None:
    """Count one copy of expert ``e`` on rank ``r`` less; does not touch ``expert`` and ``slot``."""
    holding.copies[e] -= 1
    holding.held[r, e] = False
    holding.on_node[e, ranks.node[r]] -= 1


@_compiled
def _relabel(holding: Holding, s: int, r: int, b: int, ranks: Ranks) -> None:
    """Give slot ``s`` of rank ``r`` to expert ``b``; updates all of ``holding``."""
    a = holding.expert[s]
    _replace(holding.slot[a], s, holding.slot[a, holding.copies[a] - 1])
    holding.slot[b, holding.copies[b]] = s
    _lose(holding, a, r, ranks)
    _gain(holding, b, r, ranks)
    holding.expert[s] = b


@_compiled
def _exchange(holding: Holding, s: int, r: int, o: int, q: int, ranks: Ranks) -> None:
    """Exchange the experts of slot ``s`` on rank ``r`` and slot ``o`` on ``q`` in ``holding``."""
    a, b = holding.expert[s], holding.expert[o]
    _replace(holding.slot[a], s, o)
    _replace(holding.slot[b], o, s)
    _lose(holding, a, r, ranks)
    _lose(holding, b, q, ranks)
    _gain(holding, a, q, ranks)
    _gain(holding, b, r, ranks)
    holding.expert[s], holding.expert[o] = b, a


@_compiled
def _put(holding: Holding, proposal: Proposal, expert: int, ranks: Ranks) -> None:
    """Apply a proposal with ``expert = proposal.b``, or undo it with ``expert = proposal.a``.

    An exchange ignores ``expert``, because doing it twice undoes it.
    """
    s, r = proposal.s, proposal.r
    if proposal.relabel:
        _relabel(holding, s, r, expert, ranks)
    else:
        _exchange(holding, s, r, proposal.o, proposal.q, ranks)


@_compiled
def _replace(row: Ints, old: int, new: int) -> None:
    """Replace the entry ``old`` of ``row`` by ``new``; ``old`` must be there."""
    i = 0
    while row[i] != old:
        i += 1
    row[i] = new


@_compiled
def _missing(holding: Holding, e: int, terms: Terms) -> Any:
    """Return how many homes (ranks or nodes, see ``Terms``) expert ``e`` is short of."""
    if not terms.by_node:
        return max(0, terms.homes - holding.copies[e])
    nodes = 0
    for n in range(holding.on_node.shape[1]):
        nodes += holding.on_node[e, n] > 0
    return max(0, terms.homes - nodes)


@_compiled
def _more_missing(proposal: Proposal, holding: Holding, ranks: Ranks, terms: Terms) -> Any:
    """Return how many more homes are missing after a proposal than before it; may be negative.

    The copies are moved, counted and moved back, because whether a node stays a home depends on all
    copies of the expert. ``holding`` is unchanged afterwards.
    """
    a, b, r, q = proposal.a, proposal.b, proposal.r, proposal.q
    both = not proposal.relabel
    before = _missing(holding, a, terms) + _missing(holding, b, terms)
    _move_home(holding, a, r, q, both, 1, ranks)
    _move_home(holding, b, r, q, both, -1, ranks)
    after = _missing(holding, a, terms) + _missing(holding, b, terms)
    _move_home(holding, a, r, q, both, -1, ranks)
    _move_home(holding, b, r, q, both, 1, ranks)
    return after - before


@_compiled
def _move_home(
    holding: Holding, e: int, r: int, q: int, both: bool, copies: int, ranks: Ranks
) -> None:
    """Take ``copies`` copies of ``e`` off rank ``r`` and, with ``both``, add them to rank ``q``.

    Changes only the counts ``on_node`` and ``copies``.
    """
    holding.on_node[e, ranks.node[r]] -= copies
    holding.copies[e] -= copies
    if both:
        holding.on_node[e, ranks.node[q]] += copies
        holding.copies[e] += copies


@_compiled
def _extra(holding: Holding, terms: Terms) -> Any:
    """Return the price of a placement in addition to its peaks, in mean rank loads."""
    total = 0.0
    for s in range(holding.expert.size):
        if holding.expert[s] >= 0:
            total += terms.price[s // holding.size, holding.expert[s]]
    for e in range(holding.copies.size):
        total += terms.missing * _missing(holding, e, terms)
    return total


@_inlined
def _more_price(proposal: Proposal, price: Floats) -> Any:
    """Return the change a proposal makes to the summed ``price`` ``(R, E)`` of experts on ranks."""
    a, b, r, q = proposal.a, proposal.b, proposal.r, proposal.q
    if proposal.relabel:
        return price[r, b] - price[r, a]
    return (price[r, b] - price[r, a]) + (price[q, a] - price[q, b])


@_compiled
def _has_spare(holding: Holding) -> Any:
    """Return whether any expert has a second copy; only then can a slot be relabelled."""
    return holding.copies.sum() > holding.copies.size


@_inlined
def _draw(state: State, expert: Ints, num_experts: int, size: int, spare: bool) -> Proposal:
    """Draw a random proposal, which may be impossible; advances ``state``.

    It does not draw again until one is possible: the time of a search would then depend on its
    luck.
    """
    s = _below(state, expert.size)
    a, r = expert[s], s // size
    if a < 0:
        return Proposal(s, r, a, s, r, a, False)
    if spare and _random(state) < _RELABEL:
        return Proposal(s, r, a, s, r, _below(state, num_experts), True)
    o = _below(state, expert.size)
    return Proposal(s, r, a, o, o // size, expert[o], False)


@_inlined
def _is_possible(proposal: Proposal, holding: Holding) -> Any:
    """Return whether a proposal is valid.

    Both slots must exist, every expert must keep a copy, and no rank may get an expert twice. The
    last rule also excludes exchanges within a rank and of an expert with itself.
    """
    a, b = proposal.a, proposal.b
    if a < 0 or b < 0 or holding.held[proposal.r, b]:
        return False
    if proposal.relabel:
        return holding.copies[a] > 1
    return not holding.held[proposal.q, a]


@_inlined
def _cooled(temperature: float, number: int, schedule: Schedule) -> Any:
    """Return the temperature of a proposal; it falls by a factor every ``_STEADY`` proposals."""
    if number % _STEADY != _STEADY - 1:
        return temperature
    return temperature * (schedule.cold / schedule.hot) ** (_STEADY / max(schedule.proposals, 1))


@_inlined
def _limit(value: float, temperature: float, chance: float) -> Any:
    """Return the value that the objective must stay below for a proposal to be accepted.

    This is Metropolis's rule: a rise of ``x`` is accepted with probability
    ``exp(-x / temperature)``. ``chance`` in [0, 1) is drawn before the proposal is judged, so that
    the evaluation of a clear case can stop early.
    """
    return value - temperature * np.log(1.0 - chance)


@_compiled
def _keep_best(best_slots: Ints, best: float, expert: Ints, score: float) -> Any:
    """Return the better of ``best`` and ``score``; copy ``expert`` to ``best_slots`` if better."""
    if score < best - _CLOSE:
        for s in range(expert.size):
            best_slots[s] = expert[s]
        return score
    return best


@_compiled
def _counted(load: float, risk: float, share: float, floor: float, pad: float) -> Any:
    """Return the load, in mean rank loads, that a slot with this share of an expert counts."""
    x = (load + risk * share) * share
    if floor > 0.0 and load > 0.0 and share > 0.0:
        return max(floor, x + pad)
    return x


@_merged
def _share(holding: Holding, e: int, r: int, ranks: Ranks) -> Any:
    """Return the share of expert ``e``'s load that rank ``r`` serves; 0 if it does not hold it."""
    if not holding.held[r, e]:
        return 0.0
    if not ranks.near:
        return 1.0 / holding.copies[e]
    num_nodes = holding.on_node.shape[1]
    without = 0
    for n in range(num_nodes):
        without += holding.on_node[e, n] == 0
    own = 1.0 / holding.on_node[e, ranks.node[r]]
    return (own + without / holding.copies[e]) / num_nodes


@_compiled
def _fill_slot_times(
    time_RT: Floats, load_ET: Floats, risk_ET: Floats, holding: Holding, ranks: Ranks
) -> None:
    """Fill ``time_RT`` ``(R, T)`` with each rank's load in each scenario times its slowness."""
    for r in range(time_RT.shape[0]):
        for t in range(time_RT.shape[1]):
            time_RT[r, t] = 0.0
    for s in range(holding.expert.size):
        e, r = holding.expert[s], s // holding.size
        if e < 0:
            continue
        share, slow = _share(holding, e, r, ranks), ranks.slowness[r]
        for t in range(time_RT.shape[1]):
            x = _counted(load_ET[e, t], risk_ET[e, t], share, ranks.floor, ranks.pad)
            time_RT[r, t] += slow * x


@_inlined
def _touched(visit: Ints, proposal: Proposal, others: bool, holding: Holding) -> int:
    """Write the ranks whose times a proposal may change to ``visit`` ``(R,)``; return how many.

    These are its own one or two ranks. With ``others`` they include every rank that holds one of
    the two experts, because shares depend on the number of copies and on the nodes they are on.
    """
    r, q, a, b = proposal.r, proposal.q, proposal.a, proposal.b
    visit[0] = r
    count = 1
    if q != r:
        visit[1] = q
        count = 2
    if not others:
        return count
    for e in (a, b):
        for i in range(holding.copies[e]):
            v = holding.slot[e, i] // holding.size
            if v != r and v != q and not (e == b and holding.held[v, a]):
                visit[count] = v
                count += 1
    return count


@_compiled
def _fill_shares(
    share_a: Floats,
    share_b: Floats,
    visit: Ints,
    count: int,
    proposal: Proposal,
    holding: Holding,
    ranks: Ranks,
) -> None:
    """Write the present shares of a proposal's two experts on the ranks visited.

    ``share_a`` and ``share_b`` are ``(R,)``; their first ``count`` entries are written.
    """
    for i in range(count):
        share_a[i] = _share(holding, proposal.a, visit[i], ranks)
        share_b[i] = _share(holding, proposal.b, visit[i], ranks)


@_merged
def _fill_near_shares(
    shares: Shares, visit: Ints, count: int, proposal: Proposal, holding: Holding, ranks: Ranks
) -> None:
    """Fill ``shares`` where sources prefer near copies.

    The proposal is applied and undone, because each copy's share depends on the nodes of all
    copies.
    """
    _fill_shares(shares.before_a, shares.before_b, visit, count, proposal, holding, ranks)
    _put(holding, proposal, proposal.b, ranks)
    _fill_shares(shares.after_a, shares.after_b, visit, count, proposal, holding, ranks)
    _put(holding, proposal, proposal.a, ranks)


@_inlined
def _fill_even_shares(
    shares: Shares, visit: Ints, count: int, proposal: Proposal, holding: Holding
) -> None:
    """Fill ``shares`` where all copies of an expert get the same share."""
    copies, held = holding.copies, holding.held
    a, b, r, q, relabel = proposal.a, proposal.b, proposal.r, proposal.q, proposal.relabel
    more = 1 if relabel else 0
    for i in range(count):
        v = visit[i]
        has_a, has_b = held[v, a], held[v, b]
        shares.before_a[i] = 1.0 / copies[a] if has_a else 0.0
        shares.before_b[i] = 1.0 / copies[b] if has_b else 0.0
        gets_a = v != r and (has_a or (v == q and not relabel))
        gets_b = v == r or (has_b and v != q)
        shares.after_a[i] = 1.0 / (copies[a] - more) if gets_a else 0.0
        shares.after_b[i] = 1.0 / (copies[b] + more) if gets_b else 0.0


@_inlined
def _fill_new_times(
    norms: Norms,
    visit: Ints,
    count: int,
    shares: Shares,
    proposal: Proposal,
    load_ET: Floats,
    risk_ET: Floats,
    ranks: Ranks,
) -> None:
    """Fill the rows of ``norms.new_time`` for the first ``count`` ranks in ``visit``."""
    a, b = proposal.a, proposal.b
    floor, pad = ranks.floor, ranks.pad
    time, new_time = norms.time, norms.new_time
    for i in range(count):
        v = visit[i]
        slow = ranks.slowness[v]
        ba, aa, bb, ab = (
            shares.before_a[i],
            shares.after_a[i],
            shares.before_b[i],
            shares.after_b[i],
        )
        if floor > 0.0:
            for t in range(load_ET.shape[1]):
                la, ra, lb, rb = load_ET[a, t], risk_ET[a, t], load_ET[b, t], risk_ET[b, t]
                new_time[v, t] = time[v, t] + slow * (
                    (_counted(la, ra, aa, floor, pad) - _counted(la, ra, ba, floor, pad))
                    + (_counted(lb, rb, ab, floor, pad) - _counted(lb, rb, bb, floor, pad))
                )
        else:  # times are linear in load and risk: one factor serves all scenarios
            fa, ga = slow * (aa - ba), slow * (aa * aa - ba * ba)
            fb, gb = slow * (ab - bb), slow * (ab * ab - bb * bb)
            for t in range(load_ET.shape[1]):
                new_time[v, t] = (
                    time[v, t]
                    + (fa * load_ET[a, t] + ga * risk_ET[a, t])
                    + (fb * load_ET[b, t] + gb * risk_ET[b, t])
                )


@_compiled
def anneal_fixed(
    load_ET: Floats,
    risk_ET: Floats,
    slots: Ints,
    ranks: Ranks,
    terms: Terms,
    objective: Objective,
    schedule: Schedule,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer whose shares do not follow the load: even shares or the nearest copies'.

    A proposal exchanges two slots of different ranks, or gives a redundant slot to another expert.
    No rank ever holds an expert twice.

    Parameters
    ----------
    load_ET
        Load of each expert in each scenario, ``(E, T)``, in mean rank loads; not changed.
    risk_ET
        Price of the variance of an expert with one copy, ``(E, T)``, in mean rank loads; not
        changed.
    slots
        Experts of the slots to start from, ``(S,)``; -1 where there is no slot; not changed.
    ranks, terms, objective, schedule
        See the named tuples.
    seed
        Seed of the random numbers.

    Returns
    -------
    Experts of the best slots met, ``(S,)``, and their objective with the terms; the start if
    nothing was better.
    """
    (E, T), R, bits = load_ET.shape, ranks.slowness.size, objective.bits
    holding = _hold(slots, E, ranks)
    spare = _has_spare(holding)
    norms = _no_norms(R, T)
    _fill_slot_times(norms.new_time, load_ET, risk_ET, holding, ranks)
    _adopt(norms, np.arange(R), R, bits)
    tail_weight = _tail_weight(objective)
    level, value = _level_and_value(norms.norm, objective, tail_weight)
    extra = _extra(holding, terms)
    best_slots = slots.copy()
    score = _exact_value(norms.time, norms.new_norm, objective) if objective.exact else value
    best = _keep_best(best_slots, np.inf, holding.expert, score + extra)
    visit = np.empty(R, np.int64)
    shares = Shares(np.empty(R), np.empty(R), np.empty(R), np.empty(R))
    state = np.array([seed], np.uint64)
    temperature, accepted = schedule.hot, 0
    expert, price = holding.expert, terms.price
    for number in range(schedule.proposals):
        temperature = _cooled(temperature, number, schedule)
        chance = _random(state)
        proposal = _draw(state, expert, E, holding.size, spare)
        if not _is_possible(proposal, holding):
            continue
        limit = _limit(value, temperature, chance)
        step = _more_price(proposal, price)
        if terms.homes > 0:
            step += terms.missing * _more_missing(proposal, holding, ranks, terms)
        others = proposal.relabel or ranks.near
        count = _touched(visit, proposal, others, holding)
        if ranks.near:
            _fill_near_shares(shares, visit, count, proposal, holding, ranks)
        else:
            _fill_even_shares(shares, visit, count, proposal, holding)
        _fill_new_times(norms, visit, count, shares, proposal, load_ET, risk_ET, ranks)
        _add_new_powers(norms, visit, count, bits)
        if _least_value(norms, tail_weight, bits, level) + step >= limit:
            continue
        new = _new_value(norms, tail_weight, bits, level)
        if new + step >= limit:
            continue
        _put(holding, proposal, proposal.b, ranks)
        accepted += 1
        if accepted % _AFRESH == 0:
            _adopt(norms, visit, count, bits)
        else:
            _adopt_new(norms, visit, count, bits)
        level, value = _level_and_value(norms.norm, objective, tail_weight)
        extra += step
        score = _exact_value(norms.time, norms.new_norm, objective) if objective.exact else value
        best = _keep_best(best_slots, best, expert, score + extra)
    return best_slots, best


@_compiled
def _even_split(load_ET: Floats, holding: Holding, num_ranks: int) -> Split:
    """Build a split in which every copy of an expert takes the same share of its load."""
    T = load_ET.shape[1]
    split = Split(np.zeros((num_ranks, T)), np.zeros((holding.expert.size, T)))
    for s in range(holding.expert.size):
        e = holding.expert[s]
        if e < 0:
            continue
        for t in range(T):
            split.flow[s, t] = load_ET[e, t] / holding.copies[e]
            split.sums[s // holding.size, t] += split.flow[s, t]
    return split


@_inlined
def _even_out(
    sums_r: Floats, sums_q: Floats, flow_s: Floats, flow_o: Floats, slow_r: float, slow_q: float
) -> None:
    """Move one expert's load between two ranks until they end together, as far as it allows.

    All arrays are ``(T,)`` and changed in place: the two ranks' sums and the loads of the expert's
    slot on each. Slowness is 1 over the relative speed.
    """
    share = 1.0 / (slow_r + slow_q)
    for t in range(sums_r.size):
        step = share * (slow_q * sums_q[t] - slow_r * sums_r[t])
        step = -flow_s[t] if step < -flow_s[t] else step
        step = flow_o[t] if step > flow_o[t] else step
        sums_r[t] += step
        sums_q[t] -= step
        flow_s[t] += step
        flow_o[t] -= step


@_compiled
def _settle(
    visit: Ints,
    count: int,
    backwards: bool,
    allowed: Bools,
    split: Split,
    holding: Holding,
    slow: Floats,
) -> None:
    """Even out each rank visited with every allowed rank that shares an expert with it.

    Changes ``split``. ``visit`` has ``count`` ranks, taken in reverse order with ``backwards``;
    ``allowed`` is ``(R,)``. Repeated over all ranks this converges to the min-max split: its only
    fixed points are the splits with the least sum of squares, and these have the least peak too.
    """
    expert, slot, copies, size = holding.expert, holding.slot, holding.copies, holding.size
    sums, flow = split.sums, split.flow
    for at in range(count):
        r = visit[count - 1 - at if backwards else at]
        for s in range(r * size, (r + 1) * size):
            e = expert[s]
            if e < 0:
                continue
            for i in range(copies[e]):
                o = slot[e, i]
                q = o // size
                if q != r and allowed[q]:
                    _even_out(sums[r], sums[q], flow[s], flow[o], slow[r], slow[q])


@_compiled
def _reach(visit: Ints, known: Bools, proposal: Proposal, holding: Holding) -> tuple[int, int]:
    """List the ranks that hold a proposal's experts, then their neighbours, in ``visit`` ``(R,)``.

    A neighbour shares an expert with a rank listed before it; neighbours are added until
    ``_VISITS`` ranks are listed. ``known`` ``(R,)`` is set for each rank listed. Returns the number
    of ranks that hold one of the two experts, and the number of all ranks listed.
    """
    size = holding.size
    count = 0
    for e in (proposal.a, proposal.b):
        for i in range(holding.copies[e]):
            r = holding.slot[e, i] // size
            if not known[r]:
                known[r] = True
                visit[count] = r
                count += 1
    own = count
    at = 0
    while at < count < _VISITS:
        for s in range(visit[at] * size, (visit[at] + 1) * size):
            e = holding.expert[s]
            if e < 0:
                continue
            for i in range(holding.copies[e]):
                q = holding.slot[e, i] // size
                if not known[q] and count < _VISITS:
                    known[q] = True
                    visit[count] = q
                    count += 1
        at += 1
    return own, count


@_compiled
def _move_flow(split: Split, proposal: Proposal, holding: Holding) -> None:
    """Change ``split`` for a proposal that was just applied, as a start for settling.

    Exchanged experts take their flow along. A copy that is gone leaves its flow to the other
    copies.
    """
    sums, flow = split.sums, split.flow
    s, r, o, q = proposal.s, proposal.r, proposal.o, proposal.q
    T = sums.shape[1]
    if proposal.relabel:
        copies = holding.copies[proposal.a]
        for i in range(copies):
            heir = holding.slot[proposal.a, i]
            for t in range(T):
                part = flow[s, t] / copies
                flow[heir, t] += part
                sums[heir // holding.size, t] += part
        for t in range(T):
            sums[r, t] -= flow[s, t]
            flow[s, t] = 0.0
    else:
        for t in range(T):
            part = flow[o, t] - flow[s, t]
            sums[r, t] += part
            sums[q, t] -= part
            flow[s, t], flow[o, t] = flow[o, t], flow[s, t]


@_compiled
def _copy_split(
    to: Split, of: Split, visit: Ints, count: int, proposal: Proposal, holding: Holding
) -> None:
    """Copy the split of the visited ranks to ``to``, to keep it or to restore it.

    Restoring takes back a refused proposal. The only copy of an expert always carries all its load,
    so its flow is copied only if the proposal touches that expert.
    """
    T, size = to.sums.shape[1], holding.size
    for i in range(count):
        v = visit[i]
        for t in range(T):
            to.sums[v, t] = of.sums[v, t]
        for s in range(v * size, (v + 1) * size):
            e = holding.expert[s]
            if e >= 0 and (holding.copies[e] > 1 or e == proposal.a or e == proposal.b):
                for t in range(T):
                    to.flow[s, t] = of.flow[s, t]


@_compiled
def _fill_settled_times(norms: Norms, visit: Ints, count: int, split: Split, slow: Floats) -> None:
    """Fill the rows of ``norms.new_time`` for the ranks visited from their sums in the split."""
    for i in range(count):
        v = visit[i]
        for t in range(split.sums.shape[1]):
            norms.new_time[v, t] = slow[v] * split.sums[v, t]


@_inlined
def _add_settled_powers(
    norms: Norms, visit: Ints, count: int, bits: int, split: Split, slow: Floats
) -> None:
    """Fill ``norms.new_total`` as ``_add_new_powers`` does, with the times of the split."""
    total, new_total = norms.total, norms.new_total
    for t in range(total.size):
        new_total[t] = total[t]
    for i in range(count):
        v = visit[i]
        for t in range(total.size):
            new_total[t] += _power(slow[v] * split.sums[v, t], bits) - norms.power[v, t]


@_compiled
def _settle_everyone(split: Split, holding: Holding, slow: Floats) -> None:
    """Even out every rank once with each other that shares an expert; changes ``split``."""
    _settle(
        np.arange(slow.size), slow.size, False, np.ones(slow.size, np.bool_), split, holding, slow
    )


@_compiled
def _adopt_split(
    split: Split,
    kept: Split,
    proposal: Proposal,
    holding: Holding,
    ranks: Ranks,
    norms: Norms,
    objective: Objective,
) -> tuple[float, float]:
    """Settle the split once more over all ranks and keep it; return level and value.

    The two results are those of ``_level_and_value``. A proposal settles only a few ranks; this
    passes their gain on to the others. Changes ``split``, ``kept`` and ``norms``.
    """
    R = ranks.slowness.size
    everyone = np.arange(R)
    _settle_everyone(split, holding, ranks.slowness)
    _copy_split(kept, split, everyone, R, proposal, holding)
    _fill_settled_times(norms, everyone, R, split, ranks.slowness)
    _adopt(norms, everyone, R, objective.bits)
    return _level_and_value(norms.norm, objective, _tail_weight(objective))


@_compiled
def anneal_minmax(
    load_ET: Floats,
    slots: Ints,
    ranks: Ranks,
    terms: Terms,
    objective: Objective,
    schedule: Schedule,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer for the min-max split, in which shares follow the load.

    A proposal takes the flow of its slots along. Then the ranks it touched and their neighbours
    even each other out. The split stays feasible at any time, so no norm is below the one that the
    dispatcher reaches. ``ranks.floor`` and ``ranks.pad`` are ignored.

    Parameters
    ----------
    load_ET
        Load of each expert in each scenario, ``(E, T)``, in mean rank loads; not changed.
    slots
        Experts of the slots to start from, ``(S,)``; -1 where there is no slot; not changed.
    ranks, terms, objective, schedule
        See the named tuples.
    seed
        Seed of the random numbers.

    Returns
    -------
    Experts of the best slots met, ``(S,)``, and their objective with the terms; the start if
    nothing was better.
    """
    (E, T), R, bits = load_ET.shape, ranks.slowness.size, objective.bits
    holding = _hold(slots, E, ranks)
    spare = _has_spare(holding)
    split = _even_split(load_ET, holding, R)
    for _ in range(_SWEEPS_AT_START):
        _settle_everyone(split, holding, ranks.slowness)
    kept = Split(split.sums.copy(), split.flow.copy())
    tail_weight = _tail_weight(objective)
    norms = _no_norms(R, T)
    nothing = Proposal(0, 0, -1, 0, 0, -1, False)
    level, value = _adopt_split(split, kept, nothing, holding, ranks, norms, objective)
    extra = _extra(holding, terms)
    best_slots = slots.copy()
    score = _exact_value(norms.time, norms.new_norm, objective) if objective.exact else value
    best = _keep_best(best_slots, np.inf, holding.expert, score + extra)
    visit, known = np.empty(R, np.int64), np.zeros(R, np.bool_)
    state = np.array([seed], np.uint64)
    temperature = schedule.hot
    expert, price, slow = holding.expert, terms.price, ranks.slowness
    for number in range(schedule.proposals):
        temperature = _cooled(temperature, number, schedule)
        chance = _random(state)
        proposal = _draw(state, expert, E, holding.size, spare)
        if not _is_possible(proposal, holding):
            continue
        limit = _limit(value, temperature, chance)
        step = _more_price(proposal, price)
        if terms.homes > 0:
            step += terms.missing * _more_missing(proposal, holding, ranks, terms)
        _put(holding, proposal, proposal.b, ranks)
        _move_flow(split, proposal, holding)
        own, count = _reach(visit, known, proposal, holding)
        accepted = False
        for sweep in range(_SWEEPS):
            # First the ranks with the two experts, then also their neighbours, forwards and back.
            settling, backwards = own if sweep == 0 else count, sweep == 2
            _settle(visit, settling, backwards, known, split, holding, slow)
            _add_settled_powers(norms, visit, count, bits, split, slow)
            if _least_value(norms, tail_weight, bits, level) + step > limit + _HOPE:
                break  # most proposals are so bad that the first sweep decides
            new = _new_value(norms, tail_weight, bits, level) + step
            accepted = new < limit
            if accepted or new > limit + _HOPE:
                break
        for i in range(count):
            known[visit[i]] = False
        if not accepted:
            _put(holding, proposal, proposal.a, ranks)
            _copy_split(split, kept, visit, count, proposal, holding)
            continue
        level, value = _adopt_split(split, kept, proposal, holding, ranks, norms, objective)
        extra += step
        score = _exact_value(norms.time, norms.new_norm, objective) if objective.exact else value
        best = _keep_best(best_slots, best, expert, score + extra)
    return best_slots, best
