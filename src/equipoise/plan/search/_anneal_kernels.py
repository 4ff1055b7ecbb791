"""The inner loops of ``Robust``, compiled. Plain twins: ``tests/reference/robust.py``.

One layer at a time. ``load_ET`` and ``risk_ET`` describe ``T`` scenarios; a slot of an expert with
``c`` copies counts ``load / c + risk / c**2``: the variance of a share falls with its square.
Everything is deterministic: own random numbers from a seed, sums in visiting order.
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


class Ranks(NamedTuple):
    """What sets the ranks apart, and what a share of an expert's load counts on one.

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

    price: Floats  # (R, E): of an expert being on a rank
    homes: int  # ranks, or nodes, that each expert should live on
    by_node: bool
    missing: float  # price of each home an expert is short of


class Holding(NamedTuple):
    """Who holds what. No rank holds an expert twice."""

    copies: Ints  # (E,)
    held: Bools  # (R, E)
    slot: Ints  # (E, R): slots of each expert, as many as it has copies
    on_node: Ints  # (E, N): copies on each node


_CLOSE = 1e-12  # a gain below this is rounding
_RELABEL = 0.3  # share of the proposals that give a slot to another expert
_SWEEPS_AT_START = 50  # over all ranks, from an even split
_VISITS = 12  # ranks that may even out after a proposal
_HOPE = 0.005  # what evening out once more may gain


@_compiled
def _random(state: State) -> Any:
    """A number in [0, 1): splitmix64, whose every seed is a good one."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@_compiled
def _below(state: State, n: int) -> Any:
    return np.int64(_random(state) * n)


@_compiled
def _power(x: float, bits: int) -> Any:
    """``x ** (2 ** bits)``."""
    for _ in range(bits):
        x = x * x
    return x


@_compiled
def _root(x: float, bits: int) -> Any:
    x = max(x, 0.0)
    for _ in range(bits):
        x = np.sqrt(x)
    return x


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
def _tail_mean(norm: Floats, weight: Floats, tail: float, level: float) -> Any:
    """Mean of the worst ``tail`` share, exact at its level and too high at any other.

    The form of Rockafellar and Uryasev (2000), which makes it as cheap as a mean.
    """
    total = 0.0
    for t in range(norm.size):
        total += weight[t] * max(norm[t] - level, 0.0)
    return level + total / (min(tail, 1.0) * weight.sum())


@_compiled
def _exact_score(sums_RT: Floats, peak: Floats, weight: Floats, tail: float) -> Any:
    """The objective with the busiest rank itself in place of a norm; overwrites ``peak``, (T,)."""
    for t in range(peak.size):
        peak[t] = sums_RT[:, t].max()
    return _tail_mean(peak, weight, tail, _tail_level(peak, weight, tail))


@_compiled
def _hold(slots: Ints, num_experts: int, ranks: Ranks) -> Holding:
    """Who holds what."""
    R, N = ranks.slowness.size, ranks.node.max() + 1
    holding = Holding(
        np.zeros(num_experts, np.int64),
        np.zeros((R, num_experts), np.bool_),
        np.empty((num_experts, R), np.int64),
        np.zeros((num_experts, N), np.int64),
    )
    for s in range(slots.size):
        e = slots[s]
        if e >= 0:
            holding.slot[e, holding.copies[e]] = s
            _gain(holding, e, s // (slots.size // R), ranks)
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
def _relabel(holding: Holding, slots: Ints, s: int, r: int, b: int, ranks: Ranks) -> None:
    """Give slot ``s`` of rank ``r`` to expert ``b``; its own undoing with the expert it had."""
    a = slots[s]
    _replace(holding.slot[a], s, holding.slot[a, holding.copies[a] - 1])
    holding.slot[b, holding.copies[b]] = s
    _lose(holding, a, r, ranks)
    _gain(holding, b, r, ranks)
    slots[s] = b


@_compiled
def _exchange(holding: Holding, slots: Ints, s: int, r: int, o: int, q: int, ranks: Ranks) -> None:
    """Swap the experts of slot ``s`` on rank ``r`` and ``o`` on ``q``; its own undoing."""
    a, b = slots[s], slots[o]
    _replace(holding.slot[a], s, o)
    _replace(holding.slot[b], o, s)
    _lose(holding, a, r, ranks)
    _lose(holding, b, q, ranks)
    _gain(holding, a, q, ranks)
    _gain(holding, b, r, ranks)
    slots[s], slots[o] = b, a


@_compiled
def _apply(
    holding: Holding,
    slots: Ints,
    s: int,
    r: int,
    o: int,
    q: int,
    b: int,
    relabel: bool,
    ranks: Ranks,
) -> None:
    """Do a proposal; done again with the expert it took away it is undone."""
    if relabel:
        _relabel(holding, slots, s, r, b, ranks)
    else:
        _exchange(holding, slots, s, r, o, q, ranks)


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
def _more_missing(
    a: int, b: int, r: int, q: int, relabel: bool, holding: Holding, ranks: Ranks, terms: Terms
) -> Any:
    """Homes missing after a proposal less those missing before it.

    Expert ``a`` leaves rank ``r`` to ``b``, and ``b`` leaves ``q`` to ``a`` unless it is a
    relabelling.
    """
    before = _missing(holding, a, terms) + _missing(holding, b, terms)
    _move_home(holding, a, r, q, not relabel, 1, ranks)
    _move_home(holding, b, r, q, not relabel, -1, ranks)
    after = _missing(holding, a, terms) + _missing(holding, b, terms)
    _move_home(holding, a, r, q, not relabel, -1, ranks)
    _move_home(holding, b, r, q, not relabel, 1, ranks)
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
def _extra(slots: Ints, holding: Holding, terms: Terms) -> Any:
    """What a placement costs besides its peaks."""
    size = slots.size // terms.price.shape[0]
    total = 0.0
    for s in range(slots.size):
        if slots[s] >= 0:
            total += terms.price[s // size, slots[s]]
    for e in range(holding.copies.size):
        total += terms.missing * _missing(holding, e, terms)
    return total


@_compiled
def _counted(load: float, risk: float, share: float, floor: float, pad: float) -> Any:
    """What a slot counts that takes a share of an expert's load."""
    x = (load + risk * share) * share
    if floor > 0.0 and load > 0.0 and share > 0.0:
        return max(floor, x + pad)
    return x


@_compiled
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
def _fill_shares(
    share_a: Floats, share_b: Floats, visit: Ints, a: int, b: int, holding: Holding, ranks: Ranks
) -> None:
    """Shares of two experts' loads on the ranks to visit."""
    for i in range(visit.size):
        share_a[i] = _share(holding, a, visit[i], ranks)
        share_b[i] = _share(holding, b, visit[i], ranks)


@_compiled
def _slot_sums(
    load_ET: Floats, risk_ET: Floats, slots: Ints, holding: Holding, ranks: Ranks
) -> Floats:
    """What every rank counts in every scenario, ``(R, T)``."""
    R = ranks.slowness.size
    C = slots.size // R
    sums_RT = np.zeros((R, load_ET.shape[1]))
    for s in range(slots.size):
        e, r = slots[s], s // C
        if e < 0:
            continue
        share, slow = _share(holding, e, r, ranks), ranks.slowness[r]
        for t in range(load_ET.shape[1]):
            x = _counted(load_ET[e, t], risk_ET[e, t], share, ranks.floor, ranks.pad)
            sums_RT[r, t] += slow * x
    return sums_RT


@_compiled
def _refresh(sums_RT: Floats, power_RT: Floats, total: Floats, norm: Floats, bits: int) -> None:
    """Totals and norms from the powers, anew: differences would let rounding pile up."""
    total[:] = 0.0
    for r in range(sums_RT.shape[0]):
        for t in range(total.size):
            total[t] += power_RT[r, t]
    for t in range(total.size):
        norm[t] = _root(total[t], bits)


@_compiled
def anneal_fixed(
    load_ET: Floats,
    risk_ET: Floats,
    weight: Floats,
    slots: Ints,
    ranks: Ranks,
    terms: Terms,
    moves: int,
    hot: float,
    cold: float,
    tail: float,
    bits: int,
    exact: bool,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer for shares that do not follow the load: even ones, or the nearest copy's.

    Proposals exchange two slots of different ranks, or give a redundant slot to another expert; no
    rank ever holds an expert twice.  The objective is the mean over scenarios, or over their worst
    ``tail`` share, of the ``2 ** bits``-norm of the ranks, and the terms.  With ``exact`` the best
    is chosen by the peaks themselves, not by the norm.

    Parameters
    ----------
    load_ET, risk_ET, weight
        Scenarios, in units of the mean rank's load, and their weights ``(T,)``.
    slots
        Where to start, ``(S,)``; -1 where there is no slot; not changed.
    hot, cold
        Temperatures at the first and last move, in units of the objective.

    Returns
    -------
    The best slots met, ``(S,)``, and their objective; the start if nothing is better.
    """
    E, T = load_ET.shape
    S, R = slots.size, ranks.slowness.size
    C = S // R
    slots = slots.copy()
    holding = _hold(slots, E, ranks)
    spare = holding.copies.sum() > E
    sums_RT = _slot_sums(load_ET, risk_ET, slots, holding, ranks)
    power_RT = np.empty_like(sums_RT)
    for r in range(R):
        for t in range(T):
            power_RT[r, t] = _power(sums_RT[r, t], bits)
    total, norm, new_total, new_norm = np.empty(T), np.empty(T), np.empty(T), np.empty(T)
    new_RT = np.empty_like(sums_RT)
    visit, before_a, after_a, before_b, after_b = (
        np.empty(R, np.int64),
        np.empty(R),
        np.empty(R),
        np.empty(R),
        np.empty(R),
    )
    copies, held, slowness = holding.copies, holding.held, ranks.slowness
    floor, pad = ranks.floor, ranks.pad
    _refresh(sums_RT, power_RT, total, norm, bits)
    level = _tail_level(norm, weight, tail)
    value = _tail_mean(norm, weight, tail, level)
    extra = _extra(slots, holding, terms)
    best_slots, best = slots.copy(), np.inf
    state = np.array([seed], np.uint64)
    temperature = hot
    cooling = (cold / hot) ** (256.0 / max(moves, 1))
    changed = True
    for move in range(moves + 1):
        if changed:
            score = value + extra
            if exact:
                score = _exact_score(sums_RT, new_norm, weight, tail) + extra
            if score < best - _CLOSE:
                best = score
                best_slots[:] = slots
        changed = False
        if move % 256 == 255:
            temperature *= cooling
        limit = value - temperature * np.log(1.0 - _random(state))
        s = _below(state, S)
        r, a = s // C, slots[s]
        if a < 0:
            continue
        relabel = spare and _random(state) < _RELABEL
        if relabel:
            o, q, b = s, r, _below(state, E)
            if copies[a] < 2 or held[r, b]:
                continue
            step = terms.price[r, b] - terms.price[r, a]
        else:
            o = _below(state, S)
            q, b = o // C, slots[o]
            if b < 0 or q == r or a == b or held[r, b] or held[q, a]:
                continue
            step = terms.price[r, b] - terms.price[r, a]
            step += terms.price[q, a] - terms.price[q, b]
        if terms.homes > 0:
            step += terms.missing * _more_missing(a, b, r, q, relabel, holding, ranks, terms)
        count = _touched(visit, r, q, a, b, relabel or ranks.near, holding, C)
        if ranks.near:
            _fill_shares(before_a, before_b, visit[:count], a, b, holding, ranks)
            _apply(holding, slots, s, r, o, q, b, relabel, ranks)
            _fill_shares(after_a, after_b, visit[:count], a, b, holding, ranks)
            _apply(holding, slots, s, r, o, q, a, relabel, ranks)
        else:
            more = 1 if relabel else 0
            for i in range(count):
                p = visit[i]
                has_a, has_b = held[p, a], held[p, b]
                before_a[i] = 1.0 / copies[a] if has_a else 0.0
                before_b[i] = 1.0 / copies[b] if has_b else 0.0
                gets_a = p != r and (has_a or (p == q and not relabel))
                gets_b = p == r or (has_b and p != q)
                after_a[i] = 1.0 / (copies[a] - more) if gets_a else 0.0
                after_b[i] = 1.0 / (copies[b] + more) if gets_b else 0.0
        new_total[:] = total
        for i in range(count):
            p = visit[i]
            ba, aa, bb, ab = before_a[i], after_a[i], before_b[i], after_b[i]
            if floor > 0.0:
                for t in range(T):
                    la, ra, lb, rb = load_ET[a, t], risk_ET[a, t], load_ET[b, t], risk_ET[b, t]
                    new_RT[p, t] = sums_RT[p, t] + slowness[p] * (
                        (_counted(la, ra, aa, floor, pad) - _counted(la, ra, ba, floor, pad))
                        + (_counted(lb, rb, ab, floor, pad) - _counted(lb, rb, bb, floor, pad))
                    )
            else:
                fa, ga = slowness[p] * (aa - ba), slowness[p] * (aa * aa - ba * ba)
                fb, gb = slowness[p] * (ab - bb), slowness[p] * (ab * ab - bb * bb)
                for t in range(T):
                    new_RT[p, t] = (
                        sums_RT[p, t]
                        + (fa * load_ET[a, t] + ga * risk_ET[a, t])
                        + (fb * load_ET[b, t] + gb * risk_ET[b, t])
                    )
            for t in range(T):
                new_total[t] += _power(new_RT[p, t], bits) - power_RT[p, t]
        for t in range(T):
            new_norm[t] = _root(new_total[t], bits)
        if _tail_mean(new_norm, weight, tail, level) + step >= limit:
            continue
        _apply(holding, slots, s, r, o, q, b, relabel, ranks)
        for i in range(count):
            p = visit[i]
            for t in range(T):
                sums_RT[p, t] = new_RT[p, t]
                power_RT[p, t] = _power(new_RT[p, t], bits)
        changed = True
        _refresh(sums_RT, power_RT, total, norm, bits)
        level = _tail_level(norm, weight, tail)
        value = _tail_mean(norm, weight, tail, level)
        extra += step
    return best_slots, best


@_compiled
def _touched(
    visit: Ints, r: int, q: int, a: int, b: int, others: bool, holding: Holding, size: int
) -> int:
    """Ranks whose sums a move may change, in ``visit``: two, with ``others`` all that share."""
    visit[0] = r
    count = 1
    if q != r:
        visit[1] = q
        count = 2
    if not others:
        return count
    for e in (a, b):
        for i in range(holding.copies[e]):
            p = holding.slot[e, i] // size
            if p != r and p != q and not (e == b and holding.held[p, a]):
                visit[count] = p
                count += 1
    return count


@_compiled
def _even_out(
    sums_r: Floats, sums_q: Floats, flow_s: Floats, flow_o: Floats, slow_r: float, slow_q: float
) -> None:
    """Let two ranks share one expert's load so that they are as alike as its load allows.

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
    slots: Ints,
    holding: Holding,
    ranks: Ranks,
    sums_RT: Floats,
    flow_ST: Floats,
    allowed: Bools,
) -> None:
    """Even out each rank to visit with every allowed rank it shares an expert with, in turn.

    Repeated over all ranks this ends at the min-max split: its only fixed points are the flows with
    the least sum of squares, whose peak is least too.
    """
    size = slots.size // sums_RT.shape[0]
    slow = ranks.slowness
    for r in visit:
        for s in range(r * size, (r + 1) * size):
            e = slots[s]
            if e < 0:
                continue
            for i in range(holding.copies[e]):
                o = holding.slot[e, i]
                q = o // size
                if q != r and allowed[q]:
                    _even_out(sums_RT[r], sums_RT[q], flow_ST[s], flow_ST[o], slow[r], slow[q])


@_compiled
def _reach(
    visit: Ints, known: Bools, a: int, b: int, slots: Ints, holding: Holding
) -> tuple[int, int]:
    """Ranks with one of two experts, then those they share experts with: how many, and in all.

    ``visit``, ``(R,)``, is filled in that order, with neighbours up to ``_VISITS`` ranks in all;
    ``known`` marks them.
    """
    size = slots.size // known.size
    count = 0
    for e in (a, b):
        for i in range(holding.copies[e]):
            r = holding.slot[e, i] // size
            if not known[r]:
                known[r] = True
                visit[count] = r
                count += 1
    first = count
    at = 0
    while at < count < _VISITS:
        for s in range(visit[at] * size, (visit[at] + 1) * size):
            e = slots[s]
            if e < 0:
                continue
            for i in range(holding.copies[e]):
                q = holding.slot[e, i] // size
                if not known[q] and count < _VISITS:
                    known[q] = True
                    visit[count] = q
                    count += 1
        at += 1
    return first, count


@_compiled
def anneal_minmax(
    load_ET: Floats,
    weight: Floats,
    slots: Ints,
    ranks: Ranks,
    terms: Terms,
    moves: int,
    hot: float,
    cold: float,
    tail: float,
    bits: int,
    exact: bool,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer for the min-max split: as ``anneal_fixed``, with the shares kept beside.

    A proposal takes the shares of its slots along; then the ranks it touched and their neighbours
    even each other out.  Shares are feasible at any time, so no norm is below what the dispatcher
    reaches.  A floor or a padding of the ranks counts for nothing here.
    """
    E, T = load_ET.shape
    S, R = slots.size, ranks.slowness.size
    C = S // R
    slow = ranks.slowness
    slots = slots.copy()
    holding = _hold(slots, E, ranks)
    spare = holding.copies.sum() > E
    flow_ST, sums_RT = np.zeros((S, T)), np.zeros((R, T))
    for s in range(S):
        e = slots[s]
        if e < 0:
            continue
        for t in range(T):
            flow_ST[s, t] = load_ET[e, t] / holding.copies[e]
            sums_RT[s // C, t] += flow_ST[s, t]
    everyone, all_allowed = np.arange(R), np.ones(R, np.bool_)
    for _ in range(_SWEEPS_AT_START):
        _settle(everyone, slots, holding, ranks, sums_RT, flow_ST, all_allowed)
    power_RT, timed_RT = np.empty_like(sums_RT), np.empty_like(sums_RT)
    total, norm, new_total, new_norm = np.empty(T), np.empty(T), np.empty(T), np.empty(T)
    old_sums, old_flow = sums_RT.copy(), flow_ST.copy()
    visit, known = np.empty(R, np.int64), np.zeros(R, np.bool_)
    extra = _extra(slots, holding, terms)
    best_slots, best = slots.copy(), np.inf
    state = np.array([seed], np.uint64)
    temperature = hot
    cooling = (cold / hot) ** (256.0 / max(moves, 1))
    level, value = 0.0, 0.0
    changed = True
    for move in range(moves + 1):
        if changed:
            _settle(everyone, slots, holding, ranks, sums_RT, flow_ST, all_allowed)
            old_sums[:], old_flow[:] = sums_RT, flow_ST
            for r in range(R):
                for t in range(T):
                    timed_RT[r, t] = slow[r] * sums_RT[r, t]
                    power_RT[r, t] = _power(timed_RT[r, t], bits)
            _refresh(sums_RT, power_RT, total, norm, bits)
            level = _tail_level(norm, weight, tail)
            value = _tail_mean(norm, weight, tail, level)
            score = value + extra
            if exact:
                score = _exact_score(timed_RT, new_norm, weight, tail) + extra
            if score < best - _CLOSE:
                best = score
                best_slots[:] = slots
        changed = False
        if move % 256 == 255:
            temperature *= cooling
        limit = value - temperature * np.log(1.0 - _random(state))
        s = _below(state, S)
        r, a = s // C, slots[s]
        if a < 0:
            continue
        relabel = spare and _random(state) < _RELABEL
        if relabel:
            o, q, b = s, r, _below(state, E)
            if holding.copies[a] < 2 or holding.held[r, b]:
                continue
            step = terms.price[r, b] - terms.price[r, a]
        else:
            o = _below(state, S)
            q, b = o // C, slots[o]
            if b < 0 or q == r or a == b or holding.held[r, b] or holding.held[q, a]:
                continue
            step = terms.price[r, b] - terms.price[r, a]
            step += terms.price[q, a] - terms.price[q, b]
        if terms.homes > 0:
            step += terms.missing * _more_missing(a, b, r, q, relabel, holding, ranks, terms)
        if relabel:
            _relabel(holding, slots, s, r, b, ranks)
            for i in range(holding.copies[a]):  # the shares left behind go to the other copies
                heir = holding.slot[a, i]
                for t in range(T):
                    part = flow_ST[s, t] / holding.copies[a]
                    flow_ST[heir, t] += part
                    sums_RT[heir // C, t] += part
            for t in range(T):
                sums_RT[r, t] -= flow_ST[s, t]
                flow_ST[s, t] = 0.0
        else:
            _exchange(holding, slots, s, r, o, q, ranks)
            for t in range(T):
                part = flow_ST[o, t] - flow_ST[s, t]
                sums_RT[r, t] += part
                sums_RT[q, t] -= part
                flow_ST[s, t], flow_ST[o, t] = flow_ST[o, t], flow_ST[s, t]
        first, count = _reach(visit, known, a, b, slots, holding)
        accepted = False
        for sweep in range(3):  # the ranks touched; then their neighbours too, forth and back
            if sweep == 0:
                _settle(visit[:first], slots, holding, ranks, sums_RT, flow_ST, known)
            elif sweep == 1:
                _settle(visit[:count], slots, holding, ranks, sums_RT, flow_ST, known)
            else:
                _settle(visit[:count][::-1], slots, holding, ranks, sums_RT, flow_ST, known)
            new_total[:] = total
            for p in visit[:count]:
                for t in range(T):
                    new_total[t] += _power(slow[p] * sums_RT[p, t], bits) - power_RT[p, t]
            for t in range(T):
                new_norm[t] = _root(new_total[t], bits)
            new = _tail_mean(new_norm, weight, tail, level) + step
            accepted = new < limit
            if accepted or new > limit + _HOPE:
                break
        for p in visit[:count]:
            known[p] = False
        if accepted:
            extra += step
            changed = True
            continue
        _apply(holding, slots, s, r, o, q, a, relabel, ranks)
        for p in visit[:count]:
            sums_RT[p] = old_sums[p]
            flow_ST[p * C : (p + 1) * C] = old_flow[p * C : (p + 1) * C]
    return best_slots, best
