"""Whether a change of `Robust` changed its speed and its quality: two states of the code, in pairs.

    git worktree add ../before COMMIT
    python -m benchmarks.quality.robust_pairs --before ../before/src [--layers 1::3] [--seeds 0,1]

Both plan the same layers of GLM-5.2 with the same seeds, in turn, each in a process of its own with
one thread. Protocol "in-domain" of robust_glm52: planned on windows 0..6 of all domains, scored on
window 7 of each; 32 ranks, 32 redundant slots. Printed for each dispatcher and seed: the mean of
max/mean rank load over layers and domains, after minus before with the standard error over layers,
and the processor seconds of the plans. Kernels are compiled, or read from the cache, before that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.robust_glm52 import glm52
from equipoise.plan import Problem, evaluate
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology

RANKS, REDUNDANT = 32, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="src folder of the older state")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--layers", default="::", help="layers, as a slice or as numbers")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--dispatch", default="even,minmax")
    parser.add_argument("--held", type=int, default=7, help="score on this window")
    args = parser.parse_args()
    after = Path(__file__).parents[2] / "src"
    print("dispatch seed  before   after   change   error   CPU s   CPU s faster")
    with worker(args.before, args) as old, worker(after, args) as new:
        for dispatch in args.dispatch.split(","):
            for seed in args.seeds.split(","):
                show(dispatch, int(seed), *(ask(w, dispatch, int(seed)) for w in (old, new)))


def show(dispatch: str, seed: int, before: dict[str, Any], after: dict[str, Any]) -> None:
    change = np.subtract(after["peaks"], before["peaks"])
    error = change.std(ddof=1) / np.sqrt(change.size) if change.size > 1 else np.nan
    seconds = before["seconds"], after["seconds"]
    print(
        f"{dispatch:8} {seed:4} {np.mean(before['peaks']):7.4f} {np.mean(after['peaks']):7.4f} "
        f"{change.mean():+8.4f} {error:7.4f} {seconds[0]:7.1f} {seconds[1]:7.1f} "
        f"{seconds[0] / seconds[1]:6.2f}",
        flush=True,
    )


@contextmanager
def worker(source: Path, args: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """Start a process that plans with the package in a folder."""
    options = [str(args.data), args.layers, str(args.held)]
    with subprocess.Popen(
        [sys.executable, "-c", f"from {__spec__.name} import serve; serve()", *options],
        env=os.environ | {"PYTHONPATH": str(source.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: subprocess.Popen[str], dispatch: str, seed: int) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps([dispatch, seed]), file=process.stdin, flush=True)
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def serve() -> None:
    """Plan for every dispatcher and seed that comes in; answer with scores and seconds."""
    data, layers, held = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    counts, domains = glm52(data, held)
    counts = counts[:, :, chosen(layers)]
    fit = counts[:, :held].reshape(-1, *counts.shape[2:])
    problem = Problem(
        fit, Topology(RANKS), fit.shape[2] + REDUNDANT, traffic_groups=domains.repeat(held)
    )
    for line in sys.stdin:
        dispatch, seed = json.loads(line)
        planner = Robust(dispatch=dispatch, seed=seed, num_threads=1)
        Robust(dispatch=dispatch, proposals=1 << 10, num_threads=1).plan(compiling(problem))
        start = time.process_time()
        plan = planner.plan(problem)
        seconds = time.process_time() - start
        peaks = evaluate(plan.placement, counts[:, held], dispatch=dispatch).imbalance.mean(axis=0)
        print(json.dumps({"seconds": seconds, "peaks": peaks.tolist()}), flush=True)


def chosen(layers: str) -> Any:
    """Return an index from "1::3" or "1,4,9"."""
    if ":" in layers:
        return slice(*(int(part) if part else None for part in layers.split(":")))
    return [int(layer) for layer in layers.split(",")]


def compiling(problem: Problem) -> Problem:
    """Make a small problem, of a few experts, that runs all kernels that the problem runs."""
    load = problem.load[:, :1, :32]
    return Problem(load, Topology(RANKS), 64, traffic_groups=problem.traffic_groups)


if __name__ == "__main__":
    main()
