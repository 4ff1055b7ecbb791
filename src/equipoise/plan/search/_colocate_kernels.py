"""The inner loop of ``Colocate``, compiled. Plain twin: ``tests/reference/traffic.py``.

The search treats one layer at a time. A *unit* is a place that tokens are sent to: the ranks come
first, then the nodes, so ``U = R + N``. Results are deterministic: random numbers come from a seed,
sums run in visiting order.
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
_BITS = 4  # the ranks' times become one number by the 16-norm, as in ``Robust``
_EXCHANGE = 0.01  # share of the proposals that exchange all slots of two ranks
_RELABEL = 0.2  # share of the proposals that give a slot to another expert
_STRAIN = 1.0  # first price of exceeding a limit, relative to the objective; rises with cooling


class Layer(NamedTuple):
    """The data of one layer by which proposals are judged; not changed by the search.

    A slot whose expert has ``c`` copies counts ``load / c + risk / c**2`` assignments in each
    scenario. It takes the longer of ``expert_seconds`` and ``token_seconds`` times its assignments,
    rounded up to a multiple of ``token_block``. A rank waits ``node_seconds`` times the share of
    tokens that reach its node, plus ``rank_seconds`` times the share that reach itself.
    """

    ids_DK: NDArray[np.int32]  # expert of each choice of each token; E where a choice is missing
    load_ET: Floats  # assignments in each scenario
    risk_ET: Floats  # price of the variance of an expert with one copy, in assignments
    weight_T: Floats  # weight of each scenario; they sum to 1
    speed_R: Floats  # relative speeds
    node_R: Ints  # node of each rank
    fixed_seconds: float  # of each rank
    expert_seconds: float  # to read the weights of an active expert
    token_seconds: float  # to compute one assignment
    token_block: float  # assignments are computed in blocks of this size
    node_seconds: float  # for all tokens to reach a node
    rank_seconds: float  # for all tokens to reach a rank


class Placed(NamedTuple):
    """A placement and all values that follow from it; all change with an accepted proposal."""

    slots: Ints  # (S,): expert of each slot
    copies: Ints  # (E,): number of copies of each expert
    count_UE: Ints  # copies in each unit
    keep_UE: Floats  # (U, E + 1): probability that a choice of an expert is served outside a unit
    miss_UD: Floats  # probability that all choices of a token are served outside a unit
    reach_U: Floats  # share of the tokens that reach a unit
    risky_RT: Floats  # seconds of each rank's experts in each scenario, price of variance included
    plain_RT: Floats  # the same without the price of variance


@_compiled
def _random(state: State) -> Any:
    """Draw a float in [0, 1) with splitmix64; advances ``state``, ``(1,)``. Any seed is good."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@_compiled
def _below(state: State, n: int) -> Any:
    """Draw an integer in ``[0, n)``; advances ``state``."""
    return np.int64(_random(state) * n)


@_compiled
def _norm(values: Floats) -> Any:
    """Return the ``2 ** _BITS``-norm of ``values``."""
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
    """Return the seconds that a slot takes for a number of assignments, at speed 1."""
    if assignments <= 0.0:
        return 0.0
    if layer.token_block > 1.0:
        blocks = np.ceil(assignments / layer.token_block - _CLOSE)  # a share of 128 is not above it
        assignments = blocks * layer.token_block
    return max(layer.expert_seconds, layer.token_seconds * assignments)


@_compiled
def _rank_sums(layer: Layer, placed: Placed, r: Any, risky_T: Floats, plain_T: Floats) -> None:
    """Fill the seconds of rank ``r`` in every scenario, at its speed.

    ``risky_T`` receives them with the price of variance, ``plain_T`` without; both are ``(T,)``.
    """
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
    """Return the seconds that rank ``r`` waits for its tokens.

    ``reach_U`` ``(U,)`` is the share of tokens that each unit receives.
    """
    at_node = reach_U[layer.node_R.size + layer.node_R[r]]
    return layer.node_seconds * at_node + layer.rank_seconds * reach_U[r]


@_compiled
def _layer_time(layer: Layer, risky_RT: Floats, reach_U: Floats, wired: bool) -> Any:
    """Return the mean over scenarios of the norm over ranks, in seconds; ``wired`` adds waits."""
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
    """Return the mean over scenarios of the slowest rank's seconds, without the wait for tokens."""
    total = 0.0
    for t in range(layer.weight_T.size):
        total += layer.weight_T[t] * plain_RT[:, t].max()
    return total


@_compiled
def _excess(
    layer: Layer, risky_RT: Floats, plain_RT: Floats, reach_U: Floats, limits: tuple[float, float]
) -> Any:
    """Return by what share the norm and the peak exceed their limits, added up; 0 within both.

    ``limits`` are the largest norm and the largest peak, in seconds.
    """
    norm = _layer_time(layer, risky_RT, reach_U, False) / limits[0]
    peak = _peak_time(layer, plain_RT) / limits[1]
    return max(norm - 1.0, 0.0) + max(peak - 1.0, 0.0)


@_compiled
def _mean_wire(layer: Layer, reach_U: Floats) -> Any:
    """Return the mean over ranks of the wait for tokens, in seconds."""
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
    """Return the objective of the search, in seconds.

    With ``timed`` it is the layer's time including the wait for tokens. Otherwise it is the mean
    wait for tokens plus a penalty, ``strain`` times the excess of ``_excess``.
    """
    if timed:
        return _layer_time(layer, risky_RT, reach_U, True)
    excess = _excess(layer, risky_RT, plain_RT, reach_U, limits)
    return _mean_wire(layer, reach_U) + strain * excess


@_compiled
def _put(layer: Layer, placed: Placed, slot: int, expert: int) -> None:
    """Give a slot to an expert in ``placed`` and count copies; probabilities stay as they are."""
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
    """Exchange the experts of slots ``s`` and ``o`` in ``placed``, as ``_put`` does."""
    a, b = placed.slots[s], placed.slots[o]
    _put(layer, placed, s, b)
    _put(layer, placed, o, a)


@_compiled
def _keep(placed: Placed, experts: Ints, changed_U: NDArray[np.bool_]) -> None:
    """Compute ``placed.keep_UE`` of some experts again; mark the units that changed."""
    for u in range(changed_U.size):
        changed_U[u] = False
        for e in experts:
            keep = 1.0 - placed.count_UE[u, e] / placed.copies[e]
            if keep != placed.keep_UE[u, e]:
                placed.keep_UE[u, e] = keep
                changed_U[u] = True


@_compiled
def _miss(ids: NDArray[np.int32], keep_E: Floats) -> Any:
    """Return the probability that a unit serves none of a token's choices.

    ``ids`` ``(K,)`` are the token's experts, ``keep_E`` ``(E + 1,)`` the unit's row of ``keep_UE``.
    """
    miss = 1.0
    for e in ids:
        miss *= keep_E[e]
    return miss


@_compiled
def _tokens_of(
    experts: Ints, first_E: Ints, token_of: Ints, seen_D: Ints, stamp: int, out_D: Ints
) -> Any:
    """Write the tokens that chose any of the experts to ``out_D``, each once; return how many.

    ``seen_D`` ``(D,)`` keeps the last stamp of each token. A token is listed if that differs from
    ``stamp``, so every call needs a new stamp. ``first_E`` and ``token_of`` come from ``_index``.
    """
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
    """List the tokens of each expert: those of ``e`` are ``token_of[first_E[e] : first_E[e + 1]]``.

    Returns ``first_E`` ``(E + 2,)`` and ``token_of`` ``(D * K,)``.
    """
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
    """Build ``Placed`` from slots ``(S,)``, which are copied."""
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
    """Draw a proposal that exchanges slots or gives one to another expert; advances ``state``.

    Returns
    -------
    Slot ``s``, slot ``o``, expert and ``length``. A positive length exchanges that many slots from
    ``s`` and from ``o`` on. Length 0 gives slot ``s`` to the expert. Length -1 is no proposal: it
    would put an expert twice on a rank, take an expert's last copy or change nothing.
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
    """Apply a proposal of ``_propose`` to the slots and counts of ``placed``.

    Writes the experts concerned to ``experts``, without repeats, and returns how many there are.
    """
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
    """Return how many more tokens reach unit ``u`` than before, as an expected number.

    Only ``tokens`` are looked at; no other token is affected.
    """
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
    """Make a proposal's reach, probabilities and rank times the valid ones in ``placed``.

    Only the rows of ``units`` and the columns of ``tokens`` change.
    """
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

    A proposal exchanges two slots of different ranks, gives a redundant slot to another expert, or
    exchanges all slots of two ranks on different nodes. No rank holds an expert twice.

    With ``timed`` the objective is the time of the layer, wait for tokens included. Otherwise it is
    the mean wait for tokens, under a limit: neither the slowest rank's time nor the norm over ranks
    (which prices variance) may end above ``1 + slack`` times its value at the start. During the
    search, exceeding a limit costs a penalty that rises as the temperature falls. A proposal is
    first judged as if every token concerned no longer reached the units; only if it passes are the
    tokens looked at.

    Parameters
    ----------
    layer
        Tokens, loads and times of the layer; not changed.
    slots
        Experts of the slots to start from, ``(S,)``; not changed.
    timed
        Whether the objective is the layer's time.
    slack
        Share by which balance may get worse, without ``timed``.
    moves
        Number of proposals to try.
    hot, cold
        Temperatures at the first and the last proposal, relative to the objective at the start.
    seed
        Seed of the random numbers.

    Returns
    -------
    Experts of the best slots met, ``(S,)``, and their objective in seconds; the start if nothing
    was better.
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
