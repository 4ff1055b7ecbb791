"""Time of one layer's split as experts, ranks and slots grow; two versions of the package by turns.

    python -m benchmarks.speed.growth --before OLD/src
    python -m benchmarks.speed.growth --rules "minmax by source" --shapes 512x256x2048

Protocol: lognormal loads, in "hot" layers 4 experts with 200 times as much; a `Greedy` placement
for them; batches whose loads moved since (lognormal factors). Sources are drawn uniformly, nodes
have 8 ranks, uneven speeds are between 0.5 and 2. Every number is a call as the live layer makes
it: one layer, checks and result included, quotas asked for. The same inputs for both versions, each
in a process of its own, one after the other. CPU time of the process, median of the calls, the
least of the rounds; the first call of a process, which loads or compiles, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np

ROOT = Path(__file__).parents[2]
SHAPES = "64x8x72 128x16x160 256x32x288 256x64x320 512x64x640 512x128x768 512x256x1024 512x256x2048"
STYLES = ("random", "hot")
ENOUGH_SECONDS, MOST_CALLS = 0.1, 50


def rules(num_ranks: int, speed: list[float]) -> dict[str, tuple[Callable, bool, bool]]:
    """By name a dispatcher, whether it gets sources, and whether quotas are asked for."""
    import equipoise as eq

    topology = eq.Topology(num_ranks, ranks_per_node=8)
    uneven = eq.Topology(num_ranks, ranks_per_node=8, speed=tuple(speed))
    cost = eq.rank_cost("h100-deepep-ep32")
    return {
        "minmax, shares": (eq.MinMax(), False, False),
        "minmax": (eq.MinMax(), False, True),
        "minmax, speeds": (eq.MinMax(topology=uneven), False, True),
        "in time": (eq.MinMax(cost=cost), False, True),
        "fewest": (eq.FewestExperts(), False, True),
        "auto": (eq.Auto(cost=cost), False, True),
        "even by source": (eq.Even(topology=topology), True, True),
        "nearest by source": (eq.Nearest(topology=topology), True, True),
        "minmax by source": (eq.MinMax(topology=topology), True, True),
    }


def inputs(shape: tuple[int, int, int], style: str) -> dict[str, np.ndarray]:
    import equipoise as eq

    E, R, S = shape
    rng = np.random.default_rng(0)
    planned = np.floor(rng.lognormal(0, 1, (1, E)) * 1000)
    if style == "hot":
        planned[0, :4] *= 200
    placement = eq.Greedy().plan(eq.Problem(planned, eq.Topology(R), S)).placement
    batch = np.floor(planned * rng.lognormal(0, 0.7, (1, E)))
    even = np.full(R, 1 / R)
    sources = np.stack([rng.multinomial(int(n), even) for n in batch[0]], axis=1)
    speed = rng.choice([0.5, 0.9, 1, 1, 1, 2], R)
    return {"slots": placement.slots, "batch": batch, "sources": sources[None], "speed": speed}


def measure(file: str, wanted: list[str]) -> dict[str, float]:
    """Microseconds of each rule on the inputs in a file, with the package this process imports."""
    import equipoise as eq

    with np.load(file) as given:
        slots, batch, sources, speed = (given[x] for x in ("slots", "batch", "sources", "speed"))
    _, R, E = sources.shape
    placement = eq.Placement(slots, num_ranks=R, num_experts=E)
    took = {}
    for name, (each, by_source, whole) in rules(R, speed.tolist()).items():
        if wanted and name not in wanted:
            continue
        load = sources if by_source else batch

        def call(each=each, load=load, by_source=by_source, whole=whole):
            split = each.split(load, placement)
            if whole:
                _ = split.source_quotas if by_source else split.quotas

        took[name] = microseconds(call)
    return took


def microseconds(call: Callable[[], None]) -> float:
    call()
    times: list[float] = []
    while len(times) < MOST_CALLS and (len(times) < 3 or sum(times) < ENOUGH_SECONDS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="folder that holds an older package")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shapes", default=SHAPES, help="EXPERTSxRANKSxSLOTS, with spaces between")
    parser.add_argument("--rules", default="", help="names, with semicolons between; default: all")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what the processes are started with
    args = parser.parse_args()
    wanted = [name.strip() for name in args.rules.split(";") if name.strip()]
    if args.measure:
        print(json.dumps(measure(args.measure, wanted)))
        return
    if args.before and not (args.before / "equipoise").is_dir():
        parser.error(f"{args.before} holds no package equipoise; give its src folder")
    versions = {"now": ROOT / "src"} | ({"before": args.before} if args.before else {})
    print("microseconds a layer")
    for shape in args.shapes.split():
        for style in STYLES:
            with tempfile.TemporaryDirectory() as folder:
                file = f"{folder}/inputs.npz"
                np.savez(file, **inputs(tuple(map(int, shape.split("x"))), style))
                least = by_turns(versions, file, args)
            for name in next(iter(least.values())):
                cells = (f"{version} {took[name]:10.0f}" for version, took in least.items())
                print(f"{shape:14}{style:8}{name:20}", *cells, flush=True)


def by_turns(
    versions: dict[str, Path], file: str, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """The least of each rule over the rounds, by version."""
    least: dict[str, dict[str, float]] = {}
    for _ in range(args.rounds):
        for version, source in versions.items():
            command = [sys.executable, "-m", "benchmarks.speed.growth", "--measure", file]
            path = f"{Path(source).resolve()}{os.pathsep}{ROOT}"
            run = subprocess.run(
                [*command, "--rules", args.rules],
                env=os.environ | {"PYTHONPATH": path},
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
            took = json.loads(run.stdout)
            known = least.setdefault(version, took)
            least[version] = {name: min(known[name], took[name]) for name in took}
    return least


if __name__ == "__main__":
    main()
