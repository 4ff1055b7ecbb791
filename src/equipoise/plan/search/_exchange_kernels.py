"""Exchanges that even out the busiest ranks, compiled. Plain twin: ``tests/reference/exchange.py``.

The best exchange of a layer takes one look at every expert that its busiest rank could swap for one
of another rank. The layers take turns, the one that gains most first, so that a move budget goes
where it is worth most.

Deterministic on every machine: strict comparisons, the lowest index where values tie, and of the
operations none but those whose last bit IEEE 754 settles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch._compiler import njit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_compiled = njit(nogil=True, error_model="numpy")

_CLOSE = 1e-12  # a difference below this is rounding
_BITS = 5  # a layer is as good as the ``2 ** bits``-norm of its ranks: those next to the peak count


class Layer(NamedTuple):
    """A layer; the arrays but ``share`` and ``home`` change with every exchange."""

    rank_expert: Ints  # (R, C)
    held: Bools  # (R, E)
    load: Floats  # (R,): in mean rank loads
    share: Floats  # (E,): load of a copy, in mean rank loads
    home: Bools  # (R, E): which experts a rank holds without a move


class Exchange(NamedTuple):
    """Slot ``i`` of rank ``r`` gives its expert to slot ``j`` of ``q`` and takes the one there."""

    value: float  # what the norm and the price of moves change by; the least is the best
    moves: int
    r: int
    i: int
    q: int
    j: int


@_compiled
def _power(x: float) -> float:
    for _ in range(_BITS):
        x = x * x
    return x


@_compiled
def _root(x: float) -> float:
    for _ in range(_BITS):
        x = np.sqrt(x)
    return x


@_compiled
def _best(layer: Layer, price: float) -> Exchange:
    """The best exchange of the busiest rank; one of no value if none is worth its price."""
    held, home, load, share = layer.held, layer.home, layer.load, layer.share
    r = int(load.argmax())
    total = 0.0
    for q in range(load.size):
        total += _power(load[q])
    norm = _root(total)
    best = Exchange(0.0, 0, r, -1, -1, -1)
    for i, a in enumerate(layer.rank_expert[r]):
        for q in range(load.size):
            if q == r or held[q, a]:
                continue
            others = total - _power(load[r]) - _power(load[q])
            for j, b in enumerate(layer.rank_expert[q]):
                step = share[a] - share[b]
                if held[r, b] or step <= 0.0 or load[q] + step >= load[r]:
                    continue
                moves = int(home[r, a]) + int(home[q, b]) - int(home[q, a]) - int(home[r, b])
                new = others + _power(load[r] - step) + _power(load[q] + step)
                value = _root(new) - norm + price * moves
                if value < best.value - _CLOSE:
                    best = Exchange(value, moves, r, i, q, j)
    return best


@_compiled
def _make(layer: Layer, exchange: Exchange) -> None:
    r, i, q, j = exchange.r, exchange.i, exchange.q, exchange.j
    a, b = layer.rank_expert[r, i], layer.rank_expert[q, j]
    layer.rank_expert[r, i], layer.rank_expert[q, j] = b, a
    layer.held[r, a] = layer.held[q, b] = False
    layer.held[r, b] = layer.held[q, a] = True
    step = layer.share[a] - layer.share[b]
    layer.load[r] -= step
    layer.load[q] += step


@_compiled
def _read(rank_expert: Ints, home: Bools, share: Floats) -> Layer:
    held = np.zeros(home.shape, np.bool_)
    load = np.zeros(len(rank_expert))
    for r in range(len(rank_expert)):
        for e in rank_expert[r]:
            held[r, e] = True
            load[r] += share[e]
    return Layer(rank_expert, held, load, share, home)


@_compiled
def exchange_experts(
    by_rank_LRC: Ints, home_LRE: Bools, share_LE: Floats, price: float, most_moves: int
) -> None:
    """Exchange experts between ranks, which changes ``by_rank_LRC``, while it is worth the moves.

    An expert on a rank that is not its home is a move, one that is back home takes it back.

    Parameters
    ----------
    share_LE
        Load of a copy of each expert, in mean rank loads; all zero in a layer without load.
    price
        Price of a move, in mean rank loads.
    most_moves
        Moves that may be added, all layers together.
    """
    layers = [
        _read(by_rank_LRC[layer], home_LRE[layer], share_LE[layer])
        for layer in range(len(by_rank_LRC))
    ]
    next_ones = [_best(layer, price) for layer in layers]
    values = np.array([exchange.value for exchange in next_ones])
    while True:
        at = values.argmin()
        exchange = next_ones[at]
        if exchange.i < 0 or np.isinf(values[at]):
            return
        if exchange.moves > most_moves:
            values[at] = np.inf
            continue
        most_moves -= exchange.moves
        _make(layers[at], exchange)
        next_ones[at] = _best(layers[at], price)
        values[at] = next_ones[at].value
