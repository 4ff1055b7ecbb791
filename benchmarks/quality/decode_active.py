"""Active experts on the busiest rank in decode, by dispatcher, and what the step takes with them.

From the repository root, with ../shared/data next to it:

    python -m benchmarks.quality.decode_active [--study glm52 ...] [--json FILE] [--markdown FILE]

Plans are made on the fit part of ``protocols.py``, batches are drawn from its held-out part:

glm52        window 7 of the 7 domains. Each batch mixes their popularities with Dirichlet(1)
             weights; assignments are then drawn per layer (multinomial: the source has counts only,
             so choices within a token are not kept and may even repeat). Prefill counts.
esft_tokens  tokens of the held-out sequences, drawn without replacement within a batch. Prefill.
gptoss       the same, from the 18 held-out generations: decode, but at most 18 requests, so a batch
             of 1,024 tokens varies less than one of that number of requests.

Tokens are dealt evenly to the ranks, which are their sources. Two nodes for 8 ranks, else nodes of
8. All numbers are of whole quotas, means over layers and batches; every dispatcher gets the same
batches. "even" deals an expert's tokens to its copies in turn, so each copy is active that can have
a token: what hashing or round robin in an engine aims at. "time" is ``MinMax`` with the cost.

active        slots with load on the rank that has most of them
microseconds  of the slowest rank, by ``rank_cost("h100-deepep-ep<ranks>")``: constants of an expert
              of DeepSeek-V3 on H100. Those of the three models are smaller; read these as "as if".
imbalance     max/mean tokens of a rank
on node       share of assignments served on the node of their token
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import protocols
from benchmarks.quality.machine import about_machine
from equipoise.balance import imbalance
from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Dispatcher, Even, MinMax, Split
from equipoise.dispatch.auto import Auto
from equipoise.dispatch.fewest import FewestExperts, active_slots
from equipoise.dispatch.nearest import Nearest
from equipoise.plan import Greedy, Planner, Problem
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology
from equipoise.trace import Trace

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKENS = (64, 128, 256, 512, 1024)
CONFIGS = {
    "glm52": ((32, 32), (32, 64), (64, 64)),
    "esft_tokens": ((8, 8), (8, 16), (16, 16)),
    "gptoss": ((8, 8), (8, 16)),
}
SEED = 0

Draw = Callable[[np.random.Generator, int, int], NDArray[np.int64]]
"""Generator, tokens, ranks -> a batch by source rank, ``(L, R, E)``."""


@dataclass(frozen=True)
class Row:
    """One line of the result: a placement, a dispatcher and a batch size."""

    study: str
    ranks: int
    redundant: int
    placement: str
    dispatch: str
    tokens: int
    active: float
    microseconds: float
    imbalance: float
    on_node: float


def planners(proposals: int) -> dict[str, Planner]:
    return {
        "DeepSeek": Greedy(allow_same_rank_copies=True),
        "Robust": Robust(dispatch="minmax", seed=SEED, proposals=proposals),
    }


def dispatchers(topology: Topology, cost: RankCost) -> dict[str, Dispatcher]:
    return {
        "even": Even(topology=topology),
        "nearest": Nearest(topology=topology),
        "minmax": MinMax(topology=topology),
        "fewest": FewestExperts(topology=topology),
        "time": MinMax(topology=topology, cost=cost),
        "auto": Auto(topology=topology, cost=cost),
    }


def study(name: str, data: Path) -> tuple[Trace, Draw]:
    """What to plan on, and how to draw batches of what was held out."""
    if name == "glm52":
        split = protocols.glm52(protocols.read_glm52(data))
        return split.fit, _from_counts(split.tests["known domains"])
    read, cut = {
        "esft_tokens": (protocols.read_esft, protocols.esft),
        "gptoss": (protocols.read_gptoss, protocols.gptoss),
    }[name]
    tokens = read(data)
    split = cut(tokens)
    held = sorted(int(unit.rsplit(" ", 1)[1]) for unit in split.test_units)
    pool = np.concatenate([tokens.sequence(index) for index in held])
    return split.fit, _from_tokens(pool, tokens.num_experts)


def _from_counts(held: Trace) -> Draw:
    popularity = held.counts / held.counts.sum(axis=2, keepdims=True)

    def draw(rng: np.random.Generator, num_tokens: int, num_ranks: int) -> NDArray[np.int64]:
        assert held.top_k is not None
        weights = rng.dirichlet(np.ones(held.num_steps))
        mixed = np.tensordot(weights, popularity, axes=1)
        choices = np.full((held.num_layers, num_ranks), num_tokens // num_ranks * held.top_k)
        return rng.multinomial(choices, mixed[:, None])

    return draw


def _from_tokens(pool: NDArray[np.uint8], num_experts: int) -> Draw:
    def draw(rng: np.random.Generator, num_tokens: int, num_ranks: int) -> NDArray[np.int64]:
        chosen = pool[rng.choice(len(pool), num_tokens, replace=False)]
        offsets = np.arange(num_ranks + 1) * (num_tokens // num_ranks)
        by_source = Trace.from_tokens(chosen, offsets, num_experts=num_experts).counts
        return by_source.swapaxes(0, 1).astype(np.int64)

    return draw


def measure(
    name: str, fit: Trace, draw: Draw, ranks: int, redundant: int, args: argparse.Namespace
) -> Iterator[Row]:
    """Plan, then split the same batches with every dispatcher."""
    topology = Topology(ranks, min(8, ranks // 2))
    cost = rank_cost(f"h100-deepep-ep{ranks}")
    problem = Problem(fit, topology, fit.num_experts + redundant)
    for placement_name, planner in planners(args.proposals).items():
        placement = planner.plan(problem).placement
        for tokens in args.tokens:
            rng = np.random.default_rng(SEED)
            batches = [draw(rng, tokens, ranks) for _ in range(args.batches)]
            for dispatch, each in dispatchers(topology, cost).items():
                splits = [each.split(batch, placement) for batch in batches]
                found = np.mean([numbers(split, topology, cost) for split in splits], axis=0)
                yield Row(name, ranks, redundant, placement_name, dispatch, tokens, *found.tolist())
        print(f"{name}, {ranks} / {redundant}: {placement_name} done", file=sys.stderr, flush=True)


def numbers(split: Split, topology: Topology, cost: RankCost) -> tuple[float, float, float, float]:
    """The last four columns of ``Row``: means over layers, of whole quotas."""
    ranks = topology.num_ranks
    by_rank = split.quotas.reshape(len(split.quotas), ranks, -1).sum(axis=2)
    node = topology.node_of_rank
    same = node[:, None] == node[split.placement.rank_of_slot]
    return (
        float(active_slots(split.quotas, ranks).max(axis=1).mean()),
        float(cost.rank_seconds(split.quotas, ranks).max(axis=1).mean() * 1e6),
        float(imbalance(by_rank).mean()),
        float(split.source_quotas[:, same].sum() / split.quotas.sum()),
    )


def markdown(rows: list[Row]) -> str:
    """A table for each study and shape: "active (microseconds)", then the balance and locality."""
    parts = []
    for key in dict.fromkeys((r.study, r.ranks, r.redundant) for r in rows):
        chosen = [r for r in rows if (r.study, r.ranks, r.redundant) == key]
        parts.append(f"**{key[0]}, {key[1]} ranks, {key[2]} redundant**\n")
        parts.append(_table(chosen, lambda r: f"{r.active:.1f} ({r.microseconds:.0f})"))
        parts.append(_table(chosen, lambda r: f"{r.imbalance:.2f} ({r.on_node:.0%})"))
    return "\n".join(parts)


def _table(rows: list[Row], cell: Callable[[Row], str]) -> str:
    sizes = list(dict.fromkeys(r.tokens for r in rows))
    lines = [["placement", "dispatch", *map(str, sizes)], ["---"] * (2 + len(sizes))]
    for pair in dict.fromkeys((r.placement, r.dispatch) for r in rows):
        cells = [cell(r) for r in rows if (r.placement, r.dispatch) == pair]
        lines.append([*pair, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _config(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)/(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not RANKS/REDUNDANT, e.g. 32/32")
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--study", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--config", nargs="+", type=_config, metavar="RANKS/REDUNDANT")
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--batches", type=int, default=16, help="of each size")
    parser.add_argument("--proposals", type=int, default=Robust.proposals, help="of Robust")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    args = parser.parse_args()
    rows: list[Row] = []
    for name in args.study:
        fit, draw = study(name, args.data)
        for ranks, redundant in args.config or CONFIGS[name]:
            rows += measure(name, fit, draw, ranks, redundant, args)
    print(markdown(rows))
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    if args.json:
        result = {"about": about_machine(), "batches": args.batches, "proposals": args.proposals}
        args.json.write_text(json.dumps({**result, "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
