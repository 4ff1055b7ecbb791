"""The inner loops of ``Robust``, compiled. Plain twins: ``tests/reference/robust.py``.

One layer at a time. ``load_ET`` and ``risk_ET`` describe ``T`` scenarios; a slot of an expert with
``c`` copies counts ``load / c + risk / c**2``: the variance of a share falls with its square.
Everything is deterministic: own random numbers from a seed, sums in visiting order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
State = NDArray[np.uint64]

_compiled = njit(cache=True, nogil=True, error_model="numpy")

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
def _hold(slots: Ints, num_ranks: int, num_experts: int) -> tuple[Ints, Bools]:
    """Copies of each expert, ``(E,)``, and who holds it, ``(R, E)``."""
    C = slots.size // num_ranks
    copies = np.zeros(num_experts, np.int64)
    held_RE = np.zeros((num_ranks, num_experts), np.bool_)
    for s in range(slots.size):
        copies[slots[s]] += 1
        held_RE[s // C, slots[s]] = True
    return copies, held_RE


@_compiled
def _slot_sums(
    load_ET: Floats, risk_ET: Floats, slots: Ints, copies: Ints, num_ranks: int
) -> Floats:
    """What every rank counts in every scenario, ``(R, T)``."""
    C = slots.size // num_ranks
    sums_RT = np.zeros((num_ranks, load_ET.shape[1]))
    for s in range(slots.size):
        e = slots[s]
        share = 1.0 / copies[e]
        for t in range(load_ET.shape[1]):
            sums_RT[s // C, t] += (load_ET[e, t] + risk_ET[e, t] * share) * share
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
def anneal_even(
    load_ET: Floats,
    risk_ET: Floats,
    weight: Floats,
    slots: Ints,
    num_ranks: int,
    moves: int,
    hot: float,
    cold: float,
    tail: float,
    bits: int,
    exact: bool,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer for an even split.

    Proposals exchange two slots of different ranks, or give a redundant slot to another expert; no
    rank ever holds an expert twice.  The objective is the mean over scenarios, or over their worst
    ``tail`` share, of the ``2 ** bits``-norm of the ranks.  With ``exact`` the best is chosen by
    the peaks themselves, not by the norm.

    Parameters
    ----------
    load_ET, risk_ET, weight
        Scenarios, in units of the mean rank's load, and their weights ``(T,)``.
    slots
        Where to start, ``(S,)``; not changed.
    hot, cold
        Temperatures at the first and last move, in units of the objective.

    Returns
    -------
    The best slots met, ``(S,)``, and their objective; the start if nothing is better.
    """
    E, T = load_ET.shape
    S = slots.size
    C = S // num_ranks
    slots = slots.copy()
    copies, held_RE = _hold(slots, num_ranks, E)
    sums_RT = _slot_sums(load_ET, risk_ET, slots, copies, num_ranks)
    power_RT = np.empty_like(sums_RT)
    for r in range(num_ranks):
        for t in range(T):
            power_RT[r, t] = _power(sums_RT[r, t], bits)
    total, norm = np.empty(T), np.empty(T)
    new_RT, new_total, new_norm, step = (
        np.empty_like(sums_RT),
        np.empty(T),
        np.empty(T),
        np.empty(T),
    )
    _refresh(sums_RT, power_RT, total, norm, bits)
    level = _tail_level(norm, weight, tail)
    value = _tail_mean(norm, weight, tail, level)
    best_slots, best = slots.copy(), np.inf
    state = np.array([seed], np.uint64)
    temperature = hot
    cooling = (cold / hot) ** (256.0 / max(moves, 1))
    changed = True
    for move in range(moves + 1):
        if changed:
            score = value
            if exact:
                score = _exact_score(sums_RT, new_norm, weight, tail)
            if score < best - _CLOSE:
                best = score
                best_slots[:] = slots
        changed = False
        if move % 256 == 255:
            temperature *= cooling
        limit = value - temperature * np.log(1.0 - _random(state))
        s = _below(state, S)
        r, a = s // C, slots[s]
        if S > E and _random(state) < _RELABEL:
            b = _below(state, E)
            if copies[a] < 2 or held_RE[r, b]:
                continue
            lost, kept = 1.0 / copies[a], 1.0 / (copies[a] - 1)
            had, has = 1.0 / copies[b], 1.0 / (copies[b] + 1)
            new_total[:] = total
            for q in range(num_ranks):
                fa = (kept - lost) if held_RE[q, a] else 0.0
                ga = (kept * kept - lost * lost) if held_RE[q, a] else 0.0
                fb = (has - had) if held_RE[q, b] else 0.0
                gb = (has * has - had * had) if held_RE[q, b] else 0.0
                if q == r:
                    fa, ga, fb, gb = -lost, -lost * lost, has, has * has
                elif not (held_RE[q, a] or held_RE[q, b]):
                    continue
                for t in range(T):
                    x = (
                        sums_RT[q, t]
                        + fa * load_ET[a, t]
                        + ga * risk_ET[a, t]
                        + fb * load_ET[b, t]
                        + gb * risk_ET[b, t]
                    )
                    new_RT[q, t] = x
                    new_total[t] += _power(x, bits) - power_RT[q, t]
            for t in range(T):
                new_norm[t] = _root(new_total[t], bits)
            if _tail_mean(new_norm, weight, tail, level) >= limit:
                continue
            for q in range(num_ranks):
                if q == r or held_RE[q, a] or held_RE[q, b]:
                    for t in range(T):
                        sums_RT[q, t] = new_RT[q, t]
                        power_RT[q, t] = _power(new_RT[q, t], bits)
            copies[a] -= 1
            copies[b] += 1
            held_RE[r, a], held_RE[r, b] = False, True
            slots[s] = b
        else:
            o = _below(state, S)
            q, b = o // C, slots[o]
            if q == r or a == b or held_RE[r, b] or held_RE[q, a]:
                continue
            ia, ib = 1.0 / copies[a], 1.0 / copies[b]
            for t in range(T):
                step[t] = (load_ET[b, t] + risk_ET[b, t] * ib) * ib - (
                    load_ET[a, t] + risk_ET[a, t] * ia
                ) * ia
                new_total[t] = (
                    total[t]
                    - power_RT[r, t]
                    - power_RT[q, t]
                    + _power(sums_RT[r, t] + step[t], bits)
                    + _power(sums_RT[q, t] - step[t], bits)
                )
            for t in range(T):
                new_norm[t] = _root(new_total[t], bits)
            if _tail_mean(new_norm, weight, tail, level) >= limit:
                continue
            for t in range(T):
                sums_RT[r, t] += step[t]
                sums_RT[q, t] -= step[t]
                power_RT[r, t] = _power(sums_RT[r, t], bits)
                power_RT[q, t] = _power(sums_RT[q, t], bits)
            held_RE[r, a], held_RE[r, b] = False, True
            held_RE[q, b], held_RE[q, a] = False, True
            slots[s], slots[o] = b, a
        changed = True
        _refresh(sums_RT, power_RT, total, norm, bits)
        level = _tail_level(norm, weight, tail)
        value = _tail_mean(norm, weight, tail, level)
    return best_slots, best


@_compiled
def _even_out(sums_r: Floats, sums_q: Floats, flow_s: Floats, flow_o: Floats) -> None:
    """Let two ranks share one expert's load so that they are as alike as its load allows.

    The arrays are rows over the scenarios: of two ranks' sums and of the expert's two slots.
    """
    for t in range(sums_r.size):
        step = 0.5 * (sums_q[t] - sums_r[t])
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
    copies: Ints,
    slots_ER: Ints,
    sums_RT: Floats,
    flow_ST: Floats,
    allowed: Bools,
) -> None:
    """Even out each rank to visit with every allowed rank it shares an expert with, in turn.

    Repeated over all ranks this ends at the min-max split: its only fixed points are the flows with
    the least sum of squares, whose peak is least too.
    """
    size = slots.size // sums_RT.shape[0]
    for r in visit:
        for s in range(r * size, (r + 1) * size):
            e = slots[s]
            for i in range(copies[e]):
                o = slots_ER[e, i]
                q = o // size
                if q != r and allowed[q]:
                    _even_out(sums_RT[r], sums_RT[q], flow_ST[s], flow_ST[o])


@_compiled
def _replace(row: Ints, old: int, new: int) -> None:
    i = 0
    while row[i] != old:
        i += 1
    row[i] = new


@_compiled
def _reach(
    visit: Ints, known: Bools, a: int, b: int, slots: Ints, copies: Ints, slots_ER: Ints
) -> tuple[int, int]:
    """Ranks with one of two experts, then those they share experts with: how many, and in all.

    ``visit``, ``(R,)``, is filled in that order, with neighbours up to ``_VISITS`` ranks in all;
    ``known`` marks them.
    """
    size = slots.size // known.size
    count = 0
    for e in (a, b):
        for i in range(copies[e]):
            r = slots_ER[e, i] // size
            if not known[r]:
                known[r] = True
                visit[count] = r
                count += 1
    first = count
    at = 0
    while at < count < _VISITS:
        for s in range(visit[at] * size, (visit[at] + 1) * size):
            for i in range(copies[slots[s]]):
                q = slots_ER[slots[s], i] // size
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
    num_ranks: int,
    moves: int,
    hot: float,
    cold: float,
    tail: float,
    bits: int,
    exact: bool,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer for the min-max split: as ``anneal_even``, with the shares kept beside.

    A proposal takes the shares of its slots along; then the ranks it touched and their neighbours
    even each other out.  Shares are feasible at any time, so no norm is below what the dispatcher
    reaches.
    """
    E, T = load_ET.shape
    S = slots.size
    C = S // num_ranks
    slots = slots.copy()
    copies, held_RE = _hold(slots, num_ranks, E)
    slots_ER = np.empty((E, num_ranks), np.int64)
    place = np.zeros(E, np.int64)
    flow_ST, sums_RT = np.empty((S, T)), np.zeros((num_ranks, T))
    for s in range(S):
        e = slots[s]
        slots_ER[e, place[e]] = s
        place[e] += 1
        for t in range(T):
            flow_ST[s, t] = load_ET[e, t] / copies[e]
            sums_RT[s // C, t] += flow_ST[s, t]
    everyone, all_allowed = np.arange(num_ranks), np.ones(num_ranks, np.bool_)
    for _ in range(_SWEEPS_AT_START):
        _settle(everyone, slots, copies, slots_ER, sums_RT, flow_ST, all_allowed)
    power_RT = np.empty_like(sums_RT)
    total, norm, new_total, new_norm = np.empty(T), np.empty(T), np.empty(T), np.empty(T)
    old_sums, old_flow = sums_RT.copy(), flow_ST.copy()
    visit, known = np.empty(num_ranks, np.int64), np.zeros(num_ranks, np.bool_)
    best_slots, best = slots.copy(), np.inf
    state = np.array([seed], np.uint64)
    temperature = hot
    cooling = (cold / hot) ** (256.0 / max(moves, 1))
    level, value = 0.0, 0.0
    changed = True
    for move in range(moves + 1):
        if changed:
            _settle(everyone, slots, copies, slots_ER, sums_RT, flow_ST, all_allowed)
            old_sums[:], old_flow[:] = sums_RT, flow_ST
            for r in range(num_ranks):
                for t in range(T):
                    power_RT[r, t] = _power(sums_RT[r, t], bits)
            _refresh(sums_RT, power_RT, total, norm, bits)
            level = _tail_level(norm, weight, tail)
            value = _tail_mean(norm, weight, tail, level)
            score = value
            if exact:
                score = _exact_score(sums_RT, new_norm, weight, tail)
            if score < best - _CLOSE:
                best = score
                best_slots[:] = slots
        changed = False
        if move % 256 == 255:
            temperature *= cooling
        limit = value - temperature * np.log(1.0 - _random(state))
        s = _below(state, S)
        r, a = s // C, slots[s]
        relabel = S > E and _random(state) < _RELABEL
        if relabel:
            o, q, b = s, r, _below(state, E)
            if copies[a] < 2 or held_RE[r, b]:
                continue
            _replace(slots_ER[a, : copies[a]], s, slots_ER[a, copies[a] - 1])
            slots_ER[b, copies[b]] = s
            copies[a] -= 1
            copies[b] += 1
            slots[s] = b
            for i in range(copies[a]):  # the shares left behind go to the other copies
                heir = slots_ER[a, i]
                for t in range(T):
                    step = flow_ST[s, t] / copies[a]
                    flow_ST[heir, t] += step
                    sums_RT[heir // C, t] += step
            for t in range(T):
                sums_RT[r, t] -= flow_ST[s, t]
                flow_ST[s, t] = 0.0
        else:
            o = _below(state, S)
            q, b = o // C, slots[o]
            if q == r or a == b or held_RE[r, b] or held_RE[q, a]:
                continue
            _replace(slots_ER[a, : copies[a]], s, o)
            _replace(slots_ER[b, : copies[b]], o, s)
            slots[s], slots[o] = b, a
            for t in range(T):
                step = flow_ST[o, t] - flow_ST[s, t]
                sums_RT[r, t] += step
                sums_RT[q, t] -= step
                flow_ST[s, t], flow_ST[o, t] = flow_ST[o, t], flow_ST[s, t]
        first, count = _reach(visit, known, a, b, slots, copies, slots_ER)
        accepted = False
        for sweep in range(3):  # the ranks touched; then their neighbours too, forth and back
            if sweep == 0:
                _settle(visit[:first], slots, copies, slots_ER, sums_RT, flow_ST, known)
            elif sweep == 1:
                _settle(visit[:count], slots, copies, slots_ER, sums_RT, flow_ST, known)
            else:
                _settle(visit[:count][::-1], slots, copies, slots_ER, sums_RT, flow_ST, known)
            new_total[:] = total
            for p in visit[:count]:
                for t in range(T):
                    new_total[t] += _power(sums_RT[p, t], bits) - power_RT[p, t]
            for t in range(T):
                new_norm[t] = _root(new_total[t], bits)
            new = _tail_mean(new_norm, weight, tail, level)
            accepted = new < limit
            if accepted or new > limit + _HOPE:
                break
        for p in visit[:count]:
            known[p] = False
        if accepted:
            held_RE[r, a], held_RE[r, b] = False, True
            if not relabel:
                held_RE[q, b], held_RE[q, a] = False, True
            changed = True
            continue
        if relabel:
            slots_ER[a, copies[a]] = s
            copies[a] += 1
            copies[b] -= 1
            _replace(slots_ER[b, : copies[b] + 1], s, slots_ER[b, copies[b]])
            slots[s] = a
        else:
            _replace(slots_ER[a, : copies[a]], o, s)
            _replace(slots_ER[b, : copies[b]], s, o)
            slots[s], slots[o] = a, b
        for p in visit[:count]:
            sums_RT[p] = old_sums[p]
            flow_ST[p * C : (p + 1) * C] = old_flow[p * C : (p + 1) * C]
    return best_slots, best
