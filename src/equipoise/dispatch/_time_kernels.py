"""Moves that make a split faster where time is not proportional to load, compiled.

The time is that of ``RankCost``. A slot with load takes the larger of the time for its weights and
the time for its padded load. A rank takes the sum over its slots plus a fixed time, divided by its
speed. Spreading an expert over one more slot can therefore cost time as well as save it, and the
least peak is a packing problem. The search starts from a split, moves load only away from the
slowest rank, and ends when no single move helps.

Results are deterministic: the lowest slot wins a tie. The callers have checked that loads are
finite and non-negative and that shapes fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WORTHWHILE = 1e-9  # least relative gain of a move; without it, fractional moves would never end
BISECTIONS = 50  # steps of a bisection on the amount to move
MOVES_PER_SLOT = 8  # limits the time; real batches need far fewer moves

_compiled = njit(nogil=True)


class Cost(NamedTuple):
    """The numbers of a ``RankCost``, in seconds except ``block``, and whether loads stay whole."""

    fixed: float  # seconds of each rank
    expert: float  # seconds to read the weights of an active expert
    token: float  # seconds per assignment
    block: float  # assignments are computed in blocks of this size
    whole: bool  # loads are whole numbers and stay so


class Rank(NamedTuple):
    """One end of a move: the slot's load, the seconds of the rest of its rank, the rank's speed."""

    load: float
    rest: float
    speed: float


@_compiled
def _slot_seconds(load: float, cost: Cost) -> float:
    """Return the seconds that a slot with this load takes, at speed 1."""
    if load <= 0.0:
        return 0.0
    padded = np.ceil(load / cost.block) * cost.block if cost.block > 1.0 else load
    return max(cost.expert, cost.token * padded)


@_compiled
def _seconds(rank: Rank, more: float, cost: Cost) -> float:
    """Return the seconds that a rank takes once its slot has ``more`` load."""
    return (rank.rest + _slot_seconds(rank.load + more, cost)) / rank.speed


@_compiled
def _best_amount(giver: Rank, taker: Rank, cost: Cost) -> tuple[float, float]:
    """Find the load to move so that the later of giver and taker ends soonest.

    The giver's time falls and the taker's time rises with the amount. So the best amount is where
    they cross, or everything, because an empty slot takes no time.

    Returns
    -------
    Amount to move, and the time at which the later of both then ends, in seconds.
    """
    amount, low, high = giver.load, 0.0, giver.load
    best = max(_seconds(giver, -amount, cost), _seconds(taker, amount, cost))
    for _ in range(BISECTIONS):
        middle = np.floor((low + high) / 2) if cost.whole else (low + high) / 2
        if not low < middle < high:
            break
        if _seconds(giver, -middle, cost) > _seconds(taker, middle, cost):
            low = middle
        else:
            high = middle
    for y in (low, high):
        later = max(_seconds(giver, -y, cost), _seconds(taker, y, cost))
        if later < best:
            amount, best = y, later
    return amount, best


@_compiled
def _work(load: Floats, rank: int, per_rank: int, cost: Cost) -> float:
    """Return the seconds of a rank at speed 1; ``load`` is ``(S,)``."""
    total = cost.fixed
    for i in range(rank * per_rank, (rank + 1) * per_rank):
        total += _slot_seconds(load[i], cost)
    return total


@_compiled
def _least_amount(giver: Rank, limit: float, cost: Cost) -> float:
    """Return an amount that the giver must lose at least to end before ``limit``.

    With whole loads it is the least such amount. A taker that would end too late with this amount
    need not be tried, because with more it ends later still.
    """
    low, high = 0.0, giver.load
    for _ in range(BISECTIONS):
        middle = np.floor((low + high) / 2) if cost.whole else (low + high) / 2
        if not low < middle < high:
            break
        if _seconds(giver, -middle, cost) < limit:
            high = middle
        else:
            low = middle
    return high if cost.whole and high - low <= 1.0 else low


@_compiled
def _best_move(
    slowest: int,
    load: Floats,
    slots: Ints,
    copies: Ints,
    work: Floats,
    time: Floats,
    speed: Floats,
    cost: Cost,
) -> tuple[int, int, float]:
    """Find the best move of load away from the slowest rank.

    ``copies`` ``(E, X)`` lists the slots of each expert, padded with -1. ``work`` ``(R,)`` is
    seconds at speed 1, ``time`` ``(R,)`` seconds at the rank's speed.

    Returns
    -------
    Slot to take load from, slot to give it to, and amount; the first is -1 if no move helps.
    """
    per_rank = load.size // speed.size
    source, target, amount = -1, -1, 0.0
    best = time[slowest] * (1.0 - WORTHWHILE)
    for i in range(slowest * per_rank, (slowest + 1) * per_rank):
        if load[i] <= 0.0:
            continue
        rest = work[slowest] - _slot_seconds(load[i], cost)
        giver = Rank(load[i], rest, speed[slowest])
        least, least_for = -1.0, 0.0
        for j in copies[slots[i]]:
            if j < 0:
                break
            if j == i:
                continue
            r = j // per_rank
            if r != slowest and time[r] >= best:
                continue
            other = _slot_seconds(load[j], cost)
            if r == slowest:  # two copies on one rank: one of them can take all the load
                taker = Rank(load[j], rest - other, speed[r])
                moved, later = load[i], _seconds(taker, load[i], cost)
            else:
                if best != least_for:
                    least, least_for = _least_amount(giver, best, cost), best
                taker = Rank(load[j], work[r] - other, speed[r])
                if _seconds(taker, least, cost) >= best:
                    continue
                moved, later = _best_amount(giver, taker, cost)
            if later < best:
                source, target, amount, best = i, j, moved, later
    return source, target, amount


@_compiled
def hasten(load_LS: Floats, slots_LS: Ints, copies_LEX: Ints, speed: Floats, cost: Cost) -> Floats:
    """Improve a split until no move away from a slowest rank makes it faster.

    Parameters
    ----------
    load_LS
        Load of each slot to start from, ``(L, S)``; not changed.
    slots_LS
        Expert of each slot, ``(L, S)``.
    copies_LEX
        Slots of each expert, ``(L, E, X)``, padded with -1.
    speed
        Relative speed of each rank, ``(R,)``.
    cost
        Times of a rank, and whether loads stay whole.

    Returns
    -------
    Load of each slot, ``(L, S)``; whole if ``cost.whole`` and the given loads are.
    """
    L, S = load_LS.shape
    R, per_rank = speed.size, S // speed.size
    better_LS = load_LS.copy()
    work, time = np.empty(R), np.empty(R)
    for layer in range(L):
        load, slots, copies = better_LS[layer], slots_LS[layer], copies_LEX[layer]
        for r in range(R):
            work[r] = _work(load, r, per_rank, cost)
            time[r] = work[r] / speed[r]
        for _ in range(MOVES_PER_SLOT * S):
            slowest = int(np.argmax(time))
            i, j, amount = _best_move(slowest, load, slots, copies, work, time, speed, cost)
            if i < 0:
                break
            load[i] -= amount
            load[j] += amount
            for r in (slowest, j // per_rank):
                work[r] = _work(load, r, per_rank, cost)
                time[r] = work[r] / speed[r]
    return better_LS


@_compiled
def spread(load_LE: Floats, weight_LS: Floats, slots_LS: Ints, whole: bool) -> Floats:
    """Divide loads ``(L, E)`` over slots in proportion to ``weight_LS``; return ``(L, S)``.

    With ``whole``, parts are rounded down and the rest goes to the expert's slot with the largest
    weight, the first of them where several tie.
    """
    (L, E), S = load_LE.shape, slots_LS.shape[1]
    share_LS = np.zeros((L, S))
    total, rest, heaviest = np.empty(E), np.empty(E), np.empty(E, np.int64)
    for layer in range(L):
        slots, weight, share = slots_LS[layer], weight_LS[layer], share_LS[layer]
        total[:] = 0.0
        heaviest[:] = -1
        rest[:] = load_LE[layer]
        for i in range(S):
            e = slots[i]
            total[e] += weight[i]
            if heaviest[e] < 0 or weight[i] > weight[heaviest[e]]:
                heaviest[e] = i
        for i in range(S):
            e = slots[i]
            if total[e] > 0.0:
                part = load_LE[layer, e] * weight[i] / total[e]
                share[i] = np.floor(part) if whole else part
                rest[e] -= share[i]
        for e in range(E):
            share[heaviest[e]] += rest[e]
    return share_LS
