"""Min-max dispatch against HiGHS on thousands of layers; exit status 1 if it is ever not exact.

    python -m benchmarks.quality.minmax_exactness

Real: GLM-5.2 routing counts, window 7 of 7 domains x 75 layers on `Greedy()` placements planned on
the other windows, 4 to 128 ranks, 0 to 128 redundant slots. Random: the families of
`tests/dispatch/instances.py`, among them one hot expert, mostly idle experts, disconnected graphs,
rings, copies on one rank, huge counts and fractional loads. Every layer is solved twice: with ranks
that are equal, and with speeds drawn for it, in turn one rank in eight at 0.8, lognormal with sigma
0.3, and lognormal with sigma 2, where the fastest may be a thousand times the slowest.

For every layer: the peak against the optimum that HiGHS finds (tolerances 1e-10); the peak against
the bound that the answer proves by itself; the slowest rank under whole quotas against the
fractional optimum, in assignments of the slowest rank of all; quotas summed per expert against the
load. Whole quotas must be within one token. They are also held to the least whole peak: where all
ranks are equal that is the optimum rounded up; else a maximum flow (scipy) must not fit into the
capacities just below, checked up to 2**31 assignments, the most that solver takes.

Then what has no exact answer to compare with, on 32 ranks in nodes of 8. Batches are drawn from the
popularity in window 7 of the 7 domains (multinomial, 8 experts a token), one a domain and layer.

* In time, with published costs of H100 with DeepEP, with and without blocks of 128: summed peaks
  over summed bounds, minus 1, for an even split, for the least peak in assignments and for
  `MinMax(cost=...)`, which must never be slower than the latter.
* Near the source, where the tokens of each expert come from the ranks in shares drawn from a
  Dirichlet distribution (all parameters 1): how many assignments stay on their rank and their node
  when sources fill the quotas of a min-max split that does not know them, and of one that does. The
  peaks must be the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from benchmarks.quality import machine
from equipoise.cost import rank_cost
from equipoise.dispatch import Even, MinMax, Split
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances
from tests.reference.dispatch import highs_peak

WINDOWS = Path(__file__).parents[3] / "shared" / "data" / "glm52" / "windows.npz"
SIZES = [(4, 16), (8, 32), (16, 16), (32, 0), (32, 32), (32, 64), (64, 64), (128, 128)]
LARGEST_GAP = 1e-9
MOST_FLOW = 2**31


@dataclass
class Tally:
    """The worst over the layers of a family."""

    layers: int = 0
    whole: int = 0
    from_highs: float = 0.0
    from_bound: float = 0.0
    tokens_over: float = 0.0
    not_least: int = 0
    wrong_sums: int = 0

    def add(self, load: np.ndarray, placement: Placement, topology: Topology) -> None:
        split = MinMax(topology=topology).split(load, placement)
        unit = load.sum() / placement.num_ranks
        speed = topology.relative_speed
        highs = unit * highs_peak(load[0], placement.slots[0], placement.num_ranks, speed)
        self.layers += 1
        self.from_highs = max(self.from_highs, abs(split.peak[0] / highs - 1))
        self.from_bound = max(self.from_bound, split.gap)
        if np.array_equal(load, np.floor(load)):
            self.whole += 1
            self._add_quotas(split, speed)

    def _add_quotas(self, split: Split, speed: np.ndarray) -> None:
        p = split.placement
        on_rank = split.quotas.reshape(p.num_ranks, -1).sum(axis=1)
        slowest = (on_rank / speed).max()
        over = (slowest - split.bound[0]) * speed.min()
        self.tokens_over = max(self.tokens_over, float(over))
        self.not_least += int(not is_least(slowest, split, speed))
        served = np.bincount(p.slots[0], split.quotas[0], p.num_experts)
        self.wrong_sums += int(not np.array_equal(served, split.load[0]))

    @property
    def exact(self) -> bool:
        return (
            max(self.from_highs, self.from_bound) <= LARGEST_GAP
            and self.tokens_over <= 1
            and not self.not_least
            and not self.wrong_sums
        )


def is_least(peak: float, split: Split, speed: np.ndarray) -> bool:
    """Whether no whole split has a lower peak."""
    if (speed == 1).all():
        return bool(peak == np.ceil(split.bound[0]))
    if split.load.sum() >= MOST_FLOW or not peak:
        return True
    room = np.floor(peak * speed).astype(np.int64) + 1
    while (late := room / speed >= peak).any():
        room -= late
    return whole_flow(split, room) < split.load.sum()


def whole_flow(split: Split, room: np.ndarray) -> int:
    """The most whole assignments that ranks of that room can serve."""
    p, load = split.placement, split.load[0].astype(np.int64)
    experts, ranks = 1 + np.arange(p.num_experts), 1 + p.num_experts + np.arange(p.num_ranks)
    held = np.unique(np.stack([p.slots[0], p.rank_of_slot], axis=1), axis=0)
    sink = 1 + p.num_experts + p.num_ranks
    tail = np.concatenate([np.zeros_like(experts), experts[held[:, 0]], ranks])
    head = np.concatenate([experts, ranks[held[:, 1]], np.full_like(ranks, sink)])
    most = np.minimum(np.concatenate([load, load[held[:, 0]], room]), load.sum())
    graph = coo_array((most.astype(np.int32), (tail, head)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph.tocsr(), 0, sink).flow_value)


def real_instances(windows: Path) -> Iterator[tuple[str, np.ndarray, Placement]]:
    with np.load(windows) as archive:
        counts = archive["counts"]
    fit, held = counts[:, :7].sum(axis=(0, 1)), counts[:, 7].astype(float)
    for num_ranks, redundant in SIZES:
        problem = Problem(fit, Topology(num_ranks), 256 + redundant)
        for layer, slots in enumerate(Greedy().plan(problem).placement.slots):
            placement = Placement(slots[None], num_ranks=num_ranks, num_experts=256)
            for domain in held:
                yield (
                    f"GLM-5.2, {num_ranks} ranks, {redundant} redundant",
                    domain[[layer]],
                    placement,
                )


def unequal(num_ranks: int, number: int, rng: np.random.Generator) -> Topology:
    """Ranks of different speeds, three kinds in turn."""
    kinds = [
        lambda: np.where(np.arange(num_ranks) % 8 == 0, 0.8, 1.0),
        lambda: rng.lognormal(0, 0.3, num_ranks),
        lambda: rng.lognormal(0, 2.0, num_ranks),
    ]
    return Topology(num_ranks, speed=kinds[number % 3]())


def report(title: str, families: dict[str, Tally]) -> bool:
    print(
        f"\n{title:34}{'layers':>7}{'vs HiGHS':>10}{'proven':>10}{'tokens over':>12}"
        f"{'bad quotas':>11}"
    )
    for name, t in families.items():
        tokens = f"{t.tokens_over:12.4f}" if t.whole else f"{'-':>12}"
        print(
            f"{name:34}{t.layers:7}{t.from_highs:10.1e}{t.from_bound:10.1e}{tokens}"
            f"{t.not_least + t.wrong_sums:11}"
        )
    layers = sum(t.layers for t in families.values())
    worst = max(t.from_highs for t in families.values())
    exact = all(t.exact for t in families.values())
    print(f"{layers} layers, largest relative gap {worst:.1e}: {'exact' if exact else 'NOT exact'}")
    return exact


def drawn(popularity: np.ndarray, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """A batch of ``tokens`` tokens, 8 experts each, from popularities ``(L, E)``."""
    shares = popularity / popularity.sum(axis=1, keepdims=True)
    return np.array([rng.multinomial(tokens * 8, row) for row in shares])


def in_time(held: np.ndarray, placement: Placement) -> bool:
    print(f"\n{'in time, above the bound':34}{'tokens':>8}{'even':>8}{'min-max':>9}{'in time':>9}")
    slower = 0
    for block in (1, 128):
        cost = replace(rank_cost("h100-deepep-ep32"), token_block=block)
        for tokens in (128, 1024, 8192, 131072):
            rng, peaks, bound = np.random.default_rng(0), np.zeros(3), 0.0
            for domain in held:
                load = drawn(domain, tokens, rng)
                split = MinMax(cost=cost).split(load, placement)
                least = MinMax().split(load, placement).quotas
                plain = cost.rank_seconds(least, placement.num_ranks).max(axis=1)
                even = Even(cost=cost).split(load, placement).peak
                slower += int((split.peak > plain * (1 + 1e-12)).sum())
                peaks += [even.sum(), plain.sum(), split.peak.sum()]
                bound += split.bound.sum()
            gaps = "".join(f"{peak / bound - 1:9.2%}" for peak in peaks)
            name = f"{placement.num_redundant} redundant, blocks of {block}"
            print(f"{name:34}{tokens:8}{gaps}")
    return not slower


def near_the_source(held: np.ndarray, placement: Placement, topology: Topology) -> bool:
    rng, stay, total, same_peak = np.random.default_rng(0), np.zeros((2, 2)), 0, True
    minmax, num_ranks = MinMax(topology=topology), placement.num_ranks
    rank, node = placement.rank_of_slot, topology.node_of_rank
    own = rank == np.arange(num_ranks)[:, None]
    same = node[rank] == node[:, None]
    for domain in held:
        load = drawn(domain, 8192, rng)
        sources = rng.dirichlet(np.ones(num_ranks), placement.num_experts)
        rows = [[rng.multinomial(n, p) for n, p in zip(row, sources, strict=True)] for row in load]
        by_source = np.array(rows).transpose(0, 2, 1)
        near = minmax.split(by_source, placement)
        blind = minmax.split(load, placement)
        unaware = replace(near, rounding=lambda _, quotas=blind.quotas: quotas)
        busiest = [
            s.quotas.reshape(-1, num_ranks, placement.slots_per_rank).sum(2).max(1)
            for s in (near, blind)
        ]
        same_peak &= np.array_equal(*busiest)
        total += load.sum()
        for i, split in enumerate((unaware, near)):
            stay[i] += [split.source_quotas[:, where].sum() for where in (own, same)]
    (a, b), (c, d) = stay / total
    print(
        f"{placement.num_redundant} redundant: on their rank {a:.1%} unaware, {c:.1%} near; "
        f"on their node {b:.1%} unaware, {d:.1%} near"
    )
    return same_peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=Path, default=WINDOWS)
    parser.add_argument("--random", type=int, default=2520, help="random layers")
    args = parser.parse_args()
    start = time.perf_counter()
    rng = np.random.default_rng(1)
    equal: dict[str, Tally] = {}
    different: dict[str, Tally] = {}
    for source in (real_instances(args.windows), random_instances(args.random, seed=0)):
        for number, (name, load, placement) in enumerate(source):
            equal.setdefault(name, Tally()).add(load, placement, Topology(placement.num_ranks))
            speeds = unequal(placement.num_ranks, number, rng)
            different.setdefault(name, Tally()).add(load, placement, speeds)
    print(f"{machine.about_machine()['cpu']}; {time.perf_counter() - start:.0f} s")
    exact = [report("equal ranks", equal), report("ranks of unequal speed", different)]
    with np.load(args.windows) as archive:
        counts = archive["counts"]
    fit, held, topology = counts[:, :7].sum(axis=(0, 1)), counts[:, 7], Topology(32, 8)
    for redundant in (32, 64):
        placement = Greedy().plan(Problem(fit, topology, 256 + redundant)).placement
        exact.append(in_time(held, placement))
        exact.append(near_the_source(held, placement, topology))
    sys.exit(not all(exact))


if __name__ == "__main__":
    main()
