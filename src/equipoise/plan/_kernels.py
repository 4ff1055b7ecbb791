"""The planners' inner loops, compiled. Each has a plain twin in ``tests/reference``.

Everything is deterministic: stable sorts, strict comparisons, sums in visiting order, the lowest
index where values tie. Loads and quotients have the type of the arrays passed in, float32 or
float64. Loads are finite and non-negative and shapes fit: the callers have checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_compiled = njit(cache=True, nogil=True)


@_compiled
def _sift_down(heap: Ints, size: int, root: int, key: Floats, high_ties: bool) -> None:
    """Restore the heap below ``root``: largest key on top, equal keys by expert id."""
    while True:
        top = root
        for child in (2 * root + 1, 2 * root + 2):
            if child >= size:
                continue
            a, b = heap[child], heap[top]
            if key[a] > key[b] or (key[a] == key[b] and (a > b) == high_ties):
                top = child
        if top == root:
            return
        heap[root], heap[top] = heap[top], heap[root]
        root = top


@_compiled
def _sift_up(heap: Ints, leaf: int, key: Floats) -> None:
    """Restore the heap above ``leaf``: largest key on top, equal keys by lowest id."""
    while leaf > 0:
        parent = (leaf - 1) // 2
        a, b = heap[leaf], heap[parent]
        if key[a] < key[b] or (key[a] == key[b] and a > b):
            return
        heap[leaf], heap[parent] = b, a
        leaf = parent


@_compiled
def replicate(load: Floats, num_slots: int, most_copies: int, high_ties: bool) -> tuple[Ints, Ints]:
    """Give every expert a slot and each further slot to the largest load per copy (Adams).

    An expert with ``most_copies`` takes no more. Among equal quotients the lowest id wins, or the
    highest with ``high_ties``. Needs ``E <= num_slots <= E * most_copies``.

    Returns
    -------
    The expert of each slot in the order of creation, ``(num_slots,)``; the copies, ``(E,)``.
    """
    E = load.size
    expert = np.empty(num_slots, np.int64)
    expert[:E] = np.arange(E)
    copies = np.ones(E, np.int64)
    if num_slots == E:
        return expert, copies
    key = load.copy()
    heap = np.arange(E)
    size = E
    for root in range(E // 2 - 1, -1, -1):
        _sift_down(heap, size, root, key, high_ties)
    for slot in range(E, num_slots):
        e = heap[0]
        expert[slot] = e
        copies[e] += 1
        key[e] = load[e] / copies[e]
        if copies[e] == most_copies:
            size -= 1
            heap[0] = heap[size]
        _sift_down(heap, size, 0, key, high_ties)
    return expert, copies


@_compiled
def adams_counts(load_LE: Floats, num_slots: int, most_copies: int) -> Ints:
    """The copies ``replicate`` gives in every layer, ``(L, E)``."""
    L, E = load_LE.shape
    copies_LE = np.empty((L, E), np.int64)
    for layer in range(L):
        copies_LE[layer] = replicate(load_LE[layer], num_slots, most_copies, False)[1]
    return copies_LE


@_compiled
def _even_counts(num_experts: int, num_slots: int) -> Ints:
    """Copies where no load says otherwise: equal, the first experts one more."""
    copies = np.full(num_experts, num_slots // num_experts)
    copies[: num_slots % num_experts] += 1
    return copies


@_compiled
def _pack(weight: Floats, num_bins: int) -> Ints:
    """Heaviest item first, each into the lightest bin with room; all bins hold equally many.

    Bins are summed in double whatever the items' type, as the copies of DeepSeek's EPLB in SGLang
    and vLLM do; the original sums in float32 and differs where two bins agree to seven digits.

    Returns the place of each item, ``bin * (n // num_bins) + position``, ``(n,)``.
    """
    bin_size = weight.size // num_bins
    place = np.empty(weight.size, np.int64)
    free = np.zeros(num_bins)  # minus the load: the lightest bin has the largest
    filled = np.zeros(num_bins, np.int64)
    heap = np.arange(num_bins)
    size = num_bins
    for item in np.argsort(-weight, kind="mergesort"):
        b = heap[0]
        place[item] = b * bin_size + filled[b]
        free[b] -= weight[item]
        filled[b] += 1
        if filled[b] == bin_size:
            size -= 1
            heap[0] = heap[size]
        _sift_down(heap, size, 0, free, False)
    return place


@_compiled
def _pack_or_keep(weight: Floats, num_bins: int) -> Ints:
    """``_pack`` as DeepSeek's EPLB has it: one item a bin stays in its order."""
    return np.arange(weight.size) if weight.size == num_bins else _pack(weight, num_bins)


@_compiled
def _holds(held_RC: Ints, filled: Ints, rank: int, expert: int) -> Any:
    return (held_RC[rank, : filled[rank]] == expert).any()


@_compiled
def _make_room(expert: int, share: Floats, held_RC: Ints, filled: Ints, free: Floats) -> None:
    """Place a copy when every rank with room holds its expert already.

    Then a full rank lacks the expert, which has at most ``R`` copies, and at least two experts of
    that rank are absent from any rank with room, which holds fewer. Of all moves of such an expert
    to such a rank, the one with the lowest resulting maximum of both ranks is made, and the copy
    takes the vacated slot.
    """
    R, C = held_RC.shape
    best, source, position, target = np.inf, -1, -1, -1
    for full in range(R):
        if filled[full] < C or _holds(held_RC, filled, full, expert):
            continue
        for p in range(C):
            other = held_RC[full, p]
            left = -free[full] - share[other] + share[expert]
            for rank in range(R):
                peak = max(left, -free[rank] + share[other])
                if filled[rank] < C and peak < best and not _holds(held_RC, filled, rank, other):
                    best, source, position, target = peak, full, p, rank
    other = held_RC[source, position]
    held_RC[target, filled[target]] = other
    filled[target] += 1
    free[target] -= share[other]
    held_RC[source, position] = expert
    free[source] += share[other] - share[expert]


@_compiled
def _pack_distinct(share: Floats, copies: Ints, num_ranks: int) -> Ints:
    """Heaviest copies first, those of an expert to as many of the lightest ranks with room.

    No expert has more than ``R`` copies, and no rank gets two of one expert.

    Parameters
    ----------
    share, copies
        Load of a copy and number of copies of each expert, ``(E,)``.

    Returns
    -------
    The expert of every slot, ``(S,)``.
    """
    C = copies.sum() // num_ranks
    held_RC = np.empty((num_ranks, C), np.int64)
    free = np.zeros(num_ranks)  # minus the load: the lightest rank has the largest
    filled = np.zeros(num_ranks, np.int64)
    heap = np.arange(num_ranks)  # the ranks with room
    taken = np.empty(num_ranks, np.int64)
    size = num_ranks
    for expert in np.argsort(-share, kind="mergesort"):
        num_direct = min(copies[expert], size)
        for i in range(num_direct):
            rank = heap[0]
            taken[i] = rank
            held_RC[rank, filled[rank]] = expert
            filled[rank] += 1
            free[rank] -= share[expert]
            size -= 1
            heap[0] = heap[size]
            _sift_down(heap, size, 0, free, False)
        for _ in range(num_direct, copies[expert]):
            _make_room(expert, share, held_RC, filled, free)
        for rank in taken[:num_direct]:
            if filled[rank] < C:
                heap[size] = rank
                size += 1
                _sift_up(heap, size - 1, free)
    return held_RC.ravel()


@_compiled
def places(weight_LE: Floats, num_bins: int) -> Ints:
    """The place of each item of every row when packed as DeepSeek's EPLB does, ``(L, E)``."""
    place_LE = np.empty(weight_LE.shape, np.int64)
    for row in range(len(weight_LE)):
        place_LE[row] = _pack_or_keep(weight_LE[row], num_bins)
    return place_LE


@_compiled
def eplb_slots(load_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """The expert of every slot, ``(L, S)``: the global policy of DeepSeek's EPLB on float32."""
    slots_LS = np.empty((len(load_LE), num_slots), np.int64)
    for layer in range(len(load_LE)):
        load = load_LE[layer]
        expert, copies = replicate(load, num_slots, num_slots, False)
        share = load / copies.astype(load.dtype)
        slots_LS[layer][_pack_or_keep(share[expert], num_ranks)] = expert
    return slots_LS


@_compiled
def distinct_slots(load_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """As ``eplb_slots``, and no rank holds an expert twice. Needs ``S <= E * R``."""
    L, E = load_LE.shape
    slots_LS = np.empty((L, num_slots), np.int64)
    for layer in range(L):
        load = load_LE[layer]
        if load.max() > 0:
            copies = replicate(load, num_slots, num_ranks, False)[1]
            slots_LS[layer] = _pack_distinct(load / copies, copies, num_ranks)
        else:
            # Dealt one by one: the copies of an expert are neighbours, so on different ranks.
            dealt = np.repeat(np.arange(E), _even_counts(E, num_slots))
            slots_LS[layer] = dealt.reshape(-1, num_ranks).T.copy().ravel()
    return slots_LS


@_compiled
def trtllm_slots(load_LE: Floats, num_slots: int, num_ranks: int) -> Ints:
    """TensorRT-LLM's greedy planner, ``(L, S)``: see ``TrtllmGreedy``."""
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
