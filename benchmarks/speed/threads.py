"""Two plans in two threads, next to the same two one after the other.

    python -m benchmarks.speed.threads [--layers 8] [--rounds 3]

Made loads: lognormal, 7 traffic groups with 4 windows each, 128 experts on 16 ranks with 16
redundant slots. `Robust` with one thread a plan, so that all that runs at the same time is the two
plans. The ratio is of wall-clock seconds, the least of the rounds each way, which take turns: 0.5
is what two idle cores can give, 1 what plans give that hold Python's lock. The first plan, which
loads or compiles the kernels, does not count.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np

from equipoise.plan import Plan, Problem, Robust
from equipoise.topology import Topology

GROUPS, WINDOWS = 7, 4


def problem(num_layers: int) -> Problem:
    rng = np.random.default_rng(0)
    mean = rng.lognormal(0, 1, (GROUPS, 1, num_layers, 128))
    load = mean * rng.lognormal(0, 0.3, (GROUPS, WINDOWS, num_layers, 128))
    groups = np.arange(GROUPS).repeat(WINDOWS).astype(str)
    windows = load.reshape(-1, num_layers, 128)
    return Problem(windows, Topology(16), 144, traffic_groups=groups)


def seconds(plans: list[Callable[[], Plan]], num_threads: int) -> float:
    with ThreadPoolExecutor(num_threads) as pool:
        start = time.perf_counter()
        for plan in [pool.submit(plan) for plan in plans]:
            plan.result()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dispatch", default="even,minmax")
    args = parser.parse_args()
    windows = problem(args.layers)
    for dispatch in args.dispatch.split(","):
        planners = [Robust(dispatch=dispatch, seed=seed, num_threads=1) for seed in (0, 1)]
        planners[0].plan(problem(1))
        plans = [partial(planner.plan, windows) for planner in planners]
        rounds = [(seconds(plans, 1), seconds(plans, 2)) for _ in range(args.rounds)]
        after, together = np.min(rounds, axis=0)
        print(
            f"{dispatch:7} one after the other {after:5.2f} s, in two threads {together:5.2f} s, "
            f"ratio {together / after:4.2f} ({os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
