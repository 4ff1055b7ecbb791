"""Dispatch as plain loops over one layer, slow and obviously right; HiGHS for sizes beyond them."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array


def hosts_of(slots, num_ranks):
    """The set of ranks that hold each expert."""
    slots_per_rank = len(slots) // num_ranks
    hosts = {}
    for slot, expert in enumerate(slots):
        hosts.setdefault(int(expert), set()).add(slot // slots_per_rank)
    return hosts


def cut_peak(load, slots, num_ranks):
    """The least peak as a fraction: max over expert sets of their load over their ranks."""
    hosts = hosts_of(slots, num_ranks)
    experts = [e for e in hosts if load[e] > 0]
    best = Fraction(0)
    for size in range(1, len(experts) + 1):
        for chosen in combinations(experts, size):
            ranks = set().union(*(hosts[e] for e in chosen))
            best = max(best, sum(Fraction(load[e]) for e in chosen) / len(ranks))
    return best


def highs_peak(load, slots, num_ranks):
    """The least peak by linear programming, in units of the mean rank load."""
    load = np.asarray(load, dtype=float) * num_ranks / sum(load)
    hosts = hosts_of(slots, num_ranks)
    fixed = np.zeros(num_ranks)
    shared = []
    for expert, ranks in sorted(hosts.items()):
        if len(ranks) == 1:
            fixed[min(ranks)] += load[expert]
        else:
            shared.append(expert)
    edges = [(i, rank) for i, expert in enumerate(shared) for rank in sorted(hosts[expert])]
    n = len(edges)
    if not n:
        return float(fixed.max())
    expert_row, rank_row = np.array(edges).T
    ones = np.ones(n)
    below_peak = coo_array(
        (
            np.concatenate([ones, -np.ones(num_ranks)]),
            (
                np.concatenate([rank_row, np.arange(num_ranks)]),
                np.concatenate([np.arange(n), np.full(num_ranks, n)]),
            ),
        ),
        shape=(num_ranks, n + 1),
    )
    all_served = coo_array((ones, (expert_row, np.arange(n))), shape=(len(shared), n + 1))
    answer = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=below_peak.tocsr(),
        b_ub=-fixed,
        A_eq=all_served.tocsr(),
        b_eq=load[shared],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert answer.status == 0, answer.message
    return float(answer.fun)


def water_fill(amount, base):
    """Amounts poured on each base so that all that get some end level, by bisection."""
    low, high = min(base), max(base) + amount
    for _ in range(200):
        level = (low + high) / 2
        if sum(max(0.0, level - b) for b in base) > amount:
            high = level
        else:
            low = level
    return [max(0.0, low - b) for b in base]


def even_quotas(load, slots):
    """One assignment at a time, to the slots of the expert in turn."""
    quotas = [0] * len(slots)
    for expert, tokens in enumerate(load):
        own = [slot for slot, held in enumerate(slots) if held == expert]
        for token in range(int(tokens)):
            quotas[own[token % len(own)]] += 1
    return quotas
