"""What dispatching batch by batch gains on loads held out of planning, next to the noise floor.

From the repository root, with ../shared/data next to it:

    python -m benchmarks.quality.dispatch_gain [--studies glm52-32 ...] [--json FILE]

Plans are made on the fit part of ``protocols.py``, batches are of its held-out part (seed 0):

glm52-32, glm52-64  32 ranks in nodes of 8, 32 or 64 redundant slots. "window": window 7 of each of
                    the 7 domains, whole (20,505 to 35,878 tokens). "1,024", "4,096": 2 batches of
                    this number of tokens for each domain, multinomial from its window 7. "mixed
                    4,096": the first 14 mixed batches. The source has counts, no tokens: ours
                    choose no expert twice and are dealt to the ranks at random; nothing else is
                    real.
esft                8 ranks in nodes of 4, 8 redundant. The batches of ``engine_rules.py``: 16 of
                    each size, real tokens in stretches of 1/16 of a batch, two to a rank.
gptoss              8 ranks in nodes of 4, 8 redundant: the decode steps of ``engine_rules.py``.

Placements: "DeepSeek" is the global policy in our parity mode. "Robust" (seed 0) is planned for
"even" in the rows even, nearest and the engines' rules, for "minmax" in the others.

imbalance      max/mean assignments of a rank, mean over layers and batches, of whole quotas (where
               it says so, of fractions). Engines' rules send the very tokens to slots, which are
               counted; LPLB is left out, these placements have more than two copies of some expert.
noise floor    the same of a fair router without copies: chance alone, what fair hashing cannot
               beat. Bold: below it.
microseconds   of the slowest rank, by ``rank_cost("h100-deepep-ep<ranks>")``: "as if" the experts
               were those of DeepSeek-V3 on H100.
near           share of assignments served on the rank of their token (on its node); what chance
               keeps is 1 / ranks (1 / nodes).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import decode_active, engine_rules, heldout, protocols
from benchmarks.quality.engine_rules import DATA, RULES, SEED, Batch, Study, source_counts
from benchmarks.quality.machine import about_machine
from equipoise.balance import imbalance
from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Dispatcher, Even, MinMax
from equipoise.dispatch.tokens import expert_counts
from equipoise.noise import noise_floor
from equipoise.placement import Placement
from equipoise.plan import Problem
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology

Ints = NDArray[np.int64]
Served = NDArray[np.float64] | Ints  # by slot (L, S) or by source rank and slot (L, R, S)
Ways = Callable[[Study, Batch, Placement], Iterator[tuple[str, Served]]]

ESFT_SIZES = (64, 256, 1024, 4096)
GLM52_SIZES = (1024, 4096)
GLM52_DRAWS = 2  # for each domain
TIMED = ("even", "minmax", "fewest", "time", "auto")
NEAR = ("even", "nearest", "sglang-static", "minmax", "fewest", "auto")


@dataclass(frozen=True)
class Cell:
    """One dispatcher on one placement, means over layers and batches of one kind."""

    study: str
    placement: str
    dispatch: str
    batch: str
    imbalance: float
    microseconds: float | None = None
    on_rank: float | None = None
    on_node: float | None = None


def glm52(data: Path, redundant: int) -> Study:
    split = protocols.glm52(protocols.read_glm52(data))
    held, top_k = split.tests["known domains"], 8
    rng = np.random.default_rng(SEED)
    popularity = np.repeat(held.counts / held.counts.sum(axis=2, keepdims=True), GLM52_DRAWS, 0)
    loads = {
        "window": held.counts,
        **{f"{size:,}": rng.multinomial(size * top_k, popularity) for size in GLM52_SIZES},
        "mixed 4,096": split.tests["mixed batches"].counts[: len(popularity)],
    }
    topology = Topology(32, ranks_per_node=8)
    batches = {
        kind: [np.array_split(tokens_with(load, top_k, rng), 32) for load in of_kind]
        for kind, of_kind in loads.items()
    }
    return Study(f"glm52-{redundant}", split.fit, batches, top_k, topology, 256 + redundant)


def tokens_with(load: Ints, top_k: int, rng: np.random.Generator) -> Ints:
    """Tokens ``(D, L, K)`` in random order whose choices add up to the load ``(L, E)``.

    Systematic sampling (Madow 1949), experts in random order: no token has an expert twice, unless
    it is chosen more often than there are tokens.
    """
    layers = []
    for load_E in load:
        expert = rng.permutation(len(load_E))
        choices = np.repeat(expert, load_E[expert]).reshape(top_k, -1).T
        layers.append(rng.permutation(choices))
    return np.stack(layers, axis=1)


def esft(data: Path) -> Study:
    study = engine_rules.esft(data, ESFT_SIZES)
    batches = {
        f"{int(size):,}": [np.array_split(np.concatenate(batch), 8) for batch in of_size]
        for size, of_size in study.batches.items()
    }
    return replace(study, name="esft", batches=batches, topology=Topology(8, 4), num_slots=64 + 8)


def gptoss(data: Path) -> Study:
    study = engine_rules.gptoss(data)
    return replace(study, topology=Topology(8, 4))


STUDIES: dict[str, Callable[[Path], Study]] = {
    "glm52-32": lambda data: glm52(data, 32),
    "glm52-64": lambda data: glm52(data, 64),
    "esft": esft,
    "gptoss": gptoss,
}


def thin(study: Study, num_layers: int) -> Study:
    """The study with ``num_layers`` layers, spread evenly over the model."""
    known = study.fit.layer_ids
    rows = np.unique(np.linspace(0, len(known) - 1, num_layers).round().astype(int))
    batches = {
        kind: [[ids[:, rows] for ids in batch] for batch in of_kind]
        for kind, of_kind in study.batches.items()
    }
    return replace(study, fit=study.fit.select(layers=[known[r] for r in rows]), batches=batches)


def blind_ways(study: Study, batch: Batch, placement: Placement) -> Iterator[tuple[str, Served]]:
    """Rules that do not look at loads."""
    by_source = source_counts(batch, placement)
    yield "even, in fractions", Even().split(by_source.sum(axis=1), placement).shares
    known = dispatchers(study)
    for name in ("even", "nearest"):
        yield name, known[name].split(by_source, placement).source_quotas
    for name in RULES:
        slots = engine_rules.slots_of(study.rule(name), batch, placement)
        yield name, np.stack([expert_counts(x, placement.num_slots) for x in slots], axis=1)


def following_ways(
    study: Study, batch: Batch, placement: Placement
) -> Iterator[tuple[str, Served]]:
    """Dispatchers that follow the loads of the batch."""
    by_source = source_counts(batch, placement)
    split = MinMax().split(by_source.sum(axis=1), placement)
    yield "minmax, in fractions", split.shares
    yield "minmax, sources unknown", split.quotas
    for name, each in dispatchers(study).items():
        if name not in ("even", "nearest"):
            yield name, each.split(by_source, placement).source_quotas


def dispatchers(study: Study) -> dict[str, Dispatcher]:
    return decode_active.dispatchers(study.topology, cost_of(study.topology))


def cost_of(topology: Topology) -> RankCost:
    return rank_cost(f"h100-deepep-ep{topology.num_ranks}")


PLACEMENTS: tuple[tuple[str, Ways, str], ...] = (
    ("DeepSeek", blind_ways, "DeepSeek global"),
    ("DeepSeek", following_ways, "DeepSeek global"),
    ("Robust", blind_ways, "Robust even"),
    ("Robust", following_ways, "Robust minmax"),
)


def measure(study: Study, proposals: int) -> Iterator[Cell]:
    """Plan, then let every dispatcher have the same batches."""
    problem = Problem(study.fit, study.topology, study.num_slots)
    planners = heldout.our_planners(proposals)
    plans = {
        name: planners[name].plan(problem).placement
        for name in dict.fromkeys(planner for _, _, planner in PLACEMENTS)
    }
    for kind, batches in study.batches.items():
        yield Cell(study.name, "none", "noise floor", kind, floor(study, batches))
        for name, ways, planner in PLACEMENTS:
            found: dict[str, list[tuple[float, ...]]] = {}
            for batch in batches:
                for way, served in ways(study, batch, plans[planner]):
                    found.setdefault(way, []).append(numbers(served, study.topology))
            for way, rows in found.items():
                yield Cell(study.name, name, way, kind, *np.mean(rows, axis=0).tolist())
        heldout.progress(f"{study.name}: {kind} done")


def floor(study: Study, batches: list[Batch]) -> float:
    shape = study.fit.num_experts, study.top_k, study.topology.num_ranks
    return float(np.mean([noise_floor(sum(map(len, batch)), *shape).mean for batch in batches]))


def numbers(served: Served, topology: Topology) -> tuple[float, ...]:
    """Imbalance, microseconds and, if sources are known, shares on rank and node of the token."""
    slot_load = served if served.ndim == 2 else served.sum(axis=1)
    R = topology.num_ranks
    by_rank = slot_load.reshape(len(slot_load), R, -1).sum(axis=2)
    seconds = cost_of(topology).rank_seconds(slot_load, R).max(axis=1).mean()
    balance = float(imbalance(by_rank).mean()), float(seconds * 1e6)
    if served.ndim == 2:
        return balance
    sent = served.reshape(*served.shape[:2], R, -1).sum(axis=(0, 3))  # from rank to rank
    node = topology.node_of_rank
    on_node = sent[node[:, None] == node].sum()
    return *balance, float(np.trace(sent) / sent.sum()), float(on_node / sent.sum())


def markdown(cells: list[Cell]) -> str:
    """Three tables for each study: imbalance, microseconds, near; cells "DeepSeek / Robust"."""
    studies = dict.fromkeys(cell.study for cell in cells)
    return "\n".join(_tables(name, [c for c in cells if c.study == name]) for name in studies)


def _tables(study: str, cells: list[Cell]) -> str:
    floors = {c.batch: c.imbalance for c in cells if c.placement == "none"}
    timed = [c for c in cells if c.dispatch in TIMED]
    near = [c for c in cells if c.dispatch in NEAR]
    tables = (
        _table(f"{study}, imbalance", cells, lambda c: _marked(c, floors[c.batch])),
        _table(f"{study}, microseconds", timed, lambda c: f"{c.microseconds:.0f}"),
        _table(f"{study}, near", near, lambda c: f"{c.on_rank:.1%} ({c.on_node:.0%})"),
    )
    return "\n".join(tables)


def _marked(cell: Cell, floor: float) -> str:
    text = f"{cell.imbalance:.3f}"
    return f"**{text}**" if cell.imbalance < floor else text


def _table(title: str, cells: list[Cell], show: Callable[[Cell], str]) -> str:
    kinds = list(dict.fromkeys(c.batch for c in cells))
    lines = [["dispatch", *kinds], ["---"] * (1 + len(kinds))]
    for way in dict.fromkeys(c.dispatch for c in cells):
        row = [[show(c) for c in cells if (c.dispatch, c.batch) == (way, kind)] for kind in kinds]
        lines.append([way, *map(" / ".join, row)])
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--layers", type=int, help="number of layers, spread evenly; default: all")
    parser.add_argument("--proposals", type=int, default=Robust.proposals, help="of Robust")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    args = parser.parse_args()
    cells: list[Cell] = []
    for name in args.studies:
        study = STUDIES[name](args.data)
        cells += measure(thin(study, args.layers) if args.layers else study, args.proposals)
    print(markdown(cells))
    if args.json:
        about = {**about_machine(), "layers": args.layers, "proposals": args.proposals}
        rows = [asdict(cell) for cell in cells]
        args.json.write_text(json.dumps({"about": about, "cells": rows}, indent=1))


if __name__ == "__main__":
    main()
