"""Time of a full plan next to the public EPLB algorithm, in one process on one core.

The peer is the copy of DeepSeek's EPLB in the sglang wheel. Get it and run, from the repository
root, with torch installed:

    pip download --no-deps sglang==0.5.23
    python -m benchmarks.speed.greedy_vs_sglang --peer sglang-0.5.23-*.whl

Protocol: 58 layers of 256 experts with lognormal(0, 1) loads, 288 slots on 32 ranks, 4 nodes, 8
groups. Planners take turns after warm-up (ours are compiled by then); the median and the fastest of
all rounds are shown. "plan" is all that a caller waits for: copies, places, validation, bounds and
advice. "kernel" is copies and places alone, which is what the peer does. torch and numba get one
thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

os.environ["NUMBA_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks import sglang_peer
from equipoise.plan import Greedy, Hierarchical, Problem
from equipoise.plan.search import _packing_kernels as _kernels
from equipoise.topology import Topology

NUM_LAYERS, NUM_EXPERTS, NUM_SLOTS, NUM_RANKS, NUM_NODES, NUM_EXPERT_GROUPS = 58, 256, 288, 32, 4, 8


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sglang_peer.add_argument(parser)
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rebalance = sglang_peer.load(args.peer)
    load = 1000 * np.random.default_rng(0).lognormal(0, 1, (NUM_LAYERS, NUM_EXPERTS))
    weight = torch.from_numpy(load)
    problem = Problem(load, Topology(NUM_RANKS, NUM_RANKS // NUM_NODES), NUM_SLOTS)
    peer_shape = (NUM_SLOTS, NUM_EXPERT_GROUPS, NUM_NODES, NUM_RANKS)
    single = load.astype(np.float32)

    calls: dict[str, Callable[[], object]] = {
        "peer, global": lambda: rebalance(weight, *peer_shape, False),
        "peer, hierarchical": lambda: rebalance(weight, *peer_shape, True),
    }
    for copies in (False, True):
        for planner in (
            Greedy(allow_same_rank_copies=copies),
            Hierarchical(num_expert_groups=NUM_EXPERT_GROUPS, allow_same_rank_copies=copies),
        ):
            calls[f"plan, {planner}"] = lambda planner=planner: planner.plan(problem)
    calls["kernel, no copies on one rank"] = lambda: _kernels.distinct_slots(
        load, NUM_SLOTS, NUM_RANKS
    )
    calls["kernel, as EPLB"] = lambda: _kernels.eplb_slots(single, NUM_SLOTS, NUM_RANKS)

    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    base = np.median(times["peer, global"])
    print(f"{platform.processor() or platform.machine()}, {args.rounds} rounds, one core")
    print(f"{'':66}{'median ms':>10}{'fastest ms':>12}{'peer global / this':>20}")
    for name, values in times.items():
        median = np.median(values)
        print(f"{name:66}{median * 1e3:10.2f}{min(values) * 1e3:12.2f}{base / median:19.1f}x")


if __name__ == "__main__":
    main()
