"""Whether balancing live pays: tokens a second before, during and after the prompts change.

    python -m benchmarks.live.pays [--rounds 3] [--redundant 2] [--work 192] [--json FILE]

Protocol: as many processes as cores, one thread each, over gloo, decode batches of
`models/balance-5m`; prompts are prose (`docs`) for the first 224 steps and tables from then on, the
same for every policy. Experts compute every row `--work` times over, so that a step lasts as long
as the rank with most assignments computes: imbalance costs real time. Policies:

no balancing   experts in their order, no copies
static map     planned before with `Robust` on 192 recorded steps of prose and never changed; the
               even split
static, split  planned in the same way for the min-max split, and served with it
periodic       DeepSeek-style: every 100 steps `Greedy` in its parity mode on the mean of the last
               64, moved whatever it costs, all layers at once, while serving waits; even split
ours           `Balancer` with its default advisor, started from the map of "static, split", same
               window, moves in the background, one layer a step; min-max split; plans from 2 %
               of sure excess on

All but the first have the same slots. The policies take turns, `--rounds` times in all, each round
beginning with another one; a cell is the median over rounds of the generated tokens of all ranks a
second, and beside it the same over that of "static map" in the same round (median of ratios).
Periods by steps: before 96-223, shift 224-351, after 352-543. Forward passes that read prompts are
done without the additional work and do not count, what the balancer does after them does. The
planner's process shares the cores with the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.live.stall import SURE
from benchmarks.quality import machine
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Problem, Robust
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.decoding import Batch
from equipoise.runtime.layer import swiglu
from equipoise.runtime.model import ExpertParallelModel, load_model
from equipoise.runtime.planning import Balance, Finding, Question
from equipoise.runtime.prompts import Prompts
from equipoise.runtime.requests import Request
from equipoise.runtime.settings import Settings
from equipoise.topology import Topology
from equipoise.trace import Trace

FOLDER = Path(__file__).parents[2] / "models" / "balance-5m"
LAYERS, EXPERTS = 5, 32
BATCH, NEW_TOKENS = 32, 32
SHIFT, STEPS = 224, 544
PERIODS = {"before": (96, SHIFT), "shift": (SHIFT, 352), "after": (352, STEPS)}
POLICIES = ("no balancing", "static map", "static, split", "periodic", "ours")
OURS = Settings(
    window=64,
    update_interval=64,
    warm_up_steps=16,
    wait_steps=2000,
    excess_on=0.02,
    excess_off=0.01,
)
EVERY = replace(OURS, update_interval=100, layers_per_step=LAYERS, background=False)
PROMPTS = Prompts(0, [(0.0, {"docs": 1.0}), (float(SHIFT), {"tables": 1.0})])


@dataclass(frozen=True)
class Periodic:
    """Plans with DeepSeek's packer on the mean load and always moves."""

    def __call__(self, question: Question, window: Trace) -> Finding:
        current = question.current
        problem = Problem(window, Topology(current.num_ranks), current.num_slots)
        plan = Greedy(allow_same_rank_copies=True).plan(problem)
        return Finding(
            number=question.number,
            balance={"": Balance(imbalance=1.0, excess=1.0, balancedness=1.0)},
            sure_excess=1.0,
            assignments=int(window.counts.sum()),
            achieved=SURE if question.previous is not None else None,
            proposal=plan.placement,
            predicted=SURE,
        )


class Work:
    """Experts that compute every row several times over, unless it is off."""

    def __init__(self, times: int) -> None:
        self.times, self.off = times, False

    def __call__(self, rows: torch.Tensor, counts: Any, weights: Any) -> torch.Tensor:
        if self.off:
            return swiglu(rows, counts, weights)
        more = rows.repeat_interleave(self.times, dim=0)
        return swiglu(more, [self.times * count for count in counts], weights)[:: self.times]


def request(rank: int, round_: int, row: int) -> Request:
    number = (round_ * 64 + rank) * BATCH + row
    domain, text = PROMPTS.at(number, round_ * NEW_TOKENS)
    return Request(number, tuple(_tokenizer().encode(text).ids), domain)


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def play(
    model: ExpertParallelModel, balancer: Balancer | None, work: Work, steps: int = STEPS
) -> list[float]:
    """When each step ended, in seconds that count."""
    rank, ended = dist.get_rank(), [0.0]
    while len(ended) <= steps:
        round_ = (len(ended) - 1) // NEW_TOKENS
        batch = Batch([request(rank, round_, row) for row in range(BATCH)], NEW_TOKENS)
        reading = True
        while not batch.done:
            work.off = reading
            started = time.perf_counter()
            batch.advance(model)
            forward = time.perf_counter()
            if balancer is not None:
                balancer.step(forward - started, BATCH)
            now = time.perf_counter()
            ended.append(ended[-1] + now - (forward if reading else started))
            reading = False
    return ended


def serve(rank: int, store: str, options: argparse.Namespace, results: str) -> None:
    torch.set_num_threads(1)
    ranks = options.ranks
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    spare, work = dist.new_group(), Work(options.work)
    maps, told = _maps(options), []
    for round_ in range(options.rounds):
        first = round_ % len(POLICIES)
        for policy in POLICIES[first:] + POLICIES[:first]:
            model = _load(policy, maps, work)
            balancer = _balancer(policy, model, spare)
            ended = play(model, balancer, work)
            if balancer is not None:
                balancer.close()
            told.append({
                "policy": policy,
                "moved": getattr(balancer, "moved_slots", 0),
                **{name: BATCH * ranks * (stop - start) / (ended[stop] - ended[start])
                   for name, (start, stop) in PERIODS.items()},
            })  # fmt: skip
            if rank == 0:
                print(told[-1], flush=True)
    if rank == 0:
        Path(results).write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


def _maps(options: argparse.Namespace) -> dict[str, Placement]:
    """What to start from by the way to split, the same on every rank; without copies too.

    Planned on prose that was served without balancing.
    """
    R, even_LE = options.ranks, np.ones((LAYERS, EXPERTS))
    start = Contiguous().plan(Problem(even_LE, Topology(R), EXPERTS)).placement
    model = load_model(FOLDER, start)
    model.record(window=1000)
    play(model, None, Work(1), 192)
    assert model.recorder is not None
    traffic = model.recorder.to_trace().windows(16)
    problem = Problem(traffic, Topology(R), EXPERTS + options.redundant)
    planned = {
        dispatch: Robust(dispatch=dispatch, num_threads=1).plan(problem).placement
        for dispatch in ("even", "minmax")
    }
    return {"": start, **planned}


def _load(policy: str, maps: dict[str, Placement], work: Work) -> ExpertParallelModel:
    dispatch = "minmax" if policy in ("static, split", "ours") else "even"
    where = maps["" if policy == "no balancing" else dispatch]
    model = load_model(FOLDER, where, dispatch=dispatch)
    for layer in model.layers:
        layer.compute = work
    return model


def _balancer(policy: str, model: ExpertParallelModel, spare: Any) -> Balancer | None:
    if policy not in ("periodic", "ours"):
        return None
    settings = replace(
        EVERY if policy == "periodic" else OURS,
        num_redundant=model.placement.num_slots - EXPERTS,
    )
    return Balancer(
        model,
        settings,
        topology=Topology(model.placement.num_ranks),
        spare=spare,
        advisor=Periodic() if policy == "periodic" else None,
    )


def table(told: list[dict[str, Any]]) -> str:
    lines = ["| tokens/s | " + " | ".join(f"{name} | over static" for name in PERIODS)
             + " | slots moved |", "|---|" + "---:|" * (2 * len(PERIODS) + 1)]  # fmt: skip
    static = [one for one in told if one["policy"] == "static map"]
    for policy in POLICIES:
        these, cells = [one for one in told if one["policy"] == policy], []
        for name in PERIODS:
            ratios = [one[name] / base[name] for one, base in zip(these, static, strict=True)]
            cells += [f"{np.median([one[name] for one in these]):.0f}", f"{np.median(ratios):.3f}"]
        moved = f"{np.mean([one['moved'] for one in these]):.0f}"
        lines.append(f"| {policy} | " + " | ".join([*cells, moved]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=os.cpu_count())
    parser.add_argument("--redundant", type=int, default=2)
    parser.add_argument("--work", type=int, default=192)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        multiprocessing.spawn(
            serve, (f"{folder}/store", options, str(results)), nprocs=options.ranks
        )
        told = json.loads(results.read_text())
    print(f"{machine.about_machine()}; {options.rounds} rounds\n")
    print(table(told))
    if options.json:
        options.json.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
