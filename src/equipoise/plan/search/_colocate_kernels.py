"""The inner loop of ``Colocate``, compiled. Plain twin: ``tests/reference/traffic.py``.

One layer at a time. Units are the ranks and behind them the nodes, ``U = R + N``. Everything is
deterministic: own random numbers from a seed, sums in visiting order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = NDArray[np.uint64]

_compiled = njit(nogil=True, error_model="numpy")

_CLOSE = 1e-12  # a gain below this is rounding
_BITS = 4  # the 16-norm over ranks, as ``Robust`` has it
_EXCHANGE = 0.01  # share of the proposals that exchange two ranks
_RELABEL = 0.2  # of the others, that give a slot to another expert
_STRAIN = 1.0  # first price of balance beyond its limit, to that of the wires; rises as it cools


class Layer(NamedTuple):
    """What proposals are judged by.

    ``ids_DK`` has ``E`` where a choice is missing.  A slot counts ``load / c + risk / c**2``
    assignments in each scenario, ``c`` copies sharing its expert, and takes the longer of
    ``expert_seconds`` and ``token_seconds`` times those, padded to ``token_block``.  A rank waits
    ``node_seconds`` for all tokens to reach its node, ``rank_seconds`` for all to reach itself.
    """

    ids_DK: NDArray[np.int32]
    load_ET: Floats
    risk_ET: Floats
    weight_T: Floats
    speed_R: Floats
    node_R: Ints
    fixed_seconds: float
    expert_seconds: float
    token_seconds: float
    token_block: float
    node_seconds: float
    rank_seconds: float


class Placed(NamedTuple):
    """Slots, and all that follows from them.

    ``keep_UE`` is the probability that a choice of an expert is served outside a unit,
    ``miss_UD`` that all choices of a token are.  ``risky_RT`` is what the experts of a rank take in
    each scenario, ``plain_RT`` the same without the price on variance.
    """

    slots: Ints
    copies: Ints
    count_UE: Ints
    keep_UE: Floats
    miss_UD: Floats
    reach_U: Floats
    risky_RT: Floats
    plain_RT: Floats


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
def _norm(values: Floats) -> Any:
    """The ``2 ** _BITS``-norm."""
    total = 0.0
    for x in values:
        for _ in range(_BITS):
            x = x * x
        total += x
    for _ in range(_BITS):
        total = np.sqrt(total)
    return total


@_compiled
def _slot_seconds(layer: Layer, assignments: float) -> Any:
    if assignments <= 0.0:
        return 0.0
    if layer.token_block > 1.0:
        blocks = np.ceil(assignments / layer.token_block - _CLOSE)  # a share of 128 is not above it
        assignments = blocks * layer.token_block
    return max(layer.expert_seconds, layer.token_seconds * assignments)


@_compiled
def _rank_sums(layer: Layer, placed: Placed, r: Any, risky_T: Floats, plain_T: Floats) -> None:
    """What a rank's experts take in every scenario, at its speed."""
    size = placed.slots.size // layer.speed_R.size
    risky_T[:] = layer.fixed_seconds
    plain_T[:] = layer.fixed_seconds
    for e in placed.slots[r * size : (r + 1) * size]:
        share = 1.0 / placed.copies[e]
        for t in range(risky_T.size):
            x = layer.load_ET[e, t] * share
            plain_T[t] += _slot_seconds(layer, x)
            risky_T[t] += _slot_seconds(layer, x + layer.risk_ET[e, t] * share * share)
    risky_T /= layer.speed_R[r]
    plain_T /= layer.speed_R[r]


@_compiled
def _wire(layer: Layer, reach_U: Floats, r: int) -> Any:
    """What a rank waits for its tokens."""
    at_node = reach_U[layer.node_R.size + layer.node_R[r]]
    return layer.node_seconds * at_node + layer.rank_seconds * reach_U[r]


@_compiled
def _layer_time(layer: Layer, risky_RT: Floats, reach_U: Floats, wired: bool) -> Any:
    """Mean over scenarios of the norm over ranks, with or without wires."""
    column = np.empty(layer.speed_R.size)
    total = 0.0
    for t in range(layer.weight_T.size):
        for r in range(column.size):
            column[r] = risky_RT[r, t]
            if wired:
                column[r] += _wire(layer, reach_U, r)
        total += layer.weight_T[t] * _norm(column)
    return total


@_compiled
def _peak_time(layer: Layer, plain_RT: Floats) -> Any:
    """Mean over scenarios of the slowest rank, without wires."""
    total = 0.0
    for t in range(layer.weight_T.size):
        total += layer.weight_T[t] * plain_RT[:, t].max()
    return total


@_compiled
def _excess(
    layer: Layer, risky_RT: Floats, plain_RT: Floats, reach_U: Floats, limits: tuple[float, float]
) -> Any:
    """By what share balance is beyond its limits, both together; 0 within."""
    norm = _layer_time(layer, risky_RT, reach_U, False) / limits[0]
    peak = _peak_time(layer, plain_RT) / limits[1]
    return max(norm - 1.0, 0.0) + max(peak - 1.0, 0.0)


@_compiled
def _mean_wire(layer: Layer, reach_U: Floats) -> Any:
    total = 0.0
    for r in range(layer.speed_R.size):
        total += _wire(layer, reach_U, r)
    return total / layer.speed_R.size


@_compiled
def _value(
    layer: Layer,
    risky_RT: Floats,
    plain_RT: Floats,
    reach_U: Floats,
    timed: bool,
    limits: tuple[float, float],
    strain: float,
) -> Any:
    """A layer's time, or the mean wait for tokens and ``strain`` for balance beyond its limits."""
    if timed:
        return _layer_time(layer, risky_RT, reach_U, True)
    excess = _excess(layer, risky_RT, plain_RT, reach_U, limits)
    return _mean_wire(layer, reach_U) + strain * excess


@_compiled
def _put(layer: Layer, placed: Placed, slot: int, expert: int) -> None:
    """Give a slot to an expert, counting copies."""
    R = layer.speed_R.size
    r = slot // (placed.slots.size // R)
    old = placed.slots[slot]
    placed.slots[slot] = expert
    for e, change in ((old, -1), (expert, 1)):
        placed.copies[e] += change
        placed.count_UE[r, e] += change
        placed.count_UE[R + layer.node_R[r], e] += change


@_compiled
def _swap(layer: Layer, placed: Placed, s: int, o: int) -> None:
    a, b = placed.slots[s], placed.slots[o]
    _put(layer, placed, s, b)
    _put(layer, placed, o, a)


@_compiled
def _keep(placed: Placed, experts: Ints, changed_U: NDArray[np.bool_]) -> None:
    """Compute probabilities of the experts again; marks the units where one changed."""
    for u in range(changed_U.size):
        changed_U[u] = False
        for e in experts:
            keep = 1.0 - placed.count_UE[u, e] / placed.copies[e]
            if keep != placed.keep_UE[u, e]:
                placed.keep_UE[u, e] = keep
                changed_U[u] = True


@_compiled
def _miss(ids: NDArray[np.int32], keep_E: Floats) -> Any:
    """Probability that no choice of a token is served by a unit."""
    miss = 1.0
    for e in ids:
        miss *= keep_E[e]
    return miss


@_compiled
def _tokens_of(
    experts: Ints, first_E: Ints, token_of: Ints, seen_D: Ints, stamp: int, out_D: Ints
) -> Any:
    """The tokens that chose any of the experts, each once: how many; filled into ``out_D``."""
    count = 0
    for e in experts:
        for d in token_of[first_E[e] : first_E[e + 1]]:
            if seen_D[d] != stamp:
                seen_D[d] = stamp
                out_D[count] = d
                count += 1
    return count


@_compiled
def _index(ids_DK: NDArray[np.int32], num_experts: int) -> tuple[Ints, Ints]:
    """The tokens of each expert: those of ``e`` are ``token_of[first_E[e] : first_E[e + 1]]``."""
    first_E = np.zeros(num_experts + 2, np.int64)
    for e in ids_DK.flat:
        first_E[e + 1] += 1
    first_E = np.cumsum(first_E)
    token_of, at = np.empty(ids_DK.size, np.int64), first_E.copy()
    for d in range(ids_DK.shape[0]):
        for e in ids_DK[d]:
            token_of[at[e]] = d
            at[e] += 1
    return first_E, token_of


@_compiled
def _placed(layer: Layer, slots: Ints) -> Placed:
    R, D = layer.speed_R.size, layer.ids_DK.shape[0]
    E, T = layer.load_ET.shape
    U = R + layer.node_R.max() + 1
    copies, count_UE = np.zeros(E, np.int64), np.zeros((U, E), np.int64)
    for s in range(slots.size):
        r = s // (slots.size // R)
        copies[slots[s]] += 1
        count_UE[r, slots[s]] += 1
        count_UE[R + layer.node_R[r], slots[s]] += 1
    keep_UE, miss_UD = np.ones((U, E + 1)), np.empty((U, D))
    for u in range(U):
        keep_UE[u, :E] = 1.0 - count_UE[u] / copies
        for d in range(D):
            miss_UD[u, d] = _miss(layer.ids_DK[d], keep_UE[u])
    reach_U = np.empty(U)
    for u in range(U):
        reach_U[u] = (1.0 - miss_UD[u]).mean()
    sums = np.empty((2, R, T))
    placed = Placed(slots.copy(), copies, count_UE, keep_UE, miss_UD, reach_U, sums[0], sums[1])
    for r in range(R):
        _rank_sums(layer, placed, r, placed.risky_RT[r], placed.plain_RT[r])
    return placed


@_compiled
def _propose(layer: Layer, placed: Placed, state: State) -> tuple[int, int, int, int]:
    """Two slots to swap, each the first of ``length``; or a slot and, with length 0, its expert.

    The last number is the length, -1 where the proposal would put an expert twice on a rank, take
    its last copy or change nothing.
    """
    S, R, E = placed.slots.size, layer.speed_R.size, placed.copies.size
    C = S // R
    kind = _random(state)
    s = _below(state, S)
    r, a = s // C, placed.slots[s]
    if kind < _EXCHANGE:
        q = _below(state, R)
        if layer.node_R[r] == layer.node_R[q]:
            return 0, 0, 0, -1
        return r * C, q * C, 0, C
    if S > E and kind < _EXCHANGE + _RELABEL:
        b = _below(state, E)
        if placed.copies[a] < 2 or placed.count_UE[r, b] > 0:
            return 0, 0, 0, -1
        return s, s, b, 0
    o = _below(state, S)
    q, b = o // C, placed.slots[o]
    if q == r or placed.count_UE[r, b] > 0 or placed.count_UE[q, a] > 0:
        return 0, 0, 0, -1
    return s, o, 0, 1


@_compiled
def _change(
    layer: Layer, placed: Placed, s: int, o: int, expert: int, length: int, experts: Ints
) -> int:
    """Make the change proposed; the experts it concerns, without repeats, and how many."""
    if length == 0:
        experts[0], experts[1] = placed.slots[s], expert
        _put(layer, placed, s, expert)
        return 2
    count = 0
    for i in range(length):
        for e in (placed.slots[s + i], placed.slots[o + i]):
            if e not in experts[:count]:
                experts[count] = e
                count += 1
        _swap(layer, placed, s + i, o + i)
    return count


@_compiled
def _gained(layer: Layer, placed: Placed, u: Any, tokens: Ints) -> Any:
    """How many of the tokens newly reach a unit, less those that no longer do."""
    gained = 0.0
    for d in tokens:
        gained += placed.miss_UD[u, d] - _miss(layer.ids_DK[d], placed.keep_UE[u])
    return gained


@_compiled
def _accept(
    layer: Layer,
    placed: Placed,
    units: Ints,
    tokens: Ints,
    reach_U: Floats,
    risky_RT: Floats,
    plain_RT: Floats,
) -> None:
    for u in units:
        placed.reach_U[u] = reach_U[u]
        for d in tokens:
            placed.miss_UD[u, d] = _miss(layer.ids_DK[d], placed.keep_UE[u])
        if u < layer.speed_R.size:
            placed.risky_RT[u], placed.plain_RT[u] = risky_RT[u], plain_RT[u]


@_compiled
def colocate(
    layer: Layer,
    slots: Ints,
    timed: bool,
    slack: float,
    moves: int,
    hot: float,
    cold: float,
    seed: int,
) -> tuple[Ints, float]:
    """Anneal a layer so that its tokens reach fewer ranks and nodes.

    Proposals exchange two slots of different ranks, give a redundant slot to another expert, or
    exchange all slots of two ranks of different nodes; no rank holds an expert twice.  With
    ``timed`` the objective is the time of a layer, wires included; else the mean wait for tokens,
    while the slowest rank's time for its experts, and the norm over ranks that prices variance,
    end within ``1 + slack`` times those at the start: beyond that they have a price, which rises
    as the search cools.  The tokens are looked at only where the proposal could pass if they gained
    all.

    Parameters
    ----------
    slots
        Where to start, ``(S,)``; not changed.
    hot, cold
        Temperatures at the first and last move, in units of the objective at the start.

    Returns
    -------
    The best slots met, ``(S,)``, and their objective; the start if nothing is better.
    """
    R, D, E = layer.speed_R.size, layer.ids_DK.shape[0], layer.load_ET.shape[0]
    placed = _placed(layer, slots)
    first_E, token_of = _index(layer.ids_DK, E)
    within = (1.0 + slack) * (1.0 + _CLOSE)
    limits = (
        within * _layer_time(layer, placed.risky_RT, placed.reach_U, False),
        within * _peak_time(layer, placed.plain_RT),
    )
    value = _value(layer, placed.risky_RT, placed.plain_RT, placed.reach_U, timed, limits, 0.0)
    best_slots, best, unit = slots.copy(), value, value
    temperature, strain = hot * unit, _STRAIN * unit
    cooling = (cold / hot) ** (256.0 / max(moves, 1))
    state = np.array([seed], np.uint64)
    new_reach, risky, plain = placed.reach_U.copy(), placed.risky_RT.copy(), placed.plain_RT.copy()
    changed_U, experts = np.zeros(new_reach.size, np.bool_), np.empty(2 * slots.size, np.int64)
    seen_D, tokens = np.full(D, -1, np.int64), np.empty(D, np.int64)
    for move in range(moves):
        if move % 256 == 255:
            temperature, strain = temperature * cooling, strain / cooling
            value = _value(
                layer, placed.risky_RT, placed.plain_RT, placed.reach_U, timed, limits, strain
            )
        threshold = value - temperature * np.log(1.0 - _random(state))
        s, o, b, length = _propose(layer, placed, state)
        if length < 0:
            continue
        a = placed.slots[s]
        concerned = experts[: _change(layer, placed, s, o, b, length, experts)]
        _keep(placed, concerned, changed_U)
        units = np.flatnonzero(changed_U)
        most = 0
        for e in concerned:
            most += first_E[e + 1] - first_E[e]
        for u in units:
            new_reach[u] = max(placed.reach_U[u] - most / D, 0.0)
            if u < R:
                _rank_sums(layer, placed, u, risky[u], plain[u])
        new = _value(layer, risky, plain, new_reach, timed, limits, strain)
        if new < threshold:
            touched = tokens[: _tokens_of(concerned, first_E, token_of, seen_D, move, tokens)]
            for u in units:
                new_reach[u] = placed.reach_U[u] + _gained(layer, placed, u, touched) / D
            new = _value(layer, risky, plain, new_reach, timed, limits, strain)
            if new < threshold:
                value = new
                _accept(layer, placed, units, touched, new_reach, risky, plain)
                if value < best - _CLOSE * unit and (
                    timed or _excess(layer, risky, plain, new_reach, limits) == 0.0
                ):
                    best = value
                    best_slots[:] = placed.slots
                continue
        if length == 0:
            _put(layer, placed, s, a)
        for i in range(length):
            _swap(layer, placed, s + i, o + i)
        _keep(placed, concerned, changed_U)
        for u in units:
            new_reach[u] = placed.reach_U[u]
            if u < R:
                risky[u], plain[u] = placed.risky_RT[u], placed.plain_RT[u]
    return best_slots, best
