"""The inner loops of annealing, compiled. Plain twins: ``tests/reference/robust.py``.

One layer at a time. ``load_ET`` and ``risk_ET`` describe ``T`` scenarios; a slot of an expert with
``c`` copies counts ``load / c + risk / c**2``: the variance of a share falls with its square.
Everything is deterministic: own random numbers from a seed, sums in visiting order.

Both kernels run the same loop. It draws a proposal, works out what the proposal would cost, and
accepts it or leaves things as they were. They differ in how loads are split over the copies:

``anneal_fixed``   The copies set the shares. So a proposal can be judged before it is applied.
``anneal_minmax``  The shares follow the load. They depend on each other, so a proposal is applied
                   first, the shares settle, and a proposal that is refused is taken back.

All functions that call each other are in this file: numba's cache does not see a change in another
file. The loops take a fraction of a microsecond a proposal, so a few small things count in what
they call: arrays used in every pass are taken out of their groups before the loop, functions return
how many ranks they found and not a view of them, and rows are copied by plain loops.
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

# Small steps of the loops. A call that stays a call passes each array of a group by itself, and
# numba counts references to arrays in what it cannot see through. LLVM merges ``_inlined`` ones
# into their callers once they are compiled. numba itself merges ``_merged`` ones before that, so
# that the caller calls nothing and counts no references either.
_inlined = njit(nogil=True, error_model="numpy", forceinline=True)
_merged = njit(nogil=True, error_model="numpy", inline="always")


class Ranks(NamedTuple):
    """How the ranks differ, and what a share of an expert's load counts on one.

    A slot with load counts at least ``floor``, and ``pad`` more than its share: the time of an
    expert's weights and of incomplete blocks, in mean rank loads.
    """

    slowness: Floats  # (R,): 1 over the relative speed
    node: Ints  # (R,)
    near: bool  # sources prefer the copies on their node, else all copies get the same
    floor: float
    pad: float


class Terms(NamedTuple):
    """What a placement costs besides its peaks, in mean rank loads."""

    price: Floats  # (R, E): price of an expert on a rank
    homes: int  # ranks, or nodes, that each expert should live on
    by_node: bool
    missing: float  # price of each home an expert is short of


class Objective(NamedTuple):
    """How the sums of the ranks become one number.

    The number is the mean over the scenarios, or over their worst ``tail`` share, of the
    ``2 ** bits``-norm over the ranks. A norm also rewards progress on ranks that are not yet the
    busiest. With ``exact`` the best placement is chosen by the busiest rank itself.
    """

    weight: Floats  # (T,)
    tail: float
    bits: int
    exact: bool


class Schedule(NamedTuple):
    """How many proposals to try, and the temperatures at the first and the last of them."""

    proposals: int
    hot: float  # in units of the objective
    cold: float


class Holding(NamedTuple):
    """Which slot has which expert. No rank holds an expert twice."""

    expert: Ints  # (S,): expert of each slot, -1 where there is no slot
    size: int  # slots of a rank
    copies: Ints  # (E,)
    held: Bools  # (R, E)
    slot: Ints  # (E, R): slots of each expert; the first ``copies`` of a row count
    on_node: Ints  # (E, N): copies on each node


class Proposal(NamedTuple):
    """Slot ``s`` of rank ``r`` gets expert ``b`` in place of ``a``.

    An exchange gives ``a`` to slot ``o`` of rank ``q``, which had ``b``. A relabelling leaves ``a``
    with one copy less; ``o`` and ``q`` are then ``s`` and ``r``.
    """

    s: int
    r: int
    a: int
    o: int
    q: int
    b: int
    relabel: bool


class Norms(NamedTuple):
    """Time of every rank and its norm over the ranks, now and after a proposal.

    Totals are kept, so that a proposal costs the ranks that it changes and not all ``R``. Of
    ``new_time`` only the rows of these ranks count.
    """

    time: Floats  # (R, T): what a rank counts, times its slowness
    power: Floats  # (R, T): time ** (2 ** bits)
    total: Floats  # (T,): sum of the powers
    norm: Floats  # (T,)
    new_time: Floats  # (R, T)
    new_total: Floats  # (T,)
    new_norm: Floats  # (T,)


class Shares(NamedTuple):
    """Shares of the two experts of a proposal, on each rank that it touches, ``(R,)`` each."""

    before_a: Floats
    after_a: Floats
    before_b: Floats
    after_b: Floats


class Split(NamedTuple):
    """How the load is split over the slots."""

    sums: Floats  # (R, T)
    flow: Floats  # (S, T)


_CLOSE = 1e-12  # a gain below this is rounding
_MOST_BITS = 6  # of the power of a norm
_TINY = 1e-300  # what no total is divided by less than
_AFRESH = 64  # proposals accepted until totals are summed again
_RELABEL = 0.3  # share of the proposals that give a slot to another expert
_STEADY = 256  # proposals at one temperature
_SWEEPS_AT_START = 50  # over all ranks, from an even split
_SWEEPS = 3  # over the ranks that a proposal touches
_VISITS = 12  # ranks that may even out after a proposal
_HOPE = 0.001  # what evening out once more may gain


@_inlined
def _random(state: State) -> Any:
    """A number in [0, 1): splitmix64, whose every seed is a good one."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@_inlined
def _below(state: State, n: int) -> Any:
    return np.int64(_random(state) * n)


@_inlined
def _power(x: float, bits: int) -> Any:
    """``x ** (2 ** bits)`` for up to ``_MOST_BITS``.

    Without a loop: only so are the loops around it compiled to vector instructions.
    """
    x = x * x if bits > 0 else x
    x = x * x if bits > 1 else x
    x = x * x if bits > 2 else x
    x = x * x if bits > 3 else x
    x = x * x if bits > 4 else x
    return x * x if bits > 5 else x


@_inlined
def _fill_norms(norm: Floats, total: Floats, bits: int) -> None:
    """Norms from totals, which rounding may have made negative."""
    for t in range(total.size):
        norm[t] = max(total[t], 0.0)
    for _ in range(bits):
        for t in range(total.size):
            norm[t] = np.sqrt(norm[t])


@_compiled
def _tail_level(norm: Floats, weight: Floats, tail: float) -> Any:
    """The level above which the worst ``tail`` share of the weight lies; 0 if all of it counts."""
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
    """What each scenario counts in a mean of the worst ``tail`` share, if it is in it, ``(T,)``."""
    return objective.weight / (min(objective.tail, 1.0) * objective.weight.sum())


@_merged
def _tail_mean(norm: Floats, tail_weight: Floats, level: float) -> Any:
    """Mean of the worst share, exact at its level and too high at any other.

    The form of Rockafellar and Uryasev (2000), which makes it as cheap as a mean.  In four sums,
    as an addition waits for the one before it.
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
    """Memory for norms, not filled."""
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
    """The new totals, from the new times of the ranks to visit."""
    total, new_total = norms.total, norms.new_total
    for t in range(total.size):
        new_total[t] = total[t]
    for i in range(count):
        v = visit[i]
        for t in range(total.size):
            new_total[t] += _power(norms.new_time[v, t], bits) - norms.power[v, t]


@_inlined
def _least_value(norms: Norms, tail_weight: Floats, bits: int, level: float) -> Any:
    """What ``_new_value`` is at least, without roots: most proposals are refused by it.

    ``x ** (-1 / p)`` is convex, so no norm is below its tangent in one over the total.
    """
    total, norm, new_total, least = norms.total, norms.norm, norms.new_total, norms.new_norm
    part = 1.0 / (1 << bits)
    for t in range(total.size):
        least[t] = norm[t] * (1.0 + part * (1.0 - total[t] / max(new_total[t], _TINY)))
    return _tail_mean(least, tail_weight, level)


@_inlined
def _new_value(norms: Norms, tail_weight: Floats, bits: int, level: float) -> Any:
    """The objective, without terms, at the new totals.

    The level of the tail stays that of the accepted placement. Another level makes the tail mean
    too high, never too low, and finding it would take a sort.
    """
    _fill_norms(norms.new_norm, norms.new_total, bits)
    return _tail_mean(norms.new_norm, tail_weight, level)


@_inlined
def _adopt_new(norms: Norms, visit: Ints, count: int, bits: int) -> None:
    """As ``_adopt``, with the new totals and norms, which rounding piles up in."""
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
    """Make the new times of the ranks to visit the valid ones, and sum the totals afresh."""
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
    """The level above which the tail of the norms lies, and the objective without terms."""
    level = _tail_level(norm, objective.weight, objective.tail)
    return level, _tail_mean(norm, tail_weight, level)


@_compiled
def _exact_value(time_RT: Floats, peak: Floats, objective: Objective) -> Any:
    """The objective with the busiest rank itself in place of a norm; overwrites ``peak``, (T,)."""
    for t in range(peak.size):
        peak[t] = time_RT[:, t].max()
    return _level_and_value(peak, objective, _tail_weight(objective))[1]


@_compiled
def _hold(slots: Ints, num_experts: int, ranks: Ranks) -> Holding:
    """Index slots ``(S,)``, which are not changed."""
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
    holding.copies[e] += 1
    holding.held[r, e] = True
    holding.on_node[e, ranks.node[r]] += 1


@_compiled
def _lose(holding: Holding, e: int, r: int, ranks: Ranks) -> None:
    holding.copies[e] -= 1
    holding.held[r, e] = False
    holding.on_node[e, ranks.node[r]] -= 1


@_compiled
def _relabel(holding: Holding, s: int, r: int, b: int, ranks: Ranks) -> None:
    """Give slot ``s`` of rank ``r`` to expert ``b``."""
    a = holding.expert[s]
    _replace(holding.slot[a], s, holding.slot[a, holding.copies[a] - 1])
    holding.slot[b, holding.copies[b]] = s
    _lose(holding, a, r, ranks)
    _gain(holding, b, r, ranks)
    holding.expert[s] = b


@_compiled
def _exchange(holding: Holding, s: int, r: int, o: int, q: int, ranks: Ranks) -> None:
    """Exchange the experts of slot ``s`` on rank ``r`` and ``o`` on ``q``."""
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
    """Do a proposal with its expert ``b``, or undo it with ``a``.

    An exchange takes no expert: it undoes itself.
    """
    s, r = proposal.s, proposal.r
    if proposal.relabel:
        _relabel(holding, s, r, expert, ranks)
    else:
        _exchange(holding, s, r, proposal.o, proposal.q, ranks)


@_compiled
def _replace(row: Ints, old: int, new: int) -> None:
    i = 0
    while row[i] != old:
        i += 1
    row[i] = new


@_compiled
def _missing(holding: Holding, e: int, terms: Terms) -> Any:
    """How many homes an expert is short of."""
    if not terms.by_node:
        return max(0, terms.homes - holding.copies[e])
    nodes = 0
    for n in range(holding.on_node.shape[1]):
        nodes += holding.on_node[e, n] > 0
    return max(0, terms.homes - nodes)


@_compiled
def _more_missing(proposal: Proposal, holding: Holding, ranks: Ranks, terms: Terms) -> Any:
    """Homes missing after a proposal less those missing before it.

    The copies are moved, counted and moved back: whether a node stays a home depends on all of an
    expert's copies.
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
    """Count copies off rank ``r`` and with ``both`` onto rank ``q``."""
    holding.on_node[e, ranks.node[r]] -= copies
    holding.copies[e] -= copies
    if both:
        holding.on_node[e, ranks.node[q]] += copies
        holding.copies[e] += copies


@_compiled
def _extra(holding: Holding, terms: Terms) -> Any:
    """What a placement costs besides its peaks."""
    total = 0.0
    for s in range(holding.expert.size):
        if holding.expert[s] >= 0:
            total += terms.price[s // holding.size, holding.expert[s]]
    for e in range(holding.copies.size):
        total += terms.missing * _missing(holding, e, terms)
    return total


@_inlined
def _more_price(proposal: Proposal, price: Floats) -> Any:
    """What a proposal adds to the prices of experts on ranks."""
    a, b, r, q = proposal.a, proposal.b, proposal.r, proposal.q
    if proposal.relabel:
        return price[r, b] - price[r, a]
    return (price[r, b] - price[r, a]) + (price[q, a] - price[q, b])


@_compiled
def _has_spare(holding: Holding) -> Any:
    """Whether an expert has a second copy, so that slots can be given to others at all."""
    return holding.copies.sum() > holding.copies.size


@_inlined
def _draw(state: State, expert: Ints, num_experts: int, size: int, spare: bool) -> Proposal:
    """A random proposal, which may be impossible.

    Redrawing until one is possible would make the time of a search depend on its luck.
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
    """Whether both are slots, every expert keeps a copy, and no rank gets an expert twice.

    The last also excludes exchanges within a rank and of an expert with itself.
    """
    a, b = proposal.a, proposal.b
    if a < 0 or b < 0 or holding.held[proposal.r, b]:
        return False
    if proposal.relabel:
        return holding.copies[a] > 1
    return not holding.held[proposal.q, a]


@_inlined
def _cooled(temperature: float, number: int, schedule: Schedule) -> Any:
    """The temperature of a proposal: it falls by the same factor after each ``_STEADY``."""
    if number % _STEADY != _STEADY - 1:
        return temperature
    return temperature * (schedule.cold / schedule.hot) ** (_STEADY / max(schedule.proposals, 1))


@_inlined
def _limit(value: float, temperature: float, chance: float) -> Any:
    """What the objective must stay below for a proposal to be accepted.

    The rule of Metropolis: a step up of ``x`` is accepted with probability ``exp(-x / T)``. Chance
    enters before the proposal is judged, so that a clear case need not be settled to the end.
    """
    return value - temperature * np.log(1.0 - chance)


@_compiled
def _keep_best(best_slots: Ints, best: float, expert: Ints, score: float) -> Any:
    """The better objective of the best so far and the present one, whose slots are then kept."""
    if score < best - _CLOSE:
        for s in range(expert.size):
            best_slots[s] = expert[s]
        return score
    return best


@_compiled
def _counted(load: float, risk: float, share: float, floor: float, pad: float) -> Any:
    """What a slot counts that takes a share of an expert's load."""
    x = (load + risk * share) * share
    if floor > 0.0 and load > 0.0 and share > 0.0:
        return max(floor, x + pad)
    return x


@_merged
def _share(holding: Holding, e: int, r: int, ranks: Ranks) -> Any:
    """Share of an expert's load that falls on a rank; 0 if it is not there."""
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
    """Sum what every rank counts in every scenario, times its slowness."""
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
    """Ranks whose times a proposal may change, in ``visit``: how many.

    Its own one or two; with ``others`` all that hold one of the two experts, whose shares change if
    the number of copies does, or the nodes they are on.
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
    """Shares of the two experts' loads as they are."""
    for i in range(count):
        share_a[i] = _share(holding, proposal.a, visit[i], ranks)
        share_b[i] = _share(holding, proposal.b, visit[i], ranks)


@_merged
def _fill_near_shares(
    shares: Shares, visit: Ints, count: int, proposal: Proposal, holding: Holding, ranks: Ranks
) -> None:
    """Shares before and after a proposal where sources prefer near copies.

    The proposal is done and undone: every copy's share depends on the nodes of all of them.
    """
    _fill_shares(shares.before_a, shares.before_b, visit, count, proposal, holding, ranks)
    _put(holding, proposal, proposal.b, ranks)
    _fill_shares(shares.after_a, shares.after_b, visit, count, proposal, holding, ranks)
    _put(holding, proposal, proposal.a, ranks)


@_inlined
def _fill_even_shares(
    shares: Shares, visit: Ints, count: int, proposal: Proposal, holding: Holding
) -> None:
    """Shares before and after a proposal where all copies get the same."""
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
    """What the ranks touched count after a proposal."""
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
        else:  # linear in load and risk, so their factors are the same in all scenarios
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
    """Anneal a layer for shares that do not follow the load: even ones, or the nearest copy's.

    Proposals exchange two slots of different ranks, or give a redundant slot to another expert; no
    rank ever holds an expert twice.

    Parameters
    ----------
    load_ET, risk_ET
        Scenarios, in units of the mean rank's load.
    slots
        Slots to start from, ``(S,)``; -1 where there is no slot; not changed.

    Returns
    -------
    The best slots met, ``(S,)``, and their objective; the start if nothing is better.
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
    """Every copy of an expert takes the same share of its load."""
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
    """Let two ranks share one expert's load so that they are as even as its load allows.

    The arrays are rows over the scenarios: of two ranks' sums and of the expert's two slots.
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
    """Even out each rank to visit with every allowed rank it shares an expert with, in turn.

    Repeated over all ranks this ends at the min-max split: its only fixed points are the flows with
    the least sum of squares, whose peak is least too.
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
    """Ranks with one of two experts, then those they share experts with: how many, and in all.

    ``visit``, ``(R,)``, is filled in that order, with neighbours up to ``_VISITS`` ranks in all;
    ``known`` marks them.
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
    """Let the flow follow a proposal that was just done: a start to settle from.

    Exchanged experts take their flow along; a copy that is gone leaves it to the other copies.
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
    """Copy the split of the ranks to visit: to keep it, or to take back a refused proposal.

    The flow of an expert's only copy is all its load. It differs only if the proposal touches it.
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
    """The new times of the ranks to visit, from their share of the split."""
    for i in range(count):
        v = visit[i]
        for t in range(split.sums.shape[1]):
            norms.new_time[v, t] = slow[v] * split.sums[v, t]


@_inlined
def _add_settled_powers(
    norms: Norms, visit: Ints, count: int, bits: int, split: Split, slow: Floats
) -> None:
    """As ``_add_new_powers``, for the times that the split gives the ranks."""
    total, new_total = norms.total, norms.new_total
    for t in range(total.size):
        new_total[t] = total[t]
    for i in range(count):
        v = visit[i]
        for t in range(total.size):
            new_total[t] += _power(slow[v] * split.sums[v, t], bits) - norms.power[v, t]


@_compiled
def _settle_everyone(split: Split, holding: Holding, slow: Floats) -> None:
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
    """Settle the split once more and keep it; returns what ``_level_and_value`` does.

    A proposal settles a few ranks only. This passes what they gained on to the others.
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
    """Anneal a layer for the min-max split: as ``anneal_fixed``, but the shares are kept as well.

    A proposal takes the flow of its slots along; then the ranks it touched and their neighbours
    even each other out.  The split is feasible at any time, so no norm is below what the dispatcher
    reaches.  A floor or a padding of the ranks counts for nothing here.
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
            # The ranks with the two experts first, then their neighbours too, forth and back.
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
