"""The planners' inner loops, compiled. Each has a plain twin in ``tests/reference``.

Results are deterministic: sorts are stable, comparisons strict, sums run in visiting order and the
lowest index wins a tie. Loads and quotients have the type of the arrays passed in, float32 or
float64. The callers have checked that loads are finite and non-negative and that shapes fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROUNDING = 1e-12  # relative margin by which a proof must exceed the level
_WORTH = 1e-6  # relative: least amount by which a bound is raised

_compiled = njit(nogil=True)


@_compiled
def _play(winner: Ints, node: int, key: Floats, high_ties: bool) -> None:
    """Play the match at ``node`` between its two children; the winner is written to ``winner``."""
    a, b = winner[2 * node], winner[2 * node + 1]
    winner[node] = b if key[b] > key[a] or (high_ties and key[b] == key[a]) else a


@_compiled
def _tournament(key: Floats, high_ties: bool) -> Ints:
    """Build a binary tree of matches in which the larger key wins; return ``winner``.

    ``winner`` is ``(2 * size,)``, ``size`` the next power of two. Among equal keys the lower index
    wins, or the higher with ``high_ties``. ``winner[1]`` is the index of the largest key; the match
    at node ``i`` is between nodes ``2 i`` and ``2 i + 1``. Where the number of keys is no power of
    two, the last index fills the missing leaves.
    """
    size = 1
    while size < key.size:
        size *= 2
    winner = np.empty(2 * size, np.int64)
    for leaf in range(size):
        winner[size + leaf] = min(leaf, key.size - 1)
    for node in range(size - 1, 0, -1):
        _play(winner, node, key, high_ties)
    return winner


@_compiled
def _replay(winner: Ints, index: int, key: Floats, high_ties: bool) -> None:
    """Update ``winner`` after the key of one index has changed."""
    node = (winner.size // 2 + index) // 2
    while node > 0:
        _play(winner, node, key, high_ties)
        node //= 2


@_compiled
def replicate(load: Floats, num_slots: int, most_copies: int, high_ties: bool) -> tuple[Ints, Ints]:
    """Give every expert one slot, then each further slot to the largest load per copy (Adams).

    An expert with ``most_copies`` takes no more. Among equal quotients the lowest id wins, or the
    highest with ``high_ties``. Needs ``E <= num_slots <= E * most_copies``.

    Parameters
    ----------
    load
        Load of each expert, ``(E,)``; not changed.
    num_slots
        Number of slots of the layer.
    most_copies
        Largest number of copies of one expert.
    high_ties
        Whether the highest id wins a tie.

    Returns
    -------
    Expert of each slot in the order in which slots were given out, ``(num_slots,)``, and the number
    of copies of each expert, ``(E,)``.
    """
    E = load.size
    expert = np.empty(num_slots, np.int64)
    expert[:E] = np.arange(E)
    copies = np.ones(E, np.int64)
    if num_slots == E:
        return expert, copies
    key = load.copy()
    winner = _tournament(key, high_ties)
    for slot in range(E, num_slots):
        e = winner[1]
        expert[slot] = e
        copies[e] += 1
        key[e] = load[e] / copies[e] if copies[e] < most_copies else -1.0
        _replay(winner, e, key, high_ties)
    return expert, copies


@_compiled
def adams_counts(load_LE: Floats, num_slots: int, most_copies: int) -> Ints:
    """Return the number of copies that ``replicate`` gives each expert, ``(L, E)``."""
    L, E = load_LE.shape
    copies_LE = np.empty((L, E), np.int64)
    for layer in range(L):
        copies_LE[layer] = replicate(load_LE[layer], num_slots, most_copies, False)[1]
    return copies_LE


@_compiled
def spread(work_NE: Doubles, num_slots: int, capacity: Doubles, fixed: float) -> Doubles:
    """Bound from below the time of a rank that serves the heaviest experts of a row, ``(N, E)``.

    Entry ``(n, j)`` is for the ``j + 1`` heaviest experts of row ``n``. If they live on ``x``
    ranks, at least ``x S / R - (S - E)`` experts in all live only there. The bound is the time of
    that work on the fastest ``x`` ranks, at the ``x`` where it is least.

    Parameters
    ----------
    work_NE
        Seconds (or another unit) of work of each expert, ``(N, E)``, heaviest first.
    num_slots
        Number of slots of a layer.
    capacity
        Summed speed of the fastest 1, 2, ... ``R`` ranks, ``(R,)``.
    fixed
        Work that each rank has in addition, in the same unit.
    """
    N, E = work_NE.shape
    R = capacity.size
    C, extra = num_slots // R, num_slots - E
    least_NE = np.full((N, E), np.inf)
    lightest = np.zeros(E + 1)  # sums of the lightest 0, 1, ... experts
    for row in range(N):
        for i in range(E):
            lightest[i + 1] = lightest[i] + work_NE[row, E - 1 - i]
        heaviest = 0.0
        for j in range(1, E + 1):
            heaviest += work_NE[row, j - 1]
            fewest = -(-j // C) if j < E else R  # all experts are on all ranks
            for x in range(fewest, min(R, j + extra) + 1):
                others = min(max(0, x * C - j - extra), E - j)
                share = (heaviest + lightest[others] + x * fixed) / capacity[x - 1]
                least_NE[row, j - 1] = min(least_NE[row, j - 1], share)
    return least_NE


@_compiled
def _cannot_fit(load: Doubles, level: float, num_slots: int, num_ranks: int) -> bool:
    """Return whether it is proven that no even split keeps every rank at or below ``level``.

    ``False`` means that this proof fails, not that a split exists. Each expert needs
    ``load / level`` copies, rounded up, so few slots are left over. The load that must share ranks
    with the heaviest copies is then bounded as in ``spread``, with copies in place of experts.
    ``load`` is ``(E,)``.
    """
    C = num_slots // num_ranks
    copies = np.maximum(1, np.ceil(load / level * (1 - _ROUNDING))).astype(np.int64)
    needed = copies.sum()
    spare = num_slots - needed
    if spare < 0:
        return True
    order = np.argsort(-load / copies, kind="mergesort")
    lightest = np.zeros(needed + 1)  # sums of the lightest 0, 1, ... copies
    m = 0
    for e in order[::-1]:
        for _ in range(copies[e]):
            lightest[m + 1] = lightest[m] + load[e] / copies[e]
            m += 1
    n, heaviest = 0, 0.0
    for e in order:
        n += copies[e]
        heaviest += load[e]
        least = np.inf
        for x in range(-(-n // C), min(num_ranks, n + spare) + 1):
            others = min(max(0, x * C - n - spare), needed - n)
            least = min(least, (heaviest + lightest[others]) / x)
        if least > level * (1 + _ROUNDING):
            return True
    return False


@_compiled
def raise_even_bound(load_NE: Doubles, bound_N: Doubles, num_slots: int, num_ranks: int) -> Doubles:
    """Return lower bounds ``(N,)`` on the peaks of even splits, raised as far as can be proven.

    Each row of ``load_NE`` ``(N, E)`` has its bound in ``bound_N``, in the unit of the loads;
    neither is changed.
    """
    raised = bound_N.copy()
    for row in range(len(load_NE)):
        above = raised[row] * (1 + _WORTH)
        if above == 0 or not _cannot_fit(load_NE[row], above, num_slots, num_ranks):
            continue
        raised[row], high = above, 2 * above
        for _ in range(30):
            middle = (raised[row] + high) / 2
            if _cannot_fit(load_NE[row], middle, num_slots, num_ranks):
                raised[row] = middle
            else:
                high = middle
    return raised


@_compiled
def _even_counts(num_experts: int, num_slots: int) -> Ints:
    """Return the copies of each expert, ``(E,)``, in a layer without load: equal or one more."""
    copies = np.full(num_experts, num_slots // num_experts)
    copies[: num_slots % num_experts] += 1
    return copies


@_compiled
def _pack(weight: Floats, num_bins: int) -> Ints:
    """Put the heaviest item first into the lightest bin with room; all bins hold the same number.

    Bins are summed in double precision whatever the items' type, as the copies of DeepSeek's EPLB
    in SGLang and vLLM do. The original sums in float32 and differs where two bins agree to seven
    digits.

    Returns the place of each item, ``bin * (n // num_bins) + position``, ``(n,)``.
    """
    bin_size = weight.size // num_bins
    place = np.empty(weight.size, np.int64)
    free = np.zeros(num_bins)  # minus the load of a bin; minus infinity once it is full
    filled = np.zeros(num_bins, np.int64)
    lightest = _tournament(free, False)
    for item in np.argsort(-weight, kind="mergesort"):
        b = lightest[1]
        place[item] = b * bin_size + filled[b]
        filled[b] += 1
        free[b] = free[b] - weight[item] if filled[b] < bin_size else -np.inf
        _replay(lightest, b, free, False)
    return place


@_compiled
def _pack_or_keep(weight: Floats, num_bins: int) -> Ints:
    """Pack as DeepSeek's EPLB does: with one item a bin, the items keep their order."""
    return np.arange(weight.size) if weight.size == num_bins else _pack(weight, num_bins)


@_compiled
def _holds(held_RC: Ints, filled: Ints, rank: int, expert: int) -> Any:
    """Return whether a rank holds an expert in one of its filled slots."""
    return (held_RC[rank, : filled[rank]] == expert).any()


@_compiled
def _make_room(expert: int, share: Floats, held_RC: Ints, filled: Ints, load: Floats) -> None:
    """Place a copy of an expert that every rank with room holds already.

    The expert has at most ``R`` copies, so some full rank lacks it. That rank holds more experts
    than a rank with room, so some of its experts can move there. Of all such moves, the one with
    the lowest resulting load on the busier of the two ranks is made, and the new copy takes the
    freed slot. Changes ``held_RC`` ``(R, C)``, ``filled`` ``(R,)`` and ``load`` ``(R,)``.
    """
    R, C = held_RC.shape
    best, source, position, target = np.inf, -1, -1, -1
    for full in range(R):
        if filled[full] < C or _holds(held_RC, filled, full, expert):
            continue
        for p in range(C):
            other = held_RC[full, p]
            left = load[full] - share[other] + share[expert]
            for rank in range(R):
                peak = max(left, load[rank] + share[other])
                if filled[rank] < C and peak < best and not _holds(held_RC, filled, rank, other):
                    best, source, position, target = peak, full, p, rank
    other = held_RC[source, position]
    held_RC[target, filled[target]] = other
    filled[target] += 1
    load[target] += share[other]
    held_RC[source, position] = expert
    load[source] -= share[other] - share[expert]


@_compiled
def _pack_distinct(share: Floats, copies: Ints, order: Ints, held_RC: Ints) -> None:
    """Pack the heaviest copies first onto the lightest ranks, never two of an expert on a rank.

    No expert may have more than ``R`` copies.

    Parameters
    ----------
    share
        Load of one copy of each expert, ``(E,)``.
    copies
        Number of copies of each expert, ``(E,)``.
    order
        Experts by decreasing share, ``(E,)``.
    held_RC
        Filled with the experts of every rank, ``(R, C)``.
    """
    R, C = held_RC.shape
    load = np.zeros(R)
    free = np.zeros(R)  # minus the load of a rank; minus infinity where no copy can go
    filled = np.zeros(R, np.int64)
    taken = np.empty(R, np.int64)
    lightest = _tournament(free, False)
    num_open = R
    for expert in order:
        num_direct = min(copies[expert], num_open)
        for i in range(num_direct):
            rank = lightest[1]
            taken[i] = rank
            held_RC[rank, filled[rank]] = expert
            filled[rank] += 1
            load[rank] += share[expert]
            if i + 1 < num_direct:
                free[rank] = -np.inf
                _replay(lightest, rank, free, False)
        for _ in range(num_direct, copies[expert]):
            _make_room(expert, share, held_RC, filled, load)
        for rank in taken[:num_direct]:
            is_open = filled[rank] < C
            num_open -= not is_open
            free[rank] = -load[rank] if is_open else -np.inf
            _replay(lightest, rank, free, False)


@_compiled
def places(weight_LE: Floats, num_bins: int) -> Ints:
    """Return the place of each item of every row, ``(L, E)``, packed as DeepSeek's EPLB does."""
    place_LE = np.empty(weight_LE.shape, np.int64)
    for row in range(len(weight_LE)):
        place_LE[row] = _pack_or_keep(weight_LE[row], num_bins)
    return place_LE


@_compiled
def eplb_slots(load_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """Return the expert of every slot, ``(L, S)``: the global policy of DeepSeek's EPLB."""
    slots_LS = np.empty((len(load_LE), num_slots), np.int64)
    for layer in range(len(load_LE)):
        load = load_LE[layer]
        expert, copies = replicate(load, num_slots, num_slots, False)
        share = load / copies.astype(load.dtype)
        slots_LS[layer][_pack_or_keep(share[expert], num_ranks)] = expert
    return slots_LS


@_compiled
def _distinct_counts(load_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """Return each expert's copies, at most ``R``, ``(L, E)``; equal where a layer has no load."""
    L, E = load_LE.shape
    copies_LE = np.empty((L, E), np.int64)
    for layer in range(L):
        if load_LE[layer].max() > 0:
            copies_LE[layer] = replicate(load_LE[layer], num_slots, num_ranks, False)[1]
        else:
            copies_LE[layer] = _even_counts(E, num_slots)
    return copies_LE


@_compiled
def _distinct_places(
    share_LE: Floats, copies_LE: Ints, order_LE: Ints, num_slots: int, num_ranks: int
) -> Ints:
    """Pack every layer with ``_pack_distinct``; return the expert of every slot, ``(L, S)``.

    A layer without load is dealt out in order.
    """
    L, E = share_LE.shape
    slots_LS = np.empty((L, num_slots), np.int64)
    for layer in range(L):
        held_RC = slots_LS[layer].reshape(num_ranks, -1)
        if share_LE[layer, order_LE[layer, 0]] > 0:
            _pack_distinct(share_LE[layer], copies_LE[layer], order_LE[layer], held_RC)
        else:
            # Copies are dealt to the ranks in turn, so those of one expert reach different ranks.
            dealt = np.repeat(np.arange(E), copies_LE[layer])
            held_RC[:] = dealt.reshape(-1, num_ranks).T
    return slots_LS


def _heaviest_first(share_LE: Doubles) -> Ints:
    """Return experts by decreasing share, ``(L, E)``; by id where 10 digits of the share agree.

    The bits of non-negative doubles sort as the doubles do. The last bits are replaced by the id,
    so that plain numbers are sorted: that is several times faster than a stable sort of indices.
    """
    E = share_LE.shape[1]
    mask = (1 << E.bit_length()) - 1
    key = (share_LE.view(np.int64) | mask) - np.arange(E)
    key.sort(axis=1)
    order: Ints = mask - (key[:, ::-1] & mask)
    return order


def distinct_slots(load_LE: Doubles, num_slots: int, num_ranks: int) -> Ints:
    """Return the expert of every slot, ``(L, S)``: EPLB without two copies on one rank.

    Needs ``S <= E * R``.
    """
    copies_LE: Ints = _distinct_counts(load_LE, num_slots, num_ranks)
    share_LE = load_LE / copies_LE
    slots_LS: Ints = _distinct_places(
        share_LE, copies_LE, _heaviest_first(share_LE), num_slots, num_ranks
    )
    return slots_LS


@_compiled
def _counted(load: float, risk: float, copies: int) -> float:
    """Return the load that one of ``copies`` copies counts, variance included."""
    share = 1 / max(copies, 1)
    return (load + risk * share) * share


@_compiled
def powers_after(
    load_ET: Doubles,
    risk_ET: Doubles,
    slow_R: Doubles,
    sums_RT: Doubles,
    held_RE: Doubles,
    copies_E: Ints,
    moves_N3: Ints,
) -> Doubles:
    """Return the 16th powers of the ranks' times, summed over ranks, after each of some changes.

    A change gives one slot of a rank to another expert. It changes only the ranks that hold one of
    the two experts; the power of every other rank is known already.

    Parameters
    ----------
    load_ET
        Load of each expert in each scenario, ``(E, T)``.
    risk_ET
        Price of the variance of an expert with one copy, ``(E, T)``.
    slow_R
        Time of a unit of load on each rank, ``(R,)``: 1 over the relative speed.
    sums_RT
        Time of every rank before the change, ``(R, T)``.
    held_RE
        1 where a rank holds an expert, else 0, ``(R, E)``.
    copies_E
        Number of ranks that hold each expert, ``(E,)``.
    moves_N3
        Rank, leaving expert and arriving expert of each change, ``(N, 3)``.

    Returns
    -------
    Sums of the powers, ``(N, T)``.
    """
    R, T = sums_RT.shape
    power_TR = np.empty((T, R))
    for rank in range(R):
        for t in range(T):
            power_TR[t, rank] = max(sums_RT[rank, t], 0.0)
    for _ in range(4):
        power_TR *= power_TR
    total_NT = np.zeros((len(moves_N3), T))
    for i in range(len(moves_N3)):
        at, leaving, arriving = moves_N3[i]
        for t in range(T):
            fewer = _counted(load_ET[leaving, t], risk_ET[leaving, t], copies_E[leaving] - 1)
            more = _counted(load_ET[arriving, t], risk_ET[arriving, t], copies_E[arriving] + 1)
            rise = fewer - _counted(load_ET[leaving, t], risk_ET[leaving, t], copies_E[leaving])
            fall = more - _counted(load_ET[arriving, t], risk_ET[arriving, t], copies_E[arriving])
            total = 0.0
            for rank in range(R):
                if rank != at and not held_RE[rank, leaving] and not held_RE[rank, arriving]:
                    total += power_TR[t, rank]
                    continue
                carried, slow = sums_RT[rank, t], slow_R[rank]
                if held_RE[rank, leaving]:
                    carried += slow * rise
                if rank == at:
                    carried -= slow * fewer
                if held_RE[rank, arriving]:
                    carried += slow * fall
                if rank == at:
                    carried += slow * more
                power = max(carried, 0.0)
                for _ in range(4):
                    power *= power
                total += power
            total_NT[i, t] = total
    return total_NT


@_compiled
def trtllm_slots(load_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """Return the expert of every slot, ``(L, S)``: TensorRT-LLM's planner, see ``TrtllmGreedy``."""
    L, E = load_LE.shape
    slots_LS = np.empty((L, num_slots), np.int64)
    for layer in range(L):
        load = load_LE[layer]
        if load.max() > 0:
            copies = replicate(load, num_slots, num_slots, True)[1]
        else:
            copies = _even_counts(E, num_slots)
        expert = np.repeat(np.arange(E), copies)
        slots_LS[layer][_pack((load / copies)[expert], num_ranks)] = expert
    return slots_LS
