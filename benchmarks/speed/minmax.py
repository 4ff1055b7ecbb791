"""Time and gap of min-max dispatch, of HiGHS and of LPLB's affine-scaling solver, on one core.

    python -m benchmarks.speed.minmax

Protocol: GLM-5.2 routing counts, 256 experts on 32 ranks, 32 and 64 redundant slots. Placements are
`Greedy()` on the sum of windows 0 to 6 of all domains; batches are window 7 of each of the 7
domains, 75 layers each, 525 in all.

* "a layer" times the compiled solver on one layer, everything included that a call needs: building
  the graph from the slots, workspace, shares and certificate. Percentiles are over all batches and
  rounds as they came; in brackets over batches, each at its median over the rounds, which leaves
  out what else the machine did.
* "58 layers" times the public calls on the first 58 layers of a window: checks, all layers, result.
* "steps together" is `peaks` of 8 windows of one domain in one call, where a step starts from the
  one before, over `peaks` of each window on its own: a ratio of medians.
* HiGHS solves the linear program through `scipy.optimize.linprog`, model building included.
* "affine, LPLB" and "affine, SGLang" are the published per-batch solvers written again in numpy and
  LAPACK: variables per copy, a slack per rank, the peak and an auxiliary column of cost 1000; five
  steps of affine scaling from all ones in float32; even shares unless the checks accept the result
  (aux below 1e-4, residual below 0.05, largest relative step below 0.1). LPLB divides loads by the
  largest, SGLang by their sum. LPLB's own limits to fixed topologies are not imitated; nor are the
  GPU kernels, so their time here is that of the arithmetic on a CPU.

The gap is the peak over the proven least peak, minus 1.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np
from scipy.linalg.lapack import sposv

from benchmarks.quality import machine
from equipoise.dispatch import Even, MinMax, _kernels
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.reference.dispatch import highs_peak, hosts_of

WINDOWS = Path(__file__).parents[3] / "shared" / "data" / "glm52" / "windows.npz"
NUM_RANKS, NUM_LAYERS = 32, 58
STEPS, COST_OF_AUX = 5, 1000.0
PEER_ROUNDS = 3


class AffineScaling:
    """The linear program of one layer's placement; ``solve`` runs the published iteration on it."""

    def __init__(self, slots: np.ndarray, num_ranks: int) -> None:
        hosts = hosts_of(slots, num_ranks)
        self.num_ranks = num_ranks
        self.shared = sorted(e for e, ranks in hosts.items() if len(ranks) > 1)
        self.single = np.array(sorted(e for e, ranks in hosts.items() if len(ranks) == 1))
        self.home = np.array([min(hosts[e]) for e in self.single])
        edges = [(i, r) for i, e in enumerate(self.shared) for r in sorted(hosts[e])]
        self.expert, self.rank = np.array(edges).T
        n, m, copy = len(edges), len(self.shared), np.arange(len(edges))
        self.matrix = np.zeros((m + num_ranks, n + num_ranks + 2), np.float32)
        self.matrix[self.expert, copy] = 1
        self.matrix[m + self.rank, copy] = 1
        self.matrix[m + np.arange(num_ranks), n + np.arange(num_ranks)] = 1
        self.matrix[m:, -2] = -1

    def solve(self, load: np.ndarray, scale: float) -> tuple[float, bool]:
        """The peak under the shares found, and whether the solver's checks accepted them."""
        fixed = np.bincount(self.home, load[self.single], self.num_ranks)
        wanted = np.concatenate([load[self.shared], -fixed]).astype(np.float32) / np.float32(scale)
        A, n = self.matrix, len(self.expert)
        A[:, -1] = 0
        A[:, -1] = wanted - A.sum(axis=1)
        x, accepted = self._iterate(A, wanted)
        part = np.maximum(x[:n], 0).astype(float) if accepted else np.ones(n)
        total = np.bincount(self.expert, part)
        part = np.divide(part, total[self.expert], out=np.zeros(n), where=total[self.expert] > 0)
        moved = part * load[self.shared][self.expert]
        return float((fixed + np.bincount(self.rank, moved, self.num_ranks)).max()), accepted

    @staticmethod
    def _iterate(A: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, bool]:
        cost = np.zeros(A.shape[1], np.float32)
        cost[-2:] = 1, COST_OF_AUX
        x = np.ones(A.shape[1], np.float32)
        largest = np.inf
        for _ in range(STEPS):
            scaled = A * (x * x)
            _, y, info = sposv(scaled @ A.T, scaled @ cost)
            if info:
                return x, False
            step = x * (cost - A.T @ y)
            largest = step.max()
            if not largest > 0:
                break
            x *= 1 - np.float32(0.999) * step / largest
        residual = np.abs(A @ x - b).max()
        return x, bool(largest < 0.1 and 0 <= x[-1] < 1e-4 and residual < 0.05)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def microseconds(times: np.ndarray) -> str:
    """``times`` (rounds, batches): median and 99th percentile of all; in brackets of medians."""
    t = times * 1e6
    alone = np.median(t, axis=0)
    return (
        f"{np.median(t):9.1f} [{np.median(alone):7.1f}]"
        f"{np.quantile(t, 0.99):9.1f} [{np.quantile(alone, 0.99):7.1f}]"
    )


def solvers_by_layer(held: np.ndarray, placement: Placement, rounds: int) -> None:
    batches = [(layer, load) for domain in held for layer, load in enumerate(domain)]
    slots = [placement.slots[[layer]] for layer in range(placement.num_layers)]
    programs = [AffineScaling(row[0], NUM_RANKS) for row in slots]
    least = np.concatenate([MinMax().split(domain, placement).bound for domain in held])
    even = np.concatenate([Even().split(domain, placement).peak for domain in held])
    mean = held.sum(axis=2).ravel() / NUM_RANKS
    print(f"{'a layer, us':18}{'median':>9} {'':9}{'p99':>9} {'':9}{'mean gap':>12}{'max gap':>12}")

    def report(name: str, solve: Callable[[int, np.ndarray], float], rounds: int) -> None:
        peak = np.empty(len(batches))
        times = np.empty((rounds, len(batches)))
        for lap in range(rounds):
            for i, (layer, load) in enumerate(batches):
                start = time.perf_counter()
                peak[i] = solve(layer, load)
                times[lap, i] = time.perf_counter() - start
        gap = peak / least - 1
        print(f"{name:18}{microseconds(times)}{gap.mean():12.2e}{gap.max():12.2e}")

    equal = np.ones(NUM_RANKS)

    def ours(layer: int, load: np.ndarray) -> float:
        shares, _ = _kernels.minmax(load[None], slots[layer], equal)
        return float(shares.reshape(NUM_RANKS, -1).sum(axis=1).max())

    def highs(layer: int, load: np.ndarray) -> float:
        return highs_peak(load, slots[layer][0], NUM_RANKS) * load.sum() / NUM_RANKS

    accepted = {"LPLB": 0, "SGLang": 0}

    def affine(name: str, scale: Callable[[np.ndarray], float]) -> Callable[..., float]:
        def solve(layer: int, load: np.ndarray) -> float:
            peak, good = programs[layer].solve(load, scale(load))
            accepted[name] += good
            return peak

        return solve

    ours(*batches[0])
    report("MinMax", ours, rounds)
    report("affine, LPLB", affine("LPLB", np.max), PEER_ROUNDS)
    report("affine, SGLang", affine("SGLang", np.sum), PEER_ROUNDS)
    report("HiGHS", highs, PEER_ROUNDS)
    print(
        f"peak over mean: even {np.mean(even / mean):.4f}, min-max {np.mean(least / mean):.4f}; "
        + ", ".join(
            f"{name} accepted {n // PEER_ROUNDS} of {len(batches)}" for name, n in accepted.items()
        )
    )


def public_calls(held: np.ndarray, placement: Placement, rounds: int) -> None:
    first = Placement(
        placement.slots[:NUM_LAYERS], num_ranks=NUM_RANKS, num_experts=placement.num_experts
    )
    windows = np.ascontiguousarray(held[:, :NUM_LAYERS])
    minmax = MinMax()
    calls: dict[str, Callable[[np.ndarray], object]] = {
        "split": lambda load: minmax.split(load, first),
        "split and quotas": lambda load: minmax.split(load, first).quotas,
        "peaks": lambda load: minmax.peaks(load[None], first),
    }
    print(f"{NUM_LAYERS} layers, ms{'':8}{'median':>9}{'p99':>9}")
    for name, call in calls.items():
        call(windows[0])
        times = [seconds(lambda: call(load)) for _ in range(rounds) for load in windows]  # noqa: B023
        print(f"{name:18}{np.median(times) * 1e3:9.3f}{np.quantile(times, 0.99) * 1e3:9.3f}")


def steps_together(windows: np.ndarray, placement: Placement, rounds: int) -> None:
    """``windows`` (T, L, E) of one domain."""
    peaks = MinMax().peaks
    peaks(windows, placement)
    together = [seconds(lambda: peaks(windows, placement)) for _ in range(rounds)]
    alone = [
        sum(seconds(lambda: peaks(load[None], placement)) for load in windows)  # noqa: B023
        for _ in range(rounds)
    ]
    print(f"peaks, steps together: {np.median(together) / np.median(alone):.2f} of one by one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=Path, default=WINDOWS)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with np.load(args.windows) as archive:
        counts = archive["counts"]
    fit, held = counts[:, :7].sum(axis=(0, 1)), counts[:, 7].astype(float)
    print(f"{machine.about_machine()['cpu']}; {args.rounds} rounds, one core")
    for redundant in (32, 64):
        problem = Problem(fit, Topology(NUM_RANKS, 8), 256 + redundant)
        placement = Greedy().plan(problem).placement
        print(f"\n256 experts, {NUM_RANKS} ranks, {redundant} redundant")
        solvers_by_layer(held, placement, args.rounds)
        public_calls(held, placement, args.rounds)
        steps_together(counts[0].astype(float), placement, args.rounds)


if __name__ == "__main__":
    main()
