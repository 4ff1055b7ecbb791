"""Slot-for-slot parity with the public EPLB algorithm, on random instances without ties.

The peer is the copy of DeepSeek's EPLB in the sglang wheel. Get it and run, from the repository
root, with torch installed:

    pip download --no-deps sglang==0.5.23
    python -m benchmarks.parity_sglang --peer sglang-0.5.23-*.whl

Protocol: shapes are drawn from all combinations of experts, ranks, slots, groups and nodes below
that are legal; loads from lognormal, Zipf and uniform draws, two layers an instance. Half of the
instances have groups. Where loads tie the peer's answer is chance, so an instance is drawn again if
two experts have the same float32 load per copy, or if the peer's own placement changes when all
loads are multiplied by 3, 5, 7 or 11, which changes nothing but rounding. Compared are the expert
of every slot, the copies of every expert, and the set of its slots. Exit status 1 on any mismatch.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import sglang_peer
from equipoise.plan import Greedy, Hierarchical, Problem
from equipoise.topology import Topology

EXPERTS = (64, 128, 160, 256, 384)
RANKS = (8, 16, 32, 36, 48, 64, 72, 96, 128, 144)
GROUPS = (1, 4, 8)
MAX_REDUNDANT = 64
NUM_LAYERS = 2


class Shape(NamedTuple):
    experts: int
    ranks: int
    slots: int
    groups: int
    nodes: int


def shapes() -> Iterator[Shape]:
    """All legal shapes, with groups and without."""
    for experts in EXPERTS:
        for ranks in RANKS:
            first = -(-experts // ranks) * ranks
            for slots in range(first, experts + MAX_REDUNDANT + 1, ranks):
                for groups in GROUPS:
                    for nodes in (1,) if groups == 1 else (1, 2, 4, 8):
                        if not (experts % groups or groups % nodes or ranks % nodes):
                            yield Shape(experts, ranks, slots, groups, nodes)


def draw_load(rng: np.random.Generator, experts: int) -> NDArray[np.float64]:
    """Loads ``(L, E)`` of one family; their ids carry no order."""
    kind = rng.integers(3)
    if kind == 0:
        return 1000 * rng.lognormal(0, rng.choice([0.3, 1.0, 2.0]), (NUM_LAYERS, experts))
    if kind == 1:
        zipf = 1e4 / np.arange(1, experts + 1) ** rng.choice([0.5, 1.0, 1.5])
        return rng.permuted(zipf * rng.uniform(0.9, 1.1, (NUM_LAYERS, experts)), axis=1)
    return rng.uniform(1, 1000, (NUM_LAYERS, experts))


def ask_peer(
    rebalance: Callable[..., Any], load: NDArray[np.float64], shape: Shape
) -> list[NDArray[np.int64]]:
    answer = rebalance(
        torch.from_numpy(load),
        shape.slots,
        shape.groups,
        shape.nodes,
        shape.ranks,
        shape.groups > 1,
    )
    return [x.numpy() for x in answer]


def has_ties(rebalance: Callable[..., Any], load: NDArray[np.float64], shape: Shape) -> bool:
    slots, _, copies = ask_peer(rebalance, load, shape)
    share = np.sort(load.astype(np.float32) / copies.astype(np.float32), axis=1)
    if (share[:, 1:] == share[:, :-1]).any():
        return True
    return any(
        not np.array_equal(slots, ask_peer(rebalance, load * factor, shape)[0])
        for factor in (3, 5, 7, 11)
    )


def agree(rebalance: Callable[..., Any], load: NDArray[np.float64], shape: Shape) -> bool:
    planner: Greedy | Hierarchical = Greedy(allow_same_rank_copies=True)
    if shape.groups > 1:
        planner = Hierarchical(num_expert_groups=shape.groups, allow_same_rank_copies=True)
    topology = Topology(shape.ranks, shape.ranks // shape.nodes)
    ours = planner.plan(Problem(load, topology, shape.slots)).placement
    slots, slots_of_expert, copies = ask_peer(rebalance, load, shape)
    return (
        np.array_equal(ours.slots, slots)
        and np.array_equal(ours.copies, copies)
        and np.array_equal(
            np.sort(ours.slots_of_experts(), axis=2), np.sort(slots_of_expert, axis=2)
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sglang_peer.add_argument(parser)
    parser.add_argument("--instances", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rebalance = sglang_peer.load(args.peer)
    rng = np.random.default_rng(args.seed)
    legal = list(shapes())
    pools = [[s for s in legal if (s.groups > 1) == grouped] for grouped in (False, True)]
    tally: Counter[str] = Counter()
    while tally["compared"] < args.instances:
        pool = pools[tally["compared"] % 2]
        shape = pool[rng.integers(len(pool))]
        load = draw_load(rng, shape.experts)
        if has_ties(rebalance, load, shape):
            tally["drawn again for ties"] += 1
            continue
        tally["compared"] += 1
        tally["with groups" if shape.groups > 1 else "without groups"] += 1
        if not agree(rebalance, load, shape):
            tally["mismatches"] += 1
            print("mismatch:", shape)
    print(f"{len(legal)} shapes, {NUM_LAYERS} layers an instance, seed {args.seed}")
    for name in ("compared", "without groups", "with groups", "drawn again for ties", "mismatches"):
        print(f"{name:22}{tally[name]:6}")
    return 1 if tally["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
