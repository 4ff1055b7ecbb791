"""What others published, and what comes out here: the shape of their results, on data we have.

    python -m benchmarks.quality.field [--data ../shared/data] [--layers N] [--json FILE]

trtllm   NVIDIA's example for TensorRT-LLM (DeepSeek-R1, iterations of decode, local batch 128):
         imbalance ratio before and after, with 32 ranks and 288 slots or 36 ranks and 288. Here:
         GLM-5.2, batches of that size from unseen windows, planned by TensorRT-LLM's rule.
llep     LLEP, 8 GPUs: speedup where 30 to 95 % of all tokens want one expert. Here: loads of those
         shapes, the time of the slowest rank with and without its split of every batch; its moves
         of weights are not in it, as the paper's are.
metro    METRO: decode steps 11 to 22 % shorter than with EPLB, since fewer experts are active on
         the busiest rank. Here: recorded decode of gpt-oss-20b and batches of GLM-5.2.
atom     ROCm ATOM, prefill, EP 8: +16.7 % throughput without redundancy, +24.4 % with 64 slots.
         Here: GLM-5.2 on 8 ranks, the experts' computation only.
noise    the imbalance of a fair router, by formula and by drawing.
drift    a plan for one window or domain, tested on the same, the next and another.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.eplb_lplb import imbalance_of
from benchmarks.quality.robust_glm52 import glm52
from equipoise.cost import rank_cost
from equipoise.dispatch import Dispatcher, Even
from equipoise.dispatch.fewest import FewestExperts
from equipoise.dispatch.llep import Llep
from equipoise.noise import noise_floor, simulate_noise_floor
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Planner, Problem, TrtllmGreedy
from equipoise.topology import Topology

Row = dict[str, Any]
Counts = NDArray[np.int64]
Loads = NDArray[np.float64]

DATA = Path("../shared/data")
BATCHES = 8
EXPERTS, TOP_K = 256, 8  # of GLM-5.2, as of DeepSeek-R1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--layers", type=int, default=3, help="take every n-th layer of glm52")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    counts, _ = glm52(args.data)
    counts = counts[:, :, :: args.layers]
    found: dict[str, list[Row]] = {}
    for name, rows in (
        ("trtllm", trtllm(counts)),
        ("llep", llep()),
        ("metro", metro(counts, args.data)),
        ("atom", atom(counts)),
        ("noise", noise()),
        ("drift", drift(counts)),
    ):
        print(f"\n{name}", flush=True)
        found[name] = list(rows)
        for row in found[name]:
            print("  " + "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                                   for k, v in row.items()), flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def trtllm(counts: Counts) -> Iterator[Row]:
    """Imbalance ratio, max/mean - 1, of 1,024 assignments a rank and layer (EP 32)."""
    tokens = 128 * 32
    for name, ranks, slots, planner in (
        ("none, EP 32", 32, 256, Contiguous()),
        ("EPLB, EP 32, 9 slots a rank", 32, 288, TrtllmGreedy()),
        ("EPLB, EP 36, 8 slots a rank", 36, 288, TrtllmGreedy()),
    ):
        unseen, same = [], []
        for domain in counts:
            plan = _plan(planner, domain[:7], ranks, slots)
            unseen.append(imbalance_of(_drawn(domain[7], tokens), plan, Even()))
            same.append(imbalance_of(_drawn(domain[:7].sum(axis=0), tokens), plan, Even()))
        floor = noise_floor(tokens, EXPERTS, TOP_K, ranks).mean
        yield {
            "setup": name,
            "unseen window of the domain": float(np.mean(unseen) - 1),
            "loads that were planned for": float(np.mean(same) - 1),
            "of that by chance": floor - 1,
        }


def llep() -> Iterator[Row]:
    """Time of the slowest of 8 ranks, 128 experts top-4, 32,768 tokens a rank."""
    cost, ranks, experts = rank_cost("h100-deepep-ep8"), 8, 128
    assignments = 32768 * ranks * 4
    for share in (1 / experts, 0.3, 0.5, 0.8, 0.95):
        popularity = np.full(experts, (1 - share) / (experts - 1))
        popularity[0] = share
        load = np.round(popularity * assignments)
        flow = Llep().spill(load, ranks)
        home = np.zeros_like(flow)
        home[np.arange(experts) * ranks // experts, np.arange(experts)] = load
        before, after = (
            cost.fixed_seconds + cost.slot_seconds(x).sum(axis=1) for x in (home, flow)
        )
        fetched = int(((flow > 0) & (home == 0)).sum(axis=1).max())
        yield {
            "share of one expert": share,
            "speedup": float(before.max() / after.max()),
            "experts that the busiest rank fetches": fetched,
        }


def metro(counts: Counts, data: Path) -> Iterator[Row]:
    """Time of a decode step's experts with the fewest active experts, over that with EPLB."""
    with np.load(data / "gptoss_decode_sample" / "step_counts.npz") as archive:
        steps = archive["counts"][:256, ::4].astype(np.int64)
    plan = _plan(Greedy(), steps[:180], 8, 40)
    yield _metro("gpt-oss-20b, recorded decode, 8 ranks", 60, steps[180::8].astype(float), plan)
    for redundant in (32, 64):
        plan = _plan(Greedy(), counts[:, :7].reshape(-1, *counts.shape[2:]), 32, 256 + redundant)
        for tokens in (128, 256, 512, 1024):
            load = _mixed(counts, tokens)
            yield _metro(f"GLM-5.2, 32 ranks, {redundant} redundant", tokens, load, plan)


def _metro(name: str, tokens: int, load: Loads, plan: Placement) -> Row:
    cost = rank_cost(f"h100-deepep-ep{plan.num_ranks}")
    even, fewest = (_seconds(load, plan, d, cost) for d in (Even(), FewestExperts()))
    return {"recording": name, "tokens a step": tokens, "change": fewest / even - 1}


def atom(counts: Counts) -> Iterator[Row]:
    """Throughput of the experts of prefill on 8 ranks, against no balancing."""
    cost, tokens = rank_cost("h100-deepep-ep8"), 65536
    for redundant in (0, 64):
        gains = []
        for domain in counts:
            load = _drawn(domain[7], tokens)
            plain = _plan(Contiguous(), domain[:7], 8, 256)
            plan = _plan(Greedy(), domain[:7], 8, 256 + redundant)
            before, after = (_seconds(load, p, Even(), cost) for p in (plain, plan))
            gains.append(before / after - 1)
        yield {"redundant": redundant, "more throughput": float(np.mean(gains))}


def noise() -> Iterator[Row]:
    """The imbalance of a fair router of 256 experts, top-8."""
    for tokens in (64, 256, 1024, 4096):
        for ranks in (8, 32, 128):
            formula = noise_floor(tokens, EXPERTS, TOP_K, ranks)
            drawn = simulate_noise_floor(tokens, EXPERTS, TOP_K, ranks, num_draws=200)
            yield {"tokens": tokens, "ranks": ranks, "formula": formula.mean, "drawn": drawn.mean,
                   "std": drawn.std}  # fmt: skip


def drift(counts: Counts) -> Iterator[Row]:
    """Imbalance of whole windows on 32 ranks: heaviest first, with and without copies."""
    others = np.roll(np.arange(len(counts)), 1)
    for redundant in (0, 32, 64):
        rows: dict[str, list[float]] = {}
        for number, domain in enumerate(counts):
            tests = domain[7][None].astype(float)
            plans = {
                "in order": _plan(Contiguous(), domain[7:], 32, 256),
                "planned on itself": _plan(Greedy(), domain[7:], 32, 256 + redundant),
                "on the window before": _plan(Greedy(), domain[6:7], 32, 256 + redundant),
                "on another domain": _plan(Greedy(), counts[others[number]], 32, 256 + redundant),
            }
            for name, plan in plans.items():
                rows.setdefault(name, []).append(imbalance_of(tests, plan, Even()))
        yield {"redundant": redundant, **{name: float(np.mean(x)) for name, x in rows.items()}}


def _plan(planner: Planner, windows: Counts, ranks: int, slots: int) -> Placement:
    return planner.plan(Problem(windows, Topology(ranks), slots)).placement


def _drawn(window: Counts, tokens: int) -> Loads:
    """Batches of a window's loads, ``(B, L, E)``."""
    share = window / window.sum(axis=-1, keepdims=True)
    rng = np.random.default_rng(tokens)
    return rng.multinomial(tokens * TOP_K, share, size=(BATCHES, len(share))).astype(float)


def _mixed(counts: Counts, tokens: int) -> Loads:
    """Batches of all domains' last windows."""
    share = counts[:, 7] / counts[:, 7].sum(axis=-1, keepdims=True)
    mean = share.mean(axis=0)
    rng = np.random.default_rng(tokens)
    return rng.multinomial(tokens * TOP_K, mean, size=(BATCHES, len(mean))).astype(float)


def _seconds(load: Loads, plan: Placement, dispatch: Dispatcher, cost: Any) -> float:
    slots = np.stack([dispatch.split(batch, plan).quotas for batch in load])
    return float(cost.rank_seconds(slots, plan.num_ranks).max(axis=-1).mean())


if __name__ == "__main__":
    main()
