"""Dispatch on a GPU without the host: rounds and gaps anywhere, microseconds where a GPU is.

    python -m benchmarks.speed.gpu_dispatch

Protocol: GLM-5.2 routing counts, 256 experts on 32 ranks, 32 and 64 redundant slots, 75 layers.
Placements are `Greedy()` on the sum of windows 0 to 6 of all domains. Batches: for each of the 7
domains tokens with 8 different experts each, drawn by the popularities of its window 7 (the top 8
of log popularity plus Gumbel noise).

* "rounds" and "gap" are the solver's own status over all layers and domains, for limits on its
  rounds; the gap is the peak over the proven bound, minus 1. They are the same on every device:
  torch computes them where there is no GPU.
* "random placements": those that the tests of the host's solver draw, 4 to 128 ranks with 0 to 128
  redundant slots, whole loads; rounds and proofs as above.
* "graph": `GpuMinMax.dispatch` of all layers, counting, solving and assigning, in one captured CUDA
  graph; device time of a replay between two events, divided by the layers. Each domain's tokens are
  copied into the graph's input beforehand. Median and 99th percentile over replays and domains.
* "layer": the same with a graph for each layer, over replays, domains and layers: what one layer
  takes at worst. It includes the start of a graph.
* "torch": the functions that stand in for the kernels, on the same GPU. They look at their progress
  on the host, so no graph can hold them; wall time over a call for all layers.

Exit status: 0 if the times were taken, 1 if there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import machine
from equipoise.dispatch.gpu import MAX_ROUNDS, GpuMinMax, GpuPlacement
from equipoise.dispatch.tokens import expert_counts
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.dispatch.instances import random_instances

WINDOWS = Path(__file__).parents[3] / "shared" / "data" / "glm52" / "windows.npz"
NUM_RANKS, TOP_K = 32, 8
LIMITS = (4, 8, 16, 32, MAX_ROUNDS)


def draw_tokens(popularity_LE: np.ndarray, num_tokens: int, seed: int) -> np.ndarray:
    """Expert ids ``(L, D, K)``, those of a token different."""
    rng = np.random.default_rng(seed)
    ids = np.empty((len(popularity_LE), num_tokens, TOP_K), np.int64)
    with np.errstate(divide="ignore"):
        score = np.log(popularity_LE)
    for layer, row in enumerate(score):
        noisy = row + rng.gumbel(size=(num_tokens, len(row)))
        ids[layer] = np.argpartition(-noisy, TOP_K, axis=1)[:, :TOP_K]
    return ids


def rounds_and_gaps(batches: np.ndarray, placement: GpuPlacement) -> None:
    """``batches`` (domains, L, D, K)."""
    E = placement.host.num_experts
    counts = np.stack([expert_counts(ids.swapaxes(0, 1), E) for ids in batches])
    rows = torch.tensor(counts.astype(np.int32), device=placement.device)
    print(f"{'limit':>9}{'rounds: median':>16}{'p99':>6}{'max':>6}{'mean gap':>12}{'max gap':>10}")
    for limit in LIMITS:
        solver = GpuMinMax(placement=placement, max_rounds=limit)
        status = torch.stack(
            [
                solver.quotas(load, layer).status
                for domain in rows
                for layer, load in enumerate(domain)
            ]
        ).cpu()
        bound, peak, rounds = status.numpy().T
        gap = peak / bound - 1
        print(
            f"{limit:9}{np.median(rounds):16.0f}{np.quantile(rounds, 0.99):6.0f}{rounds.max():6}"
            f"{gap.mean():12.2%}{gap.max():10.2%}",
            flush=True,
        )


def random_placements(number: int, seeds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    status = []
    for seed in range(seeds):
        for name, load, placement in random_instances(number, seed):
            if name.endswith(("lognormal", "huge counts")):  # not whole, more than 32 bits
                continue
            counts = torch.tensor(load[0].astype(np.int32), device=device)
            solver = GpuMinMax(placement=GpuPlacement(placement, device))
            status.append(solver.quotas(counts, 0).status)
    bound, peak, rounds = torch.stack(status).cpu().numpy().T
    print(
        f"\n{len(status)} random placements: {(bound == peak).sum()} proven optimal, "
        f"at most {rounds.max()} rounds"
    )


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    work()  # compiles, which no capture can
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_seconds(graph: torch.cuda.CUDAGraph, replays: int) -> list[float]:
    """Device time of each replay."""
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def wall_seconds(work: Callable[[], object], replays: int) -> list[float]:
    times = []
    for _ in range(replays):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def report(name: str, seconds_a_layer: list[float]) -> None:
    us = np.array(seconds_a_layer) * 1e6
    print(f"{name:9}{np.median(us):10.1f}{np.quantile(us, 0.99):10.1f}", flush=True)


def times_on_gpu(batches: np.ndarray, placement: GpuPlacement, replays: int) -> None:
    """``batches`` (domains, L, D, K)."""
    num_layers = placement.host.num_layers
    kernels = GpuMinMax(placement=placement)
    plain = GpuMinMax(placement=placement, backend="torch")
    ids = torch.tensor(batches[0], device=placement.device)
    each = [captured(lambda: kernels.dispatch(ids[i], i)) for i in range(num_layers)]  # noqa: B023
    every = captured(lambda: [kernels.dispatch(ids[i], i) for i in range(num_layers)])
    graph_times, layer_times, torch_times = [], [], []
    for domain in batches:
        ids.copy_(torch.tensor(domain))
        replay_seconds(every, 3)  # warm
        graph_times += [t / num_layers for t in replay_seconds(every, replays)]
        for graph in each:
            layer_times += replay_seconds(graph, replays)
        work = lambda: [plain.dispatch(ids[i], i) for i in range(num_layers)]  # noqa: E731
        torch_times += [t / num_layers for t in wall_seconds(work, 2)]
    print(f"{'a layer, us':9}{'median':>8}{'p99':>10}")
    report("graph", graph_times)
    report("layer", layer_times)
    report("torch", torch_times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=Path, default=WINDOWS)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--replays", type=int, default=50)
    args = parser.parse_args()
    with np.load(args.windows) as archive:
        counts = archive["counts"]
    fit, held = counts[:, :7].sum(axis=(0, 1)), counts[:, 7]
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "no GPU"
    print(f"{machine.about_machine()['cpu']}; {device}; torch {torch.__version__}")
    batches = np.stack([draw_tokens(row, args.tokens, i) for i, row in enumerate(held)])
    for redundant in (32, 64):
        problem = Problem(fit, Topology(NUM_RANKS, 8), 256 + redundant)
        placement: Placement = Greedy().plan(problem).placement
        print(f"\n256 experts, {NUM_RANKS} ranks, {redundant} redundant, {args.tokens} tokens")
        on_device = GpuPlacement(placement, "cuda" if on_gpu else "cpu")
        rounds_and_gaps(batches, on_device)
        if on_gpu:
            times_on_gpu(batches, on_device, args.replays)
    random_placements(504, seeds=4)
    if not on_gpu:
        print("\nNo GPU is at hand: times were not measured. Run this where CUDA and Triton are.")
    return 0 if on_gpu else 1


if __name__ == "__main__":
    sys.exit(main())
