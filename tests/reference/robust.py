"""What ``Robust`` minimises, as plain loops over one layer; searches by trying everything."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def rank_sums(load, risk, slots, num_ranks):
    """What every rank counts under an even split, ``(R, T)``."""
    size = len(slots) // num_ranks
    sums = np.zeros((num_ranks, load.shape[1]))
    for slot, expert in enumerate(slots):
        copies = list(slots).count(expert)
        sums[slot // size] += load[expert] / copies + risk[expert] / copies**2
    return sums


def tail_mean(values, weight, tail):
    """Mean of the worst ``tail`` share of the weight."""
    left = tail * sum(weight)
    total = 0.0
    for value, share in sorted(zip(values, weight, strict=True), reverse=True):
        counted = min(share, left)
        total += counted * value
        left -= counted
    return total / (tail * sum(weight))


def even_objective(load, risk, weight, slots, num_ranks, tail, bits):
    sums = rank_sums(load, risk, slots, num_ranks)
    norms = (sums ** (2**bits)).sum(axis=0) ** (1 / 2**bits)
    return tail_mean(norms, weight, tail)


def best_peak(load, num_ranks, slots_per_rank):
    """The least even-split peak of any placement of one window, for very small problems."""
    experts = range(len(load))
    ranks = [set(rank) for rank in combinations(experts, slots_per_rank)]
    best = np.inf

    def place(chosen, first):
        nonlocal best
        if len(chosen) == num_ranks:
            copies = [sum(e in rank for rank in chosen) for e in experts]
            if min(copies) > 0:
                peak = max(sum(load[e] / copies[e] for e in rank) for rank in chosen)
                best = min(best, peak)
            return
        for i in range(first, len(ranks)):
            place([*chosen, ranks[i]], i)

    place([], 0)
    return best
