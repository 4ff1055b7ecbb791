"""Dispatch as plain loops over one layer, slow and obviously right; HiGHS for sizes beyond them."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

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


def cut_peak(load, slots, num_ranks, speed=None):
    """The least peak as a fraction: max over expert sets of their load over their ranks' speed."""
    speed = [1] * num_ranks if speed is None else speed
    hosts = hosts_of(slots, num_ranks)
    experts = [e for e in hosts if load[e] > 0]
    best = Fraction(0)
    for size in range(1, len(experts) + 1):
        for chosen in combinations(experts, size):
            ranks = set().union(*(hosts[e] for e in chosen))
            total = sum(Fraction(load[e]) for e in chosen)
            best = max(best, total / sum(Fraction(speed[r]) for r in ranks))
    return best


def whole_cut_peak(load, slots, num_ranks, speed):
    """The least peak of whole shares: capacities that hold every set of experts on its ranks."""
    hosts = hosts_of(slots, num_ranks)
    experts = [e for e in hosts if load[e] > 0]
    levels = [0.0, *sorted({j / v for v in speed for j in range(1, int(sum(load)) + 1)})]
    for level in levels:
        room = [max(j for j in range(int(sum(load)) + 1) if j / v <= level) for v in speed]
        if all(
            sum(load[e] for e in chosen)
            <= sum(room[r] for r in set().union(*map(hosts.get, chosen)))
            for size in range(1, len(experts) + 1)
            for chosen in combinations(experts, size)
        ):
            return level
    raise AssertionError("the whole load fits at the last level")


def fastest(load, slots, num_ranks, speed, cost):
    """The least time of the slowest rank over all whole splits of a tiny layer, one by one."""
    places = [[i for i, held in enumerate(slots) if held == e] for e in range(len(load))]
    best = float("inf")
    for split in product(
        *(partitions(int(n), len(own)) for n, own in zip(load, places, strict=True))
    ):
        seconds = [cost.fixed_seconds] * num_ranks
        for own, parts in zip(places, split, strict=True):
            for slot, part in zip(own, parts, strict=True):
                blocks = -(-part // cost.token_block) * cost.token_block
                if part:
                    seconds[slot * num_ranks // len(slots)] += max(
                        cost.expert_seconds, cost.token_seconds * blocks
                    )
        best = min(best, max(s / v for s, v in zip(seconds, speed, strict=True)))
    return best


def partitions(number, parts):
    """All ways to write a number as an ordered sum of a given number of parts, 0 included."""
    if parts == 1:
        return [(number,)]
    return [(n, *rest) for n in range(number + 1) for rest in partitions(number - n, parts - 1)]


def nearest(source, slots, num_ranks, room, node):
    """Most assignments that can stay on their own rank, and with those on their own node (HiGHS).

    Variables: what of an expert a rank serves, of that what was there, and what a node had.
    """
    num_experts = source.shape[1]
    hosts = hosts_of(slots, num_ranks)
    edges = [(e, r) for e in range(num_experts) for r in sorted(hosts[e])]
    groups = sorted({(e, int(node[r])) for e, r in edges})
    n, m = len(edges), len(groups)
    on_node = np.zeros((max(node) + 1, num_experts))
    np.add.at(on_node, node, source)
    serves = np.array([[e == x for e, _ in edges] for x in range(num_experts)], dtype=float)
    carries = np.array([[r == x for _, r in edges] for x in range(num_ranks)], dtype=float)
    within = np.array([[(e, node[r]) == x for e, r in edges] for x in groups], dtype=float)
    A_ub = np.block(
        [
            [carries, np.zeros((num_ranks, n + m))],
            [-np.eye(n), np.eye(n), np.zeros((n, m))],
            [-within, np.zeros((m, n)), np.eye(m)],
        ]
    )
    b_ub = np.concatenate([room, np.zeros(n + m)])
    own_cost = np.concatenate([np.zeros(n), -np.ones(n), np.zeros(m)])
    node_cost = np.concatenate([np.zeros(2 * n), -np.ones(m)])
    most = [None] * n + [source[r, e] for e, r in edges] + [on_node[x, e] for e, x in groups]
    program = {
        "A_eq": np.hstack([serves, np.zeros((num_experts, n + m))]),
        "b_eq": source.sum(axis=0),
        "bounds": [(0, x) for x in most],
    }
    first = linprog(own_cost, A_ub=A_ub, b_ub=b_ub, **program)
    assert first.status == 0, first.message
    own = round(-first.fun)
    second = linprog(
        node_cost, A_ub=np.vstack([A_ub, own_cost]), b_ub=np.append(b_ub, -own), **program
    )
    assert second.status == 0, second.message
    return own, round(-second.fun)


def fill(quotas, source, slots, node):
    """What each slot gets from each source: own rank first, then own node, then in order."""
    num_ranks = len(source)
    size = len(slots) // num_ranks
    free, left = list(quotas), [list(row) for row in source]
    filled = [[0] * len(slots) for _ in range(num_ranks)]
    pairs = list(product(range(len(slots)), range(num_ranks)))
    for pick in (
        lambda home, rank: home == rank,
        lambda home, rank: node[home] == node[rank],
        lambda home, rank: True,
    ):
        for slot, rank in pairs:
            if pick(slot // size, rank):
                amount = min(free[slot], left[rank][slots[slot]])
                filled[rank][slot] += amount
                free[slot] -= amount
                left[rank][slots[slot]] -= amount
    return filled


def spread(load, weights, slots, whole):
    """An expert's load over its slots by weight; what rounding leaves to the first heaviest."""
    shares = [0.0] * len(slots)
    for expert, amount in enumerate(load):
        own = [s for s, held in enumerate(slots) if held == expert]
        total = sum(weights[s] for s in own)
        for s in own:
            part = amount * weights[s] / total if total else 0.0
            shares[s] = float(int(part)) if whole else part
        heaviest = max(own, key=lambda s: (weights[s], -s))
        shares[heaviest] += amount - sum(shares[s] for s in own)
    return shares


def serve_nearest(source, slots, node):
    """Shares and quotas where sources use copies on their rank, else their node, else all.

    Assignments are dealt one at a time; sources without a copy begin one copy later each.
    """
    num_ranks = len(source)
    size = len(slots) // num_ranks
    shares, quotas = [0.0] * len(slots), [0] * len(slots)
    for expert in range(len(source[0])):
        own = [s for s, held in enumerate(slots) if held == expert]
        turn = 0
        for rank in range(num_ranks):
            here = [s for s in own if s // size == rank]
            close = [s for s in own if node[s // size] == node[rank]]
            used = here or close or own
            turn += not here
            for s in used:
                shares[s] += source[rank][expert] / len(used)
            for token in range(int(source[rank][expert])):
                quotas[used[(turn + token) % len(used)]] += 1
    return shares, quotas


def highs_peak(load, slots, num_ranks, speed=None):
    """The least peak by linear programming, in units of the load over the summed speed."""
    speed = np.ones(num_ranks) if speed is None else np.asarray(speed, dtype=float)
    load = np.asarray(load, dtype=float) * speed.sum() / sum(load)
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
        return float((fixed / speed).max())
    expert_row, rank_row = np.array(edges).T
    ones = np.ones(n)
    below_peak = coo_array(
        (
            np.concatenate([ones / speed[rank_row], -np.ones(num_ranks)]),
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
        b_ub=-fixed / speed,
        A_eq=all_served.tocsr(),
        b_eq=load[shared],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert answer.status == 0, answer.message
    return float(answer.fun)


def water_fill(amount, base, speed=None):
    """Amounts poured on each base so that all that get some end level, by bisection."""
    speed = [1.0] * len(base) if speed is None else speed
    low = min(b / v for b, v in zip(base, speed, strict=True))
    high = max((b + amount) / v for b, v in zip(base, speed, strict=True))
    for _ in range(200):
        level = (low + high) / 2
        if sum(max(0.0, level * v - b) for b, v in zip(base, speed, strict=True)) > amount:
            high = level
        else:
            low = level
    return [max(0.0, low * v - b) for b, v in zip(base, speed, strict=True)]


def even_quotas(load, slots):
    """One assignment at a time, to the slots of the expert in turn."""
    quotas = [0] * len(slots)
    for expert, tokens in enumerate(load):
        own = [slot for slot, held in enumerate(slots) if held == expert]
        for token in range(int(tokens)):
            quotas[own[token % len(own)]] += 1
    return quotas
