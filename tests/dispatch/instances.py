"""Loads and placements of all shapes, for comparison with an independent solver."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from equipoise.placement import Placement

Floats = NDArray[np.float64]
RANKS = (4, 8, 16, 32, 64, 128)


def random_instances(number: int, seed: int) -> Iterator[tuple[str, Floats, Placement]]:
    """Family, loads ``(1, E)`` and placement; families and rank counts take turns.

    4 to 128 ranks with 1 to 8 slots each, 0 to 128 redundant slots.
    """
    rng = np.random.default_rng(seed)
    for i in range(number):
        num_ranks = RANKS[i % len(RANKS)]
        layout = list(_LAYOUTS)[i // len(RANKS) % len(_LAYOUTS)]
        family = list(_LOADS)[i // len(RANKS) // len(_LAYOUTS) % len(_LOADS)]
        slots, num_experts = _LAYOUTS[layout](rng, num_ranks)
        load = _LOADS[family](rng, num_experts)
        placement = Placement(slots[None], num_ranks=num_ranks, num_experts=num_experts)
        yield f"{layout}, {family}", load[None].astype(float), placement


def _scattered(rng, num_ranks):
    """Copies of random experts, some with many, on random ranks, twice on one rank at times."""
    num_slots = num_ranks * int(rng.integers(1, 9))
    redundant = int(rng.integers(0, min(128, num_slots - 1) + 1))
    num_experts = num_slots - redundant
    popularity = rng.dirichlet(np.full(num_experts, rng.choice([0.05, 1.0, 100.0])))
    extra = rng.choice(num_experts, size=redundant, p=popularity)
    return rng.permutation(np.concatenate([np.arange(num_experts), extra])), num_experts


def _islands(rng, num_ranks):
    """Groups of ranks that share no expert: the graph is disconnected."""
    num_islands = int(rng.choice([2, 4]))
    parts, num_experts = [], 0
    while len(parts) < num_islands:
        slots, experts = _scattered(rng, num_ranks // num_islands)
        size = num_ranks // num_islands * 2
        if len(slots) != size:
            continue
        parts.append(slots + num_experts)
        num_experts += experts
    return np.concatenate(parts), num_experts


def _ring(rng, num_ranks):
    """Each rank also holds the first expert of its neighbour: load travels along long chains."""
    per_rank = int(rng.integers(1, 5))
    own = np.arange(num_ranks * per_rank).reshape(num_ranks, per_rank)
    return np.hstack([own, np.roll(own[:, :1], 1, axis=0)]).ravel(), own.size


def _one_hot(rng, num_experts):
    load = np.zeros(num_experts)
    load[rng.integers(num_experts)] = rng.integers(1, 10_000)
    return load


def _mostly_zero(rng, num_experts):
    load = rng.integers(1, 1000, num_experts) * (rng.random(num_experts) < 0.1)
    load[rng.integers(num_experts)] += 1
    return load


_LAYOUTS = {"scattered": _scattered, "islands": _islands, "ring": _ring}
_LOADS = {
    "uniform counts": lambda rng, n: rng.integers(1, 1000, n),
    "lognormal": lambda rng, n: rng.lognormal(5, rng.uniform(0.5, 2.5), n),
    "one hot": _one_hot,
    "mostly zero": _mostly_zero,
    "few tokens": lambda rng, n: np.append(rng.integers(0, 3, n - 1), 1),
    "equal": lambda rng, n: np.full(n, 7),
    "huge counts": lambda rng, n: rng.integers(0, 2**42, n) + 1,
}
