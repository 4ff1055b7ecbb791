"""Every placement of a small layer, and the least peak among them: by trying all."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement, product

import numpy as np


@lru_cache(maxsize=8)
def all_placements(num_experts, num_ranks, slots_per_rank, *, equal):
    """Slots ``(N, S)`` of every valid placement; of equal ranks in one order only."""
    ranks = np.array(list(combinations_with_replacement(range(num_experts), slots_per_rank)))
    choose = combinations_with_replacement(range(len(ranks)), num_ranks)
    if not equal:
        choose = product(range(len(ranks)), repeat=num_ranks)
    held = np.zeros((len(ranks), num_experts), dtype=bool)
    held[np.arange(len(ranks))[:, None], ranks] = True
    chosen = np.array(list(choose))
    valid = held[chosen].any(axis=1).all(axis=1)
    return ranks[chosen[valid]].reshape(valid.sum(), -1)


def even_peaks(load, slots, speed, cost=None):
    """Slowest rank of each placement ``(N, S)`` where copies share equally, ``(N,)``."""
    ids = np.arange(len(load))
    copies = (slots[:, :, None] == ids).sum(axis=1)
    share = (load / copies)[np.arange(len(slots))[:, None], slots]
    on_rank = seconds(share, cost).reshape(len(slots), len(speed), -1).sum(axis=2)
    return ((on_rank + fixed(cost)) / speed).max(axis=1)


def minmax_peaks(load, slots, speed):
    """The same under the best split: the worst set of ranks, by the load that cannot leave it."""
    by_rank = slots.reshape(len(slots), len(speed), -1)
    held = (by_rank[..., None] == np.arange(len(load))).any(axis=2)
    peaks = np.zeros(len(slots))
    for members in product([False, True], repeat=len(speed)):
        inside = np.array(members)
        if inside.any():
            confined = ~held[:, ~inside].any(axis=1)
            np.maximum(peaks, confined @ load / speed[inside].sum(), out=peaks)
    return peaks


def mean_rank(load, speed, cost=None):
    """What every rank carries or takes if nothing binds."""
    return (seconds(load, cost).sum() + len(speed) * fixed(cost)) / speed.sum()


def seconds(load, cost):
    """What slots with this load take; their load where there is no cost."""
    if cost is None:
        return load
    block = cost.token_block
    padded = np.ceil(load / block) * block if block > 1 else load
    return np.where(load > 0, np.maximum(cost.expert_seconds, cost.token_seconds * padded), 0.0)


def fixed(cost):
    """What a rank takes without any load."""
    return 0.0 if cost is None else cost.fixed_seconds
