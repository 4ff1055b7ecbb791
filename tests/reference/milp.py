"""The least peak any placement of a small problem can have: integer programs, by HiGHS."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array


class Program:
    """Variables and constraints, one at a time."""

    def __init__(self):
        self.cost, self.upper, self.whole = [], [], []
        self.rows, self.low, self.high = [], [], []

    def variable(self, cost=0.0, upper=np.inf, whole=False):
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.cost) - 1

    def add(self, terms, low, high):
        """``low <= sum of coefficient * variable <= high``."""
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)

    def least(self):
        entries = [(a, i, v) for i, terms in enumerate(self.rows) for a, v in terms]
        a, i, v = (np.array(column) for column in zip(*entries, strict=True))
        matrix = coo_array((a, (i, v)), shape=(len(self.rows), len(self.cost))).tocsc()
        answer = milp(
            self.cost,
            integrality=self.whole,
            bounds=Bounds(0, self.upper),
            constraints=LinearConstraint(matrix, self.low, self.high),
            options={"mip_rel_gap": 0},
        )
        assert answer.status == 0, answer.message
        return float(answer.fun)


def heaviest_first(program, rank_loads):
    """Equal ranks in order of a window's load: fewer ways to say the same."""
    for heavier, lighter in pairwise(rank_loads):
        program.add([*heavier, *((-a, v) for a, v in lighter)], 0, np.inf)


def least_even(windows, num_ranks, slots_per_rank, *, distinct=False):
    """Even split: least mean over windows ``(T, E)`` of the busiest rank's load.

    A binary for each expert and number of copies, and the copies on every rank for each of them;
    ``distinct``: at most one a rank.
    """
    windows = np.atleast_2d(np.asarray(windows, dtype=float))
    T, E = windows.shape
    most = num_ranks * slots_per_rank - E + 1
    most = min(most, num_ranks) if distinct else most
    p = Program()
    peak = [p.variable(cost=1 / T) for _ in range(T)]
    on_rank = [[] for _ in range(num_ranks)]  # (expert, copies, variable)
    for e in range(E):
        has = [p.variable(upper=1, whole=True) for _ in range(most)]
        p.add([(1, z) for z in has], 1, 1)
        for c, z in enumerate(has, start=1):
            limit = 1 if distinct else c
            here = [p.variable(upper=limit, whole=True) for _ in range(num_ranks)]
            p.add([(1, y) for y in here] + [(-c, z)], 0, 0)
            for r, y in enumerate(here):
                p.add([(1, y), (-limit, z)], -np.inf, 0)
                on_rank[r].append((e, c, y))
    for held in on_rank:
        p.add([(1, y) for _, _, y in held], slots_per_rank, slots_per_rank)
        for t in range(T):
            p.add([(windows[t, e] / c, y) for e, c, y in held] + [(-1, peak[t])], -np.inf, 0)
    heaviest_first(p, [[(windows[0, e] / c, y) for e, c, y in held] for held in on_rank])
    return p.least()


def least_minmax(windows, num_ranks, slots_per_rank, speed=None):
    """Min-max split: least mean over windows ``(T, E)`` of the slowest rank's load over speed.

    A binary for each expert and rank, and the load that flows there in each window.
    """
    windows = np.atleast_2d(np.asarray(windows, dtype=float))
    speed = np.ones(num_ranks) if speed is None else np.asarray(speed) / np.mean(speed)
    T, E = windows.shape
    p = Program()
    peak = [p.variable(cost=1 / T) for _ in range(T)]
    holds = [[p.variable(upper=1, whole=True) for _ in range(E)] for _ in range(num_ranks)]
    for held in holds:
        p.add([(1, x) for x in held], 0, slots_per_rank)
    for e in range(E):
        p.add([(1, held[e]) for held in holds], 1, num_ranks)
    for t in range(T):
        flow = [[p.variable() for _ in range(E)] for _ in range(num_ranks)]
        for r in range(num_ranks):
            p.add([(1, f) for f in flow[r]] + [(-speed[r], peak[t])], -np.inf, 0)
            for e in range(E):
                p.add([(1, flow[r][e]), (-windows[t, e], holds[r][e])], -np.inf, 0)
        for e in range(E):
            p.add([(1, flow[r][e]) for r in range(num_ranks)], windows[t, e], windows[t, e])
    return p.least()


def least_even_in_pairs(load, num_ranks):
    """Even split, two slots a rank: all counts, each with heavy and light slots in pairs.

    For given counts nothing beats pairing the heaviest slot with the lightest, the second with the
    second lightest, and so on.
    """
    load = np.asarray(load, dtype=float)
    cuts = combinations(range(1, 2 * num_ranks), len(load) - 1)
    best = np.inf
    for cut in cuts:
        copies = np.diff([0, *cut, 2 * num_ranks])
        slots = np.sort(np.repeat(load / copies, copies))
        best = min(best, (slots[:num_ranks] + slots[: num_ranks - 1 : -1]).max())
    return best
