"""EPLB against LPLB: what a split of every batch adds to copies, and what it costs.

    python -m benchmarks.quality.eplb_lplb [--data ../shared/data] [--layers N] [--json FILE]

GLM-5.2, 256 experts: planned on windows 0..6 of all 7 domains, batches drawn from window 7 with
Dirichlet(1) weights of the domains. One redundant slot for each edge of a graph, and one a rank
where EPLB is by itself. Times are of the slowest rank by the published constants
``h100-deepep-ep<ranks>``: an expert of DeepSeek-V3 on H100, "as if".

pays         a layer's microseconds without a split of every batch (even, EPLB) less those with it,
             on the same copies; and the solver's own
tiles        the same batches split by tokens and by time, in kernels that pad to 128 rows
skew         one expert with a share of all assignments: imbalance of what EPLB copies freely, and
             of LPLB's graph, where an expert has two copies at most
drift        planned on one domain, served on the next: copies as they are, with a split of every
             batch, and planned again; and the bytes that planning again moves
varies       what of the imbalance lasts and what changes from step to step, 8,192 tokens; what
             copies leave of it on the last window, and a split of every batch on these copies
nodes        graphs on nodes that do not fit them: edges across nodes, what they carry, and what the
             busiest rank's link takes for it
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.robust_glm52 import glm52
from equipoise.balance import imbalance
from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Dispatcher, Even, MinMax
from equipoise.migration import diff
from equipoise.noise import noise_floor
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Problem
from equipoise.plan.planners.lplb import FixedGraph, crossing, owners
from equipoise.topology import Topology

Row = dict[str, Any]
Loads = NDArray[np.float64]

DATA = Path("../shared/data")
BATCHES = 8
TOKENS = (512, 2048, 8192, 32768, 131072)
LPLB_SOLVER_SECONDS = 100e-6
"""Of one layer on its GPU, as its authors publish it."""
EXPERT_BYTES = 44_040_192  # of DeepSeek-V3 in FP8, and a token of it there (FP8) and back (BF16)
TOKEN_BYTES = 7_392 + 14_336


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--layers", type=int, default=3, help="take every n-th layer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    counts, _ = glm52(args.data)
    counts = counts[:, :, :: args.layers]
    parts = {
        "pays": list(pays(counts)),
        "tiles": list(tiles(counts)),
        "skew": list(skew()),
        "drift": list(drift(counts)),
        "nodes": list(nodes(counts)),
        "varies": list(varies(counts)),
    }
    for name, rows in parts.items():
        print(f"\n{name}")
        for row in rows:
            print("  " + "  ".join(f"{key} {_text(value)}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(parts, indent=1) + "\n")


def pays(counts: NDArray[np.int64]) -> Iterator[Row]:
    for ranks in (8, 16, 32, 64):
        cost, topology = rank_cost(f"h100-deepep-ep{ranks}"), Topology(ranks)
        copies = _eplb(counts, topology, ranks)
        MinMax().split(batches(counts, 512)[0], copies)  # compiles
        for tokens in TOKENS:
            load = batches(counts, tokens)
            even, split = (_seconds(load, copies, d, cost) for d in (Even(), MinMax()))
            took = []
            for batch in load:
                began = time.perf_counter()
                MinMax().split(batch, copies)
                took.append((time.perf_counter() - began) / len(batch))
            solver = float(np.median(took))
            yield {
                "ranks": ranks,
                "tokens": tokens,
                "EPLB us": 1e6 * even,
                "LP us": 1e6 * split,
                "saved us": 1e6 * (even - split),
                "pays LPLB's solver": even - split > LPLB_SOLVER_SECONDS,
                "our solver us, one CPU core": 1e6 * solver,
            }


def tiles(counts: NDArray[np.int64]) -> Iterator[Row]:
    ranks = 32
    plain = rank_cost(f"h100-deepep-ep{ranks}")
    cost = RankCost(
        fixed_seconds=plain.fixed_seconds, expert_seconds=plain.expert_seconds,
        token_seconds=plain.token_seconds, token_block=128,
    )  # fmt: skip
    copies = _eplb(counts, Topology(ranks), ranks)
    for tokens in TOKENS:
        load = batches(counts, tokens)
        splits = {"even": Even(), "by tokens": MinMax(), "by time": MinMax(cost=cost)}
        times = {name: _seconds(load, copies, d, cost) for name, d in splits.items()}
        peak = {name: imbalance_of(load, copies, d) for name, d in splits.items()}
        yield {
            "tokens": tokens,
            **{f"{name} us": 1e6 * x for name, x in times.items()},
            **{f"{name} imbalance": x for name, x in peak.items()},
        }


def skew() -> Iterator[Row]:
    topology = Topology(32, 8)
    for share in (0.02, 0.05, 0.1, 0.2, 0.5, 0.95):
        popularity = np.full(256, (1 - share) / 255)
        popularity[0] = share
        load = np.round(popularity * 2**20)[None, None]
        row: Row = {"share of one expert": share}
        for name, planner in (
            ("EPLB", Greedy()),
            ("LPLB torus", FixedGraph(graph="torus")),
        ):
            plan = planner.plan(Problem(load, topology, 256 + 64))
            dispatch = Even() if name == "EPLB" else MinMax()
            row[f"{name} imbalance"] = imbalance_of(load, plan.placement, dispatch)
            row[f"{name} copies"] = int(plan.placement.copies[0, 0])
        copies = Greedy().plan(Problem(load, topology, 256 + 64)).placement
        row["EPLB copies, split by LP"] = imbalance_of(load, copies, MinMax())
        yield row


def drift(counts: NDArray[np.int64]) -> Iterator[Row]:
    topology = Topology(32, 8)
    plans = {
        name: [planner.plan(Problem(domain[:7], topology, 256 + 64)).placement for domain in counts]
        for name, planner in (("EPLB", Greedy()), ("LPLB", FixedGraph(graph="torus")))
    }
    tests = counts[:, 7][:, None].astype(np.float64)
    after = [(i, (i + 1) % len(counts)) for i in range(len(counts))]
    for name, dispatch in (("EPLB", Even()), ("LPLB", MinMax())):
        stale = [imbalance_of(tests[new], plans[name][old], dispatch) for old, new in after]
        fresh = [imbalance_of(tests[new], plans[name][new], dispatch) for _, new in after]
        moves = [diff(plans[name][old], plans[name][new], topology) for old, new in after]
        moved = [m.bytes(EXPERT_BYTES) / counts.shape[2] / 32 for m in moves]
        yield {
            "": name,
            "stale copies": np.mean(stale),
            "planned again": np.mean(fresh),
            "GB a rank and 58 layers that planning again moves": 58e-9 * np.mean(moved),
        }
    stale = [imbalance_of(tests[new], plans["EPLB"][old], MinMax()) for old, new in after]
    yield {"": "EPLB's stale copies, split by LP", "stale copies": np.mean(stale)}


def nodes(counts: NDArray[np.int64]) -> Iterator[Row]:
    for graph, topology in (
        ("cube", Topology(32, 8)),
        ("cube", Topology(32, 4)),
        ("hypercube", Topology(32, 8)),
        ("ring", Topology(32, 8)),
        ("torus", Topology(32, 8)),
    ):
        owner_RD = owners(graph, topology)
        across_RD = crossing(owner_RD, topology)
        planner = FixedGraph(graph=graph, across_nodes="price")
        copies = planner.plan(_problem(counts, topology, owner_RD.size)).placement
        load = batches(counts, 131072)
        over = np.zeros(topology.num_ranks)
        for batch in load:
            shares = MinMax(topology=topology).split(batch, copies).shares
            slots = shares.reshape(len(shares), topology.num_ranks, -1)
            on_edges = slots[:, :, -across_RD.shape[1] :].mean(axis=0)
            over += (on_edges * across_RD).sum(axis=1) / len(load)
        link = topology.network_link.bytes_per_second
        yield {
            "graph": graph,
            "nodes of": topology.num_ranks // topology.num_nodes,
            "edges": across_RD.size,
            "across nodes": int(across_RD.sum()),
            "share of load": over.sum() / load[0, 0].sum(),
            "us of the busiest link, a layer of 131072 tokens": 1e6 * over.max() * TOKEN_BYTES
            / link,
        }  # fmt: skip


def varies(counts: NDArray[np.int64]) -> Iterator[Row]:
    topology, tokens = Topology(32), 8192
    for name, parts in (
        ("steps of one domain", [domain[None] for domain in counts]),
        ("every step another domain", [counts]),
    ):
        found = []
        for part in parts:
            rng = np.random.default_rng(tokens)
            windows = part.reshape(-1, *part.shape[2:])
            share = windows / windows.sum(axis=-1, keepdims=True)
            steps = rng.multinomial(tokens * 8, share).astype(float)
            copies = Greedy().plan(Problem(part[:, :7].reshape(-1, *part.shape[2:]), topology, 320))
            plain = Contiguous().plan(Problem(windows, topology, 256)).placement
            held = steps.reshape(*part.shape)[:, 7]
            lasts = imbalance_of(steps.sum(axis=0)[None], plain, Even()) - 1
            floor = noise_floor(tokens, 256, 8, 32).mean
            found.append(
                {
                    "imbalance": imbalance_of(steps, plain, Even()),
                    "lasts": lasts,
                    "varies": max(imbalance_of(steps, plain, Even()) - floor - lasts, 0.0),
                    "copies": imbalance_of(held, copies.placement, Even()),
                    "copies, split of every batch": imbalance_of(held, copies.placement, MinMax()),
                }
            )
        yield {"": name} | {key: float(np.mean([row[key] for row in found])) for key in found[0]}


def batches(counts: NDArray[np.int64], tokens: int) -> Loads:
    """Batches of unseen traffic, ``(B, L, E)``, domains mixed at random; the same each time."""
    rng = np.random.default_rng(tokens)
    share = counts[:, 7] / counts[:, 7].sum(axis=-1, keepdims=True)
    mixed = np.einsum("bd,dle->ble", rng.dirichlet(np.ones(len(share)), BATCHES), share)
    return rng.multinomial(tokens * 8, mixed / mixed.sum(axis=-1, keepdims=True)).astype(float)


def _problem(counts: NDArray[np.int64], topology: Topology, redundant: int) -> Problem:
    return Problem(counts[:, :7].reshape(-1, *counts.shape[2:]), topology, 256 + redundant)


def _eplb(counts: NDArray[np.int64], topology: Topology, redundant: int) -> Placement:
    return Greedy().plan(_problem(counts, topology, redundant)).placement


def _seconds(load: Loads, placement: Placement, dispatch: Dispatcher, cost: RankCost) -> float:
    slots = np.stack([dispatch.split(batch, placement).shares for batch in load])
    return float(cost.rank_seconds(slots, placement.num_ranks).max(axis=-1).mean())


def imbalance_of(load: Loads, placement: Placement, dispatch: Dispatcher) -> float:
    """Mean over batches and layers of max/mean rank load."""
    slots = np.stack([dispatch.split(batch, placement).shares for batch in load])
    ranks = slots.reshape(*slots.shape[:2], placement.num_ranks, -1).sum(axis=-1)
    return float(imbalance(ranks).mean())


def _text(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 100
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )


if __name__ == "__main__":
    main()
