"""Whether balancing live pays: tokens a second before, during and after the prompts change.

    python -m benchmarks.live.pays [--rounds 2] [--redundant 2] [--work 320] [--json FILE]

Protocol: one process a core, one thread each, over gloo, decode batches of
`balance-5m`; prompts are prose (`docs`) for the first 224 steps and tables from then on, the
same for every policy, others in every round. Experts compute every row `--work` times over, so
that a step lasts as long as the rank with most assignments computes: imbalance costs real time.
Policies:

no balancing   experts in their order, no copies
static map     planned before with `Robust` on 192 recorded steps of prose and never changed; the
               even split
static, split  planned in the same way for the min-max split, and served with it
periodic       DeepSeek-style: every 100 steps `Greedy` in its parity mode on the mean of the last
               64, moved whatever it costs, all layers at once, while serving waits; even split
ours           `Balancer` with its default advisor, started from the map of "static, split", same
               window, moves in the background, one layer a step; min-max split; plans from 2 %
               of sure excess on

All but the first have the same slots. Every policy has a model of its own in the same processes,
and they take turns of 8 steps, each time another one first: the machine, whose speed drifts, is the
same for all. A planner is stopped while it is another policy's turn, so that what it takes is taken
from its own; what is left of a transfer at the end of a turn, at most one layer, goes on.

Tokens a second are the generated tokens of all ranks in a period over the seconds of all its turns,
moves and planning included, all rounds together; next to them the same over that of "static map",
and where 90 % of these ratios lie when turns are drawn again 10,000 times, each with all policies.
Periods by steps: before 96-223, shift 224-351, after 352-543. Forward passes that read prompts are
done without the additional work and do not count, what the balancer does after them does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from numpy.typing import NDArray

from benchmarks.live.stall import SURE
from benchmarks.quality import machine
from equipoise.control.findings import Balance, Finding, Question
from equipoise.control.settings import Settings
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Problem, Robust
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.moe.layer import swiglu
from equipoise.runtime.moe.model import ExpertParallelModel, load_model
from equipoise.runtime.serving.decoding import Batch
from equipoise.runtime.serving.prompts import Prompts
from equipoise.runtime.serving.requests import Request
from equipoise.sample import sample_model_path
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

FOLDER = sample_model_path()
LAYERS, EXPERTS = 5, 32
BATCH, NEW_TOKENS = 32, 32
SHIFT, STEPS, TURN = 224, 544, 8
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


class Service:
    """One policy serving: its model, the batch it is at, and what each step took."""

    def __init__(
        self,
        policy: str,
        model: ExpertParallelModel,
        work: Work,
        prompts: Prompts = PROMPTS,
        batch: int = BATCH,
    ) -> None:
        self.policy, self.model, self._work = policy, model, work
        self._prompts, self._size = prompts, batch
        self.balancer: Balancer | None = None
        self.seconds: list[float] = []
        self.planners: list[BaseProcess] = []
        self._batch: Batch | None = None

    def play(self, round_: int, steps: int) -> None:
        """Some steps more, in all at most those of a round."""
        for _ in range(steps):
            if self._batch is None or self._batch.done:
                self._batch = self._next_batch(round_, len(self.seconds))
                self._work.off = True
            started = time.perf_counter()
            self._batch.advance(self.model)
            forward = time.perf_counter()
            if self.balancer is not None:
                self.balancer.step(forward - started, self._size)
            self.seconds.append(time.perf_counter() - (forward if self._work.off else started))
            self._work.off = False

    def signal_planners(self, number: signal.Signals) -> None:
        for planner in self.planners:
            if planner.is_alive():
                assert planner.pid is not None
                os.kill(planner.pid, number)

    def close(self) -> None:
        if self.balancer is not None:
            self.balancer.close()

    def _next_batch(self, round_: int, step: int) -> Batch:
        first = (((round_ * STEPS + step) // NEW_TOKENS) * 64 + dist.get_rank()) * self._size
        asked = [self._prompts.at(number, step) for number in range(first, first + self._size)]
        requests = [
            Request(number, tuple(_tokenizer().encode(text).ids), domain)
            for number, (domain, text) in enumerate(asked, start=first)
        ]
        return Batch(requests, NEW_TOKENS)


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def take_turns(services: list[Service], round_: int, steps: int = STEPS) -> None:
    """A round: all its steps of every policy."""
    for turn in range(steps // TURN):
        first = turn % len(services)
        for service in services[first:] + services[:first]:
            dist.barrier()
            service.signal_planners(signal.SIGCONT)
            service.play(round_, TURN)
            known = [planner for one in services for planner in one.planners]
            for planner in active_children():
                if planner not in known:
                    service.planners.append(planner)
                    assert planner.pid is not None
                    os.sched_setaffinity(planner.pid, range(os.cpu_count() or 1))
            service.signal_planners(signal.SIGSTOP)


def serve(rank: int, store: str, options: argparse.Namespace, results: str) -> None:
    torch.set_num_threads(1)
    ranks = options.ranks
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    spare = {policy: dist.new_group() for policy in ("periodic", "ours")}
    maps, told = _maps(options), []
    for round_ in range(options.rounds):
        services = [_service(policy, maps, options.work, spare) for policy in POLICIES]
        take_turns(services, round_)
        for service in services:
            service.close()
            told.append({
                "policy": service.policy,
                "round": round_,
                "moved": getattr(service.balancer, "moved_slots", 0),
                "seconds": service.seconds,
            })  # fmt: skip
        if rank == 0:
            print(table(told, ranks), flush=True)
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
    Service("", model, Work(1)).play(options.rounds, 192)
    assert model.recorder is not None
    traffic = model.recorder.to_trace().windows(16)
    problem = Problem(traffic, Topology(R), EXPERTS + options.redundant)
    planned = {
        dispatch: Robust(dispatch=dispatch, num_threads=1).plan(problem).placement
        for dispatch in ("even", "minmax")
    }
    return {"": start, **planned}


def _service(policy: str, maps: dict[str, Placement], times: int, spare: dict[str, Any]) -> Service:
    dispatch, work = "minmax" if policy in ("static, split", "ours") else "even", Work(times)
    model = load_model(
        FOLDER, maps["" if policy == "no balancing" else dispatch], dispatch=dispatch
    )
    for layer in model.layers:
        layer.compute = work
    service = Service(policy, model, work)
    if policy in spare:
        slots, ranks = model.placement.num_slots, model.placement.num_ranks
        settings = EVERY if policy == "periodic" else OURS
        service.balancer = Balancer(
            model,
            replace(settings, num_redundant=slots - EXPERTS),
            topology=Topology(ranks),
            spare=spare[policy],
            advisor=Periodic() if policy == "periodic" else None,
        )
    return service


def table(told: list[dict[str, Any]], ranks: int) -> str:
    lines = ["| tokens/s | " + " | ".join(f"{name} | over static | 90 %" for name in PERIODS)
             + " | slots moved |", "|---|" + "---:|" * (3 * len(PERIODS) + 1)]  # fmt: skip
    for policy in POLICIES:
        cells = []
        for name in PERIODS:
            these, static = _turns(told, policy, name), _turns(told, "static map", name)
            drawn = np.random.default_rng(0).integers(len(these), size=(10_000, len(these)))
            again = static[drawn].sum(axis=1) / these[drawn].sum(axis=1)
            low, high = np.quantile(again, (0.05, 0.95))
            decoded = TURN * len(these) * (NEW_TOKENS - 1) // NEW_TOKENS  # not from prompts
            tokens = BATCH * ranks * decoded
            cells += [
                f"{tokens / these.sum():.0f}",
                f"{static.sum() / these.sum():.3f}",
                f"{low:.3f}-{high:.3f}",
            ]
        moved = np.mean([one["moved"] for one in told if one["policy"] == policy])
        lines.append(f"| {policy} | " + " | ".join([*cells, f"{moved:.0f}"]) + " |")
    return "\n".join(lines)


def _turns(told: list[dict[str, Any]], policy: str, period: str) -> Floats:
    """Seconds of the turns of a period, all rounds."""
    steps = slice(*PERIODS[period])
    seconds = [one["seconds"][steps] for one in told if one["policy"] == policy]
    return np.reshape(seconds, (-1, TURN)).sum(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=os.cpu_count())
    parser.add_argument("--redundant", type=int, default=2)
    parser.add_argument("--work", type=int, default=320)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        multiprocessing.spawn(
            serve, (f"{folder}/store", options, str(results)), nprocs=options.ranks
        )
        told = json.loads(results.read_text())
    print(f"{machine.about_machine()}; {options.rounds} rounds\n")
    print(table(told, options.ranks))
    if options.json:
        options.json.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
