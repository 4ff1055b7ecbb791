"""What the engines' rules for picking a copy do to real tokens, next to what could be done.

From the repository root, with ../shared/data next to it:

    python -m benchmarks.quality.engine_rules [--json FILE] [--quick]

Studies: ``esft_tokens`` (26 layers x 64 experts, top 6; 16 ranks in 2 nodes, 16 redundant slots) in
batches of 64 to 4,096 tokens, all ranks together: every rank prefills consecutive tokens of the
held-out windows from a random place on, 16 batches a size, seed 0. ``gptoss`` (24 layers x 32
experts, top 4; 8 ranks, 8 redundant): decode steps of 18 new requests as in ``protocols.py``, every
fourth, requests in blocks over the ranks. Placements are planned on the fit part: "DeepSeek" is its
global policy in our parity mode, "Robust" is ``Robust(dispatch="even", seed=0)``.

imbalance        max/mean rank load, mean over batches and layers. Every rule sends the real tokens
                 to slots (``slots``), which are counted. "even" gives every copy the same, in
                 fractions; "min-max" are whole quotas; "floor" is a fair router without copies.
told             what ``split`` expects of the rule from the counts of each source rank.
first copy       what the first copies get over what they would if copies were equal; all
                 assignments of experts with copies.
ranks per token  ranks a token is sent to, without its own. "at random": each choice takes any copy.
                 Under min-max quotas "as they come", an expert's first assignments filling its
                 lowest slot, and "together", by ``assign_tokens``; with quotas of each source rank,
                 or as if all tokens had one source outside ("one source"). There also "in turns",
                 with a copy at most 1 ahead of its share, and without limit instead of ``AHEAD``.
                 "at least": the ranks of the experts without copies, which no rule avoids.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import protocols
from benchmarks.quality.machine import about_machine
from equipoise.balance import expert_loads, imbalance
from equipoise.dispatch import Even, MinMax, dispatcher
from equipoise.dispatch._token_kernels import assign
from equipoise.dispatch.tokens import (
    assign_tokens,
    earlier_equal,
    expected_ranks_per_token,
    expert_counts,
    ranks_per_token,
)
from equipoise.engines._shared.rules import EngineRule, copies_of_slots, nth_copy
from equipoise.engines.sglang.rules import SglangDynamic
from equipoise.noise import noise_floor
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology
from equipoise.trace import Trace

DATA = Path(__file__).parents[3] / "shared" / "data"
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = 16
SEED = 0
RULES = (
    "vllm",
    "sglang-static",
    "sglang-dynamic",
    "sglang-rows",
    "trtllm",
    "ascend",
    "ascend-mrv2",
)
Ints = NDArray[np.int64]
Batch = list[Ints]  # the tokens of each rank, (D, L, K)
Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Study:
    name: str
    fit: Trace
    batches: dict[str, list[Batch]]
    top_k: int
    topology: Topology
    num_slots: int

    def placements(self, proposals: int) -> Iterator[tuple[str, Placement]]:
        problem = Problem(self.fit, self.topology, self.num_slots)
        yield "DeepSeek", Greedy(allow_same_rank_copies=True).plan(problem).placement
        yield (
            "Robust",
            Robust(dispatch="even", seed=SEED, proposals=proposals).plan(problem).placement,
        )

    def rule(self, name: str) -> EngineRule:
        found = dispatcher(name, self.topology, top_k=self.top_k)
        assert isinstance(found, EngineRule)
        return found


def esft(data: Path, sizes: tuple[int, ...]) -> Study:
    split = protocols.esft(protocols.read_esft(data))
    tokens = split.tests["known domains"].tokens
    assert tokens is not None
    held = tokens.ids.astype(np.int64)
    rng = np.random.default_rng(SEED)
    topology = Topology(16, ranks_per_node=8)
    batches: dict[str, list[Batch]] = {}
    for size in sizes:
        part = size // topology.num_ranks
        starts = rng.integers(0, len(held) - part, (BATCHES, topology.num_ranks))
        batches[str(size)] = [[held[s : s + part] for s in row] for row in starts]
    return Study("esft_tokens", split.fit, batches, 6, topology, 80)


def gptoss(data: Path) -> Study:
    split = protocols.gptoss(protocols.read_gptoss(data))
    tokens = split.tests["new requests"].tokens
    assert tokens is not None
    topology = Topology(8)
    steps = [tokens.of_step(t).astype(np.int64) for t in range(0, len(tokens.offsets) - 1, 4)]
    batches = {"decode": [np.array_split(ids, topology.num_ranks) for ids in steps]}
    return Study("gptoss", split.fit, batches, 4, topology, 40)


def slots_of(rule: EngineRule, batch: Batch, placement: Placement) -> Batch:
    """The slots of every rank's tokens; without all-to-all every rank sees all of them."""
    if rule.name == "sglang-rows":
        together = rule.slots(np.concatenate(batch), placement)
        return np.split(together, np.cumsum([len(ids) for ids in batch])[:-1])
    return [rule.slots(ids, placement, rank=rank) for rank, ids in enumerate(batch)]


def source_counts(batch: Batch, placement: Placement) -> Ints:
    """Assignments by source rank, ``(L, R, E)``."""
    return np.stack([expert_counts(ids, placement.num_experts) for ids in batch], axis=1)


def gamma(slot_load: NDArray[np.float64], placement: Placement) -> float:
    return float(imbalance(slot_load.reshape(placement.by_rank.shape).sum(axis=2)).mean())


def first_copies(counts: Ints, placement: Placement) -> tuple[float, float]:
    """Assignments of first copies and what they would be if copies were equal."""
    copies = copies_of_slots(placement)
    copied = copies > 1
    fair = counts[copied] / copies[copied]
    return float(counts[copied & (nth_copy(placement) == 0)].sum()), float(fair.sum())


def score_rule(rule: EngineRule, batch: Batch, placement: Placement) -> tuple[float, ...]:
    """Imbalance, told, and both numbers of the first copies."""
    slots = np.concatenate(slots_of(rule, batch, placement))
    counts = np.stack(
        [expert_loads(slots[:, row], placement.num_slots) for row in range(placement.num_layers)]
    )
    expected = rule.split(source_counts(batch, placement), placement)
    return (
        gamma(counts, placement),
        gamma(expected.shares, placement),
        *first_copies(counts, placement),
    )


def score_rules(study: Study, placement: Placement) -> Table:
    """Rule, then batch size, then column."""
    table: Table = {}
    for size, batches in study.batches.items():
        for name in RULES:
            rule = study.rule(name)
            rows = np.array([score_rule(rule, batch, placement) for batch in batches])
            imbalance, told, first, fair = rows.T
            table.setdefault(name, {})[size] = {
                "imbalance": float(imbalance.mean()),
                "told": float(told.mean()),
                "first copy": float(first.sum() / fair.sum()),
            }
        for name, values in reference_lines(study, batches, placement).items():
            table.setdefault(name, {})[size] = {"imbalance": float(np.mean(values))}
    return table


def reference_lines(
    study: Study, batches: list[Batch], placement: Placement
) -> dict[str, list[float]]:
    lines: dict[str, list[float]] = {"even": [], "min-max": [], "floor": []}
    for batch in batches:
        load = source_counts(batch, placement).sum(axis=1)
        lines["even"].append(gamma(Even().split(load, placement).shares, placement))
        lines["min-max"].append(gamma(MinMax().split(load, placement).quotas, placement))
        shape = placement.num_experts, study.top_k, placement.num_ranks
        lines["floor"].append(noise_floor(sum(map(len, batch)), *shape).mean)
    return lines


def score_ranks(study: Study, placement: Placement) -> dict[str, dict[str, float]]:
    """Batch size to ranks per token under each way of assigning."""
    table = {}
    for size, batches in study.batches.items():
        rows = [
            {**sent_by_source(study, b, placement), **sent_by_one(b, placement)} for b in batches
        ]
        tokens = sum(len(ids) for batch in batches for ids in batch) * placement.num_layers
        table[size] = {way: sum(row[way] for row in rows) / tokens for way in rows[0]}
    return table


def sent_by_source(study: Study, batch: Batch, placement: Placement) -> dict[str, int]:
    """Messages of a batch to other ranks, every rank with quotas of its own."""
    split = MinMax(topology=study.topology).split(source_counts(batch, placement), placement)
    random = SglangDynamic(from_map=False, seed=SEED)
    messages = dict.fromkeys(("at random", "as they come", "together", "at least"), 0)
    for rank, ids in enumerate(batch):
        quotas = split.source_quotas[:, rank]
        ways = (
            random.slots(ids, placement, rank=rank),
            as_they_come(ids, quotas, placement),
            assign_tokens(ids, quotas, placement),
            uncopied(ids, placement),
        )
        for way, slots in zip(messages, ways, strict=True):
            own = (slots // placement.slots_per_rank == rank).any(axis=-1)
            messages[way] += int((ranks_per_token(slots, placement) - own).sum())
    return messages


def sent_by_one(batch: Batch, placement: Placement) -> dict[str, float]:
    """Ranks of all tokens of a batch together, as if they came from one source."""
    ids = np.concatenate(batch)
    quotas = MinMax().split(expert_counts(ids, placement.num_experts), placement).quotas
    shape = placement.num_experts, placement.num_ranks
    ways = {
        "as they come": as_they_come(ids, quotas, placement),
        "in turns": assign(ids, quotas, placement.slots, *shape, 1),
        "together": assign_tokens(ids, quotas, placement),
        "together, no limit": assign(ids, quotas, placement.slots, *shape, 2**30),
        "at least": uncopied(ids, placement),
    }
    ranks = {
        f"one source, {way}": float(ranks_per_token(slots, placement).sum())
        for way, slots in ways.items()
    }
    return {
        "one source, at random": float(expected_ranks_per_token(ids, placement).sum()),
        **ranks,
    }


def as_they_come(ids: Ints, quotas: Ints, placement: Placement) -> Ints:
    """Quotas filled slot by slot, in ascending order."""
    slots = np.empty_like(ids)
    for row in range(placement.num_layers):
        of_layer = ids[:, row].ravel()
        by_expert = np.argsort(placement.slots[row], kind="stable")
        in_order = np.repeat(by_expert, quotas[row, by_expert])
        start = np.cumsum(np.bincount(of_layer, minlength=placement.num_experts))
        start -= np.bincount(of_layer, minlength=placement.num_experts)
        slots[:, row] = in_order[start[of_layer] + earlier_equal(of_layer)].reshape(
            ids[:, row].shape
        )
    return slots


def uncopied(ids: Ints, placement: Placement) -> Ints:
    """The slots of experts that have one slot, -1 for the others."""
    layer = np.arange(placement.num_layers)[:, None]
    only = np.where(placement.copies == 1, placement.slots_of_experts()[:, :, 0], -1)
    return only[layer, ids]


def print_tables(about: str, rules: Table, ranks: dict[str, dict[str, float]]) -> None:
    sizes = list(ranks)
    for column in ("imbalance", "told", "first copy"):
        rows = {
            name: [cells[size][column] for size in sizes]
            for name, cells in rules.items()
            if column in cells[sizes[0]]
        }
        _print_table(f"{about}: {column}", sizes, rows)
    ways = list(ranks[sizes[0]])
    by_way = {way: [ranks[size][way] for size in sizes] for way in ways}
    _print_table(f"{about}: ranks per token", sizes, by_way)


def _print_table(title: str, sizes: list[str], rows: dict[str, list[float]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(sizes)} |\n{'|---' * (len(sizes) + 1)}|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two sizes, a short search")
    args = parser.parse_args()
    sizes = (64, 512) if args.quick else SIZES
    proposals = 20_000 if args.quick else Robust.proposals
    results: dict[str, object] = {"machine": about_machine()}
    for study in (esft(args.data, sizes), gptoss(args.data)):
        for name, placement in study.placements(proposals):
            rules, ranks = score_rules(study, placement), score_ranks(study, placement)
            results[f"{study.name}, {name}"] = {"rules": rules, "ranks per token": ranks}
            print_tables(f"{study.name}, {name}", rules, ranks)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
