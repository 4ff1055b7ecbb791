"""Exchanges that even out the busiest ranks, compiled. Plain twin: ``tests/reference/exchange.py``.

For each layer, the best exchange is found by trying every expert of the busiest rank against every
expert of the other ranks. The layer whose exchange gains most goes first, so that a move budget is
spent where it gains most.

Results are the same on every machine: comparisons are strict, the lowest index wins a tie, and only
operations are used whose last bit IEEE 754 defines.
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
_BITS = 5  # layers are judged by the ``2 ** _BITS``-norm over ranks, so that near-peak ranks count


class Layer(NamedTuple):
    """One layer's placement. Every array except ``share`` and ``home`` changes with an exchange."""

    rank_expert: Ints  # (R, C): experts of each rank's slots
    held: Bools  # (R, E): whether a rank holds an expert
    load: Floats  # (R,): load of each rank, in mean rank loads
    share: Floats  # (E,): load of one copy, in mean rank loads
    home: Bools  # (R, E): whether a rank holds an expert without a move


class Exchange(NamedTuple):
    """Slot ``i`` of rank ``r`` and slot ``j`` of rank ``q`` exchange their experts."""

    value: float  # change of the norm plus the price of the moves; negative is a gain
    moves: int  # number of moves added, negative if experts come home
    r: int
    i: int
    q: int
    j: int


@_compiled
def _power(x: float) -> float:
    """Return ``x ** (2 ** _BITS)``."""
    for _ in range(_BITS):
        x = x * x
    return x


@_compiled
def _root(x: float) -> float:
    """Return the ``2 ** _BITS``-th root of ``x``."""
    for _ in range(_BITS):
        x = np.sqrt(x)
    return x


@_compiled
def _best(layer: Layer, price: float) -> Exchange:
    """Find the best exchange for the busiest rank; one with ``i = -1`` if none is worth its price.

    ``price`` is the price of a move, in mean rank loads.
    """
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
    """Make an exchange: change ``rank_expert``, ``held`` and ``load`` of the layer."""
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
    """Build a layer from the experts of its ranks ``(R, C)``; exchanges change them in place.

    ``home`` is ``(R, E)`` and ``share`` ``(E,)``, see ``Layer``.
    """
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
    """Exchange experts between ranks as long as that gains more than its moves cost.

    An expert on a rank that is not its home is a move; bringing it home takes the move back.

    Parameters
    ----------
    by_rank_LRC
        Experts of each rank, ``(L, R, C)`` with ``C`` slots a rank; changed in place.
    home_LRE
        True where a rank holds an expert without a move, ``(L, R, E)``.
    share_LE
        Load of one copy of each expert, ``(L, E)``, in mean rank loads; all zero in a layer without
        load.
    price
        Price of a move, in mean rank loads.
    most_moves
        Number of moves that may be added, all layers together.
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
