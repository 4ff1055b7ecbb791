"""From quotas to the slot of every assignment, compiled. Plain twin: ``tests/reference/tokens.py``.

Results are deterministic: tokens and their choices are taken in order, and the lowest slot wins a
tie. The caller has checked that an expert's quotas sum to its assignments and that shapes fit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Ints = NDArray[np.int64]

_compiled = njit(nogil=True)
_inlined = njit(nogil=True, inline="always")  # passing a Layer to a function takes longer


class Layer(NamedTuple):
    """One layer's copies, and how much of their quotas is used."""

    first: Ints  # (E + 1,): copies of expert e are listed[first[e]] ... listed[first[e + 1] - 1]
    listed: Ints  # (S,): slots, expert by expert, ascending
    quota: Ints  # (S,): assignments of each slot
    taken: Ints  # (S,): part of the quota that is used
    total: Ints  # (E,): assignments of each expert
    seen: Ints  # (E,): assignments of each expert so far
    rank: Ints  # (S,): rank of each slot
    value: Ints  # (R,): value of each rank for the present token, in choices it could serve


@_compiled
def _start_layer(slots: Ints, quota: Ints, num_experts: int, num_ranks: int) -> Layer:
    """Build the state of a layer in which no quota is used; ``quota`` ``(S,)`` is not copied."""
    layer = Layer(
        np.zeros(num_experts + 1, np.int64),
        np.empty(slots.size, np.int64),
        quota,
        np.zeros(slots.size, np.int64),
        np.zeros(num_experts, np.int64),
        np.zeros(num_experts, np.int64),
        np.arange(slots.size) // (slots.size // num_ranks),
        np.empty(num_ranks, np.int64),
    )
    for s in range(slots.size):
        layer.first[slots[s] + 1] += 1
        layer.total[slots[s]] += quota[s]
    for e in range(num_experts):
        layer.first[e + 1] += layer.first[e]
    end = layer.first.copy()
    for s in range(slots.size):
        layer.listed[end[slots[s]]] = s
        end[slots[s]] += 1
    return layer


@_inlined
def _may_take(s: int, e: int, a: Layer, ahead: int) -> bool:
    """Return whether slot ``s`` has quota left and is not too far ahead of its share so far.

    ``ahead`` is the number of assignments by which it may be ahead.
    """
    share = a.quota[s] * (a.seen[e] + 1)  # the slot's share so far, times a.total[e]
    return bool(a.taken[s] < a.quota[s] and (a.taken[s] + 1 - ahead) * a.total[e] <= share)


@_inlined
def _choose_only(ids: Ints, out: Ints, a: Layer, used: int) -> None:
    """Write the slots of experts with one slot to ``out`` ``(K,)`` and mark their ranks as used.

    The token is sent to these ranks anyway.
    """
    for k in range(ids.size):
        e = ids[k]
        if 0 <= e < a.total.size and a.first[e + 1] - a.first[e] == 1:
            out[k] = a.listed[a.first[e]]
            a.value[a.rank[out[k]]] = used


@_inlined
def _count_choices(ids: Ints, out: Ints, a: Layer, used: int, ahead: int) -> None:
    """Count in ``a.value`` how many of the token's choices each other rank could serve."""
    for k in range(ids.size):
        e = ids[k]
        if out[k] >= 0 or e < 0 or e >= a.total.size:
            continue
        for i in range(a.first[e], a.first[e + 1]):
            s = a.listed[i]
            if a.value[a.rank[s]] != used and _may_take(s, e, a, ahead):
                a.value[a.rank[s]] += 1


@_inlined
def _best_copy(e: int, a: Layer, ahead: int) -> int:
    """Return the slot for expert ``e``: on the rank of highest value, then most behind its share.

    Only slots that ``_may_take`` allows are considered.
    """
    best, best_value, best_behind = -1, -1, 0
    for i in range(a.first[e], a.first[e + 1]):
        s = a.listed[i]
        if not _may_take(s, e, a, ahead):
            continue
        value = a.value[a.rank[s]]
        behind = a.quota[s] * (a.seen[e] + 1) - a.taken[s] * a.total[e]
        if value > best_value or (value == best_value and behind > best_behind):
            best, best_value, best_behind = s, value, behind
    return best


@_compiled
def assign(
    ids_DLK: Ints, quota_LS: Ints, slots_LS: Ints, num_experts: int, num_ranks: int, ahead: int
) -> Ints:
    """Choose the slot of every assignment so that a token is sent to few ranks.

    A token's experts with one slot come first. Each other expert then goes to a rank that the token
    is sent to already, else to the rank that could serve most of its choices. Only slots are used
    that have quota left and are at most ``ahead`` assignments ahead of their share.

    Parameters
    ----------
    ids_DLK
        Expert of each choice, ``(D, L, K)``; not changed.
    quota_LS
        Assignments of each slot, ``(L, S)``; over an expert's slots they sum to its assignments.
    slots_LS
        Expert of each slot, ``(L, S)``.
    num_experts, num_ranks
        ``E`` and ``R``.
    ahead
        Number of assignments by which a slot may be ahead of its share, at least 1.

    Returns
    -------
    Slot of each choice, ``(D, L, K)`` int64, -1 where the id is outside ``[0, E)``; each slot
    occurs as often as its quota says.
    """
    (D, L, K), S = ids_DLK.shape, slots_LS.shape[1]
    used = K * S + 1  # the value of a rank that the token is sent to, above any count of choices
    out_DLK = np.full((D, L, K), -1, np.int64)
    for layer in range(L):
        a = _start_layer(slots_LS[layer], quota_LS[layer], num_experts, num_ranks)
        for token in range(D):
            ids, out = ids_DLK[token, layer], out_DLK[token, layer]
            a.value[:] = 0
            _choose_only(ids, out, a, used)
            _count_choices(ids, out, a, used, ahead)
            for k in range(K):
                e = ids[k]
                if out[k] < 0 and 0 <= e < num_experts:
                    out[k] = _best_copy(e, a, ahead)
                    a.taken[out[k]] += 1
                    a.seen[e] += 1
                    a.value[a.rank[out[k]]] = used
    return out_DLK
