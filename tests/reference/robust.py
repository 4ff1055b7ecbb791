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


def least_objective(total, new_total, weight, bits):
    """A bound from below on the weighted sum of the new norms, by the tangents at the old ones."""
    p = 2**bits
    norms = [t ** (1 / p) * (1 + (1 - t / n) / p) for t, n in zip(total, new_total, strict=True)]
    return sum(max(norm, 0) * w for norm, w in zip(norms, weight, strict=True))


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


def shares_of(slots, num_ranks, node, near):
    """Share of each expert's load on each rank, ``{(rank, expert): share}``; -1 is no slot."""
    size = len(slots) // num_ranks
    hosts = {}
    for slot, expert in enumerate(slots):
        if expert >= 0:
            hosts.setdefault(int(expert), []).append(slot // size)
    shares = {}
    for expert, ranks in hosts.items():
        for source in set(node):  # every node sends as much as any other
            own = [r for r in ranks if node[r] == source]
            used = own if near and own else ranks
            for r in used:
                part = 1 / len(used) / len(set(node))
                shares[r, expert] = shares.get((r, expert), 0) + part
    return shares


def timed_sums(load, risk, slots, num_ranks, slowness, node, near, floor, pad):
    """What every rank counts, ``(R, T)``, on unequal ranks."""
    sums = np.zeros((num_ranks, load.shape[1]))
    for (r, e), share in shares_of(slots, num_ranks, node, near).items():
        for t in range(load.shape[1]):
            x = load[e, t] * share + risk[e, t] * share**2
            if floor > 0 and load[e, t] > 0:
                x = max(floor, x + pad)
            sums[r, t] += slowness[r] * x
    return sums


def extra(slots, num_ranks, node, price, homes, by_node, missing):
    """Prices of experts on ranks, and of homes they are short of."""
    size = len(slots) // num_ranks
    total = sum(price[s // size, e] for s, e in enumerate(slots) if e >= 0)
    for expert in range(price.shape[1]):
        ranks = [s // size for s, e in enumerate(slots) if e == expert]
        where = {node[r] for r in ranks} if by_node else set(ranks)
        total += missing * max(0, homes - len(where))
    return total
