"""Active experts as plain loops over one layer, slow and obviously right; HiGHS beyond them."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from tests.reference.dispatch import hosts_of

LEAST_GAIN = 1e-9


def cut_bound(load, slots, num_ranks):
    """Max over sets of active experts of their number over that of their ranks, rounded up."""
    hosts = hosts_of(slots, num_ranks)
    active = [e for e in hosts if load[e] > 0]
    best = 0
    for size in range(1, len(active) + 1):
        for chosen in combinations(active, size):
            best = max(best, -(-size // len(set().union(*(hosts[e] for e in chosen)))))
    return best


def best_assignment(load, slots, num_ranks):
    """Fewest active experts on the busiest rank; among those the least load; by trying all."""
    hosts = hosts_of(slots, num_ranks)
    active = [e for e in hosts if load[e] > 0]
    found = []
    for ranks in product(*(sorted(hosts[e]) for e in active)):
        weights = [load[e] for e in active]
        number = np.bincount(ranks, minlength=num_ranks) if active else np.zeros(num_ranks)
        loads = np.bincount(ranks, weights, num_ranks) if active else np.zeros(num_ranks)
        found.append((int(number.max()), float(loads.max())))
    return min(found)


def highs_fewest(load, slots, num_ranks):
    """Fewest active experts on the busiest rank, by integer programming."""
    edges, serve_once, on_rank = _program(load, slots, num_ranks)
    peak = -np.ones((num_ranks, 1))
    return round(_least(edges, serve_once, [(np.hstack([on_rank, peak]), 0)]))


def highs_least_load(load, slots, num_ranks, most):
    """Least load of the busiest rank with one copy an expert and at most ``most`` on a rank."""
    edges, serve_once, on_rank = _program(load, slots, num_ranks)
    weights = np.array([load[e] for e, _ in edges])
    peak = np.ones((num_ranks, 1))
    limits = [(np.hstack([on_rank * weights, -peak]), 0), (np.hstack([on_rank, 0 * peak]), most)]
    return _least(edges, serve_once, limits)


def _program(load, slots, num_ranks):
    """A variable for each pair of an active expert and a rank that holds it."""
    hosts = hosts_of(slots, num_ranks)
    edges = [(e, r) for e in sorted(hosts) if load[e] > 0 for r in sorted(hosts[e])]
    experts, ranks = np.array(edges).T
    serve_once = (experts == np.unique(experts)[:, None]).astype(float)
    on_rank = (ranks == np.arange(num_ranks)[:, None]).astype(float)
    return edges, serve_once, on_rank


def _least(edges, serve_once, limits):
    n = len(edges)
    once = np.hstack([serve_once, np.zeros((len(serve_once), 1))])
    constraints = [LinearConstraint(once, 1, 1)]
    constraints += [LinearConstraint(matrix, -np.inf, most) for matrix, most in limits]
    answer = milp(
        np.append(np.zeros(n), 1.0),
        constraints=constraints,
        integrality=np.append(np.ones(n), 0),
        bounds=Bounds(0, np.append(np.ones(n), np.inf)),
    )
    assert answer.status == 0, answer.message
    return float(answer.fun)


def lighten(load, home, most, slots, speed):
    """Slots that serve each active expert, evened out along chains: twin of the kernel."""
    home = dict(home)
    while chain := _chain(load, home, most, slots, speed):
        home.update(chain)
    return home


def _chain(load, home, most, slots, speed):
    """The first chain of moves ``(expert, slot)`` after which its ranks are below the slowest."""
    size = len(slots) // len(speed)
    times = [0.0] * len(speed)
    for expert, slot in home.items():
        times[slot // size] += load[expert] / speed[slot // size]
    start = int(np.argmax(times))
    limit = times[start] * (1 - LEAST_GAIN)
    queue, seen = [(start, [])], {start}

    def served(after, rank):
        return [load[e] for e, slot in after.items() if slot // size == rank]

    while queue:
        rank, path = queue.pop(0)
        for slot in range(rank * size, (rank + 1) * size):
            if home.get(slots[slot]) != slot:
                continue
            for copy in (s for s, e in enumerate(slots) if e == slots[slot]):
                target = copy // size
                if target == rank or target in seen - {start}:
                    continue
                moves = [*path, (slots[slot], copy)]
                after = {**home, **dict(moves)}
                if sum(served(after, rank)) / speed[rank] >= limit:
                    break
                there = served(after, target)
                if sum(there) / speed[target] < limit and len(there) <= most:
                    return moves
                if target != start:
                    seen.add(target)
                    queue.append((target, moves))
    return []
