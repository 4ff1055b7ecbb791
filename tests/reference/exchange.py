"""Exchanges of the busiest ranks in plain loops, which look at everything again each time."""

from __future__ import annotations

import numpy as np

CLOSE, BITS = 1e-12, 5


def power(x):
    for _ in range(BITS):
        x = x * x
    return x


def root(x):
    for _ in range(BITS):
        x = float(np.sqrt(x))
    return x


def exchange_experts(by_rank, home, share, price, most_moves):
    """Lists of lists of lists: ``by_rank[layer][rank][slot]``, which is changed."""
    done = set()  # layers whose best exchange takes more moves than are left
    while True:
        found = [
            (*best(rows, home[layer], share[layer], price), layer)
            for layer, rows in enumerate(by_rank)
            if layer not in done
        ]
        found = [exchange for exchange in found if exchange[0] < -CLOSE]
        if not found:
            return
        _, moves, (r, i, q, j), layer = min(found, key=lambda exchange: exchange[0])
        if moves > most_moves:
            done.add(layer)
            continue
        most_moves -= moves
        rows = by_rank[layer]
        rows[r][i], rows[q][j] = rows[q][j], rows[r][i]


def best(rows, home, share, price):
    """What the best exchange of the busiest rank changes, its moves and its slots."""
    loads = [sum(share[e] for e in row) for row in rows]
    r = loads.index(max(loads))
    before = root(sum(power(load) for load in loads))
    least = (0.0, 0, None)
    for i, a in enumerate(rows[r]):
        for q, row in enumerate(rows):
            for j, b in enumerate(row):
                step = share[a] - share[b]
                if q == r or a in row or b in rows[r] or step <= 0 or loads[q] + step >= loads[r]:
                    continue
                new = [*loads]
                new[r], new[q] = loads[r] - step, loads[q] + step
                moves = home[r][a] + home[q][b] - home[q][a] - home[r][b]
                value = root(sum(power(load) for load in new)) - before + price * moves
                if value < least[0] - CLOSE:
                    least = (value, moves, (r, i, q, j))
    return least
