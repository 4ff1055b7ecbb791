"""Min-max dispatch against HiGHS on thousands of layers; exit status 1 if it is ever not exact.

    python -m benchmarks.quality.minmax_exactness

Real: GLM-5.2 routing counts, window 7 of 7 domains x 75 layers on `Greedy()` placements planned on
the other windows, 4 to 128 ranks, 0 to 128 redundant slots. Random: the families of
`tests/dispatch/instances.py`, among them one hot expert, mostly idle experts, disconnected graphs,
rings, copies on one rank, huge counts and fractional loads.

For every layer: the peak against the optimum that HiGHS finds (tolerances 1e-10); the peak against
the bound that the answer proves by itself; the busiest rank under whole quotas against the
fractional optimum; quotas summed per expert against the load. Whole quotas must be within one
token, and are also held to the least whole peak, the optimum rounded up.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality import machine
from equipoise.dispatch import MinMax
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances
from tests.reference.dispatch import highs_peak

WINDOWS = Path(__file__).parents[3] / "shared" / "data" / "glm52" / "windows.npz"
SIZES = [(4, 16), (8, 32), (16, 16), (32, 0), (32, 32), (32, 64), (64, 64), (128, 128)]
LARGEST_GAP = 1e-9


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

    def add(self, load: np.ndarray, placement: Placement) -> None:
        split = MinMax().split(load, placement)
        unit = load.sum() / placement.num_ranks
        highs = unit * highs_peak(load[0], placement.slots[0], placement.num_ranks)
        self.layers += 1
        self.from_highs = max(self.from_highs, abs(split.peak[0] / highs - 1))
        self.from_bound = max(self.from_bound, split.gap)
        if np.array_equal(load, np.floor(load)):
            self.whole += 1
            self._add_quotas(split.quotas, split.bound[0], load, placement)

    def _add_quotas(
        self, quotas: np.ndarray, bound: float, load: np.ndarray, placement: Placement
    ) -> None:
        busiest = quotas.reshape(placement.num_ranks, -1).sum(axis=1).max()
        self.tokens_over = max(self.tokens_over, float(busiest - bound))
        self.not_least += int(busiest != np.ceil(bound))
        served = np.bincount(placement.slots[0], quotas[0], placement.num_experts)
        self.wrong_sums += int(not np.array_equal(served, load[0]))

    @property
    def exact(self) -> bool:
        return (
            max(self.from_highs, self.from_bound) <= LARGEST_GAP
            and self.tokens_over < 1
            and not self.not_least
            and not self.wrong_sums
        )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=Path, default=WINDOWS)
    parser.add_argument("--random", type=int, default=2520, help="random layers")
    args = parser.parse_args()
    start = time.perf_counter()
    families: dict[str, Tally] = {}
    for source in (real_instances(args.windows), random_instances(args.random, seed=0)):
        for name, load, placement in source:
            families.setdefault(name, Tally()).add(load, placement)
    print(f"{machine.about_machine()['cpu']}; {time.perf_counter() - start:.0f} s")
    print(
        f"{'':34}{'layers':>7}{'vs HiGHS':>10}{'proven':>10}{'tokens over':>12}{'bad quotas':>11}"
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
    sys.exit(not exact)


if __name__ == "__main__":
    main()
