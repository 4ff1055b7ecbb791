"""What balancing costs the steps it happens in: percentiles of step time, quiet and moving.

    python -m benchmarks.live.stall [--steps 2000] [--expert-mb 4]

Protocol: 4 processes of one thread each on this machine, over gloo. Each decodes a batch of its own
with `balance-5m` on 48 slots a layer; with `--expert-mb`, layers of random experts of that
size instead, a token of each sequence through all of them. A `Balancer` has the least intervals and
a planner that proposes at every look to hand the experts of every rank to the next one, so that
every slot of every layer changes. Blocks of steps move in turn by the blocking transfer and in the
background. A step is a forward pass and what the balancer does after it, and lasts as long as on
the slowest rank; steps that read a prompt, look at loads or wait for a plan are left out. Steps
are

* quiet, if the controller observes or settles,
* moving, from the order to move the first layer to the exchange of the last one.

Both kinds alternate within a block. The stall is the balancer's part of a step; a commit is a step
in which a layer was exchanged (with the blocking transfer, also sent). The recorder is measured
apart, blocks of steps with and without it in turn and no balancer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from benchmarks.quality import machine
from equipoise.control.controller import Action, State
from equipoise.control.findings import Finding, Question
from equipoise.control.settings import Settings
from equipoise.migration import with_slots
from equipoise.placement import Placement
from equipoise.plan.weigh.gate import Decision
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.runtime.moe.model import ExpertParallelModel, load_model
from equipoise.sample import sample_model_path
from equipoise.topology import Topology
from equipoise.trace import Trace

FOLDER = sample_model_path()
RANKS, LAYERS, EXPERTS, SLOTS, TOP_K = 4, 5, 32, 48, 4
BATCH, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 96
BLOCK = 250  # steps
SURE = Decision(
    move=True, gain_seconds=1.0, gain_low=0.5, gain_high=2.0, gain_assignments=1.0, moves=1,
    moved_bytes=1, move_seconds=1.0, pay_seconds=0.0, break_even_steps=0.0, sure_after_steps=0.0,
    dwell_steps=1.0, confidence=0.95,
)  # fmt: skip


@dataclass(frozen=True)
class HandOn:
    """Proposes to give the experts of every rank to the next, always."""

    def __call__(self, question: Question, _window: Trace) -> Finding:
        slots = np.roll(question.current.by_rank, 1, axis=1)
        return Finding(
            number=question.number,
            balance={},
            sure_excess=1.0,
            assignments=0,
            achieved=SURE,
            proposal=with_slots(question.current, slots),
            predicted=SURE,
        )


@dataclass
class Decoder:
    """A batch that is decoded over and over."""

    model: ExpertParallelModel
    made: int = NEW_TOKENS
    cache: Any = None
    new: torch.Tensor = field(default_factory=lambda: torch.zeros(BATCH, 1, dtype=torch.long))
    mask: torch.Tensor = field(default_factory=lambda: torch.zeros(BATCH, 0, dtype=torch.long))

    def __call__(self) -> bool:
        """A forward pass; whether it was decoding."""
        if self.made == NEW_TOKENS:
            self.made, self.cache = 0, None
            self.new = torch.randint(1, 2000, (BATCH, PROMPT_TOKENS))
            self.mask = torch.ones_like(self.new)
        logits, self.cache = self.model.step(self.new, self.mask, self.cache)
        self.new = logits.argmax(dim=-1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(self.new)], dim=1)
        self.made += 1
        return self.made > 1


@dataclass
class RandomLayers:
    """Layers of random experts without anything between them."""

    model: ExpertParallelModel

    def __call__(self) -> bool:
        if self.model.recorder is not None:
            self.model.recorder.begin("decode")
        width = self.model.layers[0].weights["down_proj"].shape[1]
        hidden, weights = torch.randn(BATCH, width), torch.full((BATCH, TOP_K), 1 / TOP_K)
        for layer in self.model.layers:
            ids = torch.rand(BATCH, EXPERTS).topk(TOP_K).indices
            hidden = layer(hidden, ids, weights)
        return True


@dataclass
class Step:
    """What a step was and took, on one rank."""

    mode: str
    kind: str
    seconds: float
    stall: float
    committed: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of each way to move")
    parser.add_argument("--expert-mb", type=float, help="megabytes of a random expert")
    parser.add_argument("--mb-per-second", type=float, help="limit of the background transfer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(serve, (folder, args), nprocs=RANKS)
        found = [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(RANKS)]
    print(table(found, args))


def serve(rank: int, folder: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    spare = dist.new_group()
    forward = decoder(args.expert_mb)
    for _ in range(20):
        forward()
    steps: list[Step] = []
    while len(steps) < 2 * args.steps:
        for mode in ("blocking", "background"):
            steps += block(forward, mode, spare, args)
    recorder = record(forward, max(4, args.steps // 100))
    torch.save((steps, recorder), f"{folder}/{rank}")


def decoder(expert_mb: float | None) -> Decoder | RandomLayers:
    start = Placement(
        [[slot % EXPERTS for slot in range(SLOTS)]] * LAYERS, num_ranks=RANKS, num_experts=EXPERTS
    )
    if expert_mb is None:
        return Decoder(load_model(FOLDER, start, dispatch="minmax"))
    width = 512
    inner = max(1, round(expert_mb * 1e6 / (3 * 4 * width)))
    layers = []
    for row in range(LAYERS):
        every = torch.Generator().manual_seed(row)
        up = torch.randn(EXPERTS, 2 * inner, width, generator=every) / width
        down = torch.randn(EXPERTS, width, inner, generator=every) / width
        here = torch.tensor(start.by_rank[row, dist.get_rank()])
        weights = {"gate_up_proj": up[here], "down_proj": down[here]}
        layers.append(ExpertParallelLayer(start.rows([row]), weights, dispatch="minmax"))
    return RandomLayers(ExpertParallelModel(nn.ModuleList(layers), layers))


def block(
    forward: Decoder | RandomLayers, mode: str, spare: dist.ProcessGroup, args: argparse.Namespace
) -> list[Step]:
    """Steps that move in one way, again and again."""
    background, limit = mode == "background", args.mb_per_second
    settings = Settings(
        window=8, update_interval=8, warm_up_steps=0, wait_steps=10**6, background=background
    )
    balancer = Balancer(
        forward.model,
        settings,
        topology=Topology(RANKS),
        spare=spare,
        advisor=HandOn(),
        bytes_per_second=limit * 1e6 if limit and background else None,
    )
    steps: list[Step] = []
    last = ""
    while len(steps) < min(BLOCK, args.steps) or last not in ("", "quiet"):
        started = time.perf_counter()
        decoding = forward()
        between, slots = time.perf_counter(), balancer.moved_slots
        order = balancer.step(between - started, BATCH)
        ended = time.perf_counter()
        last = kind_of(order.action, order.state)
        if decoding and last:
            committed = balancer.moved_slots > slots
            steps.append(Step(mode, last, ended - started, ended - between, committed))
    balancer.close()
    return steps


def kind_of(action: Action, state: State) -> str:
    """What a step counts as; empty if it does not."""
    if state is State.MOVE:
        return "moving"
    quiet = action is Action.NOTHING and state in (State.OBSERVE, State.SETTLE)
    return "quiet" if quiet else ""


def record(forward: Decoder | RandomLayers, blocks: int) -> dict[str, list[float]]:
    """Seconds of decode steps with and without a recorder."""
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    switch: dict[str, Callable[[], None]] = {
        "on": forward.model.record,
        "off": forward.model.stop_recording,
    }
    for number in range(2 * blocks):
        which = ("on", "off")[number % 2]
        switch[which]()
        for _ in range(25):
            started = time.perf_counter()
            if forward():
                seconds[which].append(time.perf_counter() - started)
    return seconds


def table(found: list[tuple[list[Step], dict[str, list[float]]]], args: argparse.Namespace) -> str:
    """What was measured, as Markdown; of every step the slowest rank counts."""
    steps = list(zip(*(steps for steps, _ in found), strict=True))
    lines = [
        f"{machine.about_machine()}, arguments {vars(args)}",
        "",
        "| | steps | p50 ms | p99 ms | max ms | p99 over quiet | stall p50 ms | stall p99 ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for mode in ("blocking", "background"):
        quiet = seconds_of(steps, mode, lambda step: step.kind == "quiet")
        for name, which in (
            ("quiet", lambda step: step.kind == "quiet"),
            ("moving", lambda step: step.kind == "moving"),
            ("commits alone", lambda step: step.committed),
        ):
            total, stall = seconds_of(steps, mode, which), seconds_of(steps, mode, which, "stall")
            numbers = [*milliseconds(total, 50, 99, 100), *milliseconds(stall, 50, 99)]
            numbers.insert(3, f"{np.percentile(total, 99) / np.percentile(quiet, 99):.2f}")
            lines.append(f"| {mode}: {name} | {len(total)} | " + " | ".join(numbers) + " |")
    on, off = (slowest(seconds[which] for _, seconds in found) for which in ("on", "off"))
    share = np.median(on) / np.median(off) - 1
    lines += ["", f"Recorder: {share:+.1%} of the median of {len(on)} steps without."]
    return "\n".join(lines)


def seconds_of(
    steps: list[tuple[Step, ...]], mode: str, which: Callable[[Step], bool], what: str = "seconds"
) -> np.ndarray:
    """Of the steps of a kind; on the slowest rank."""
    ours = [step for step in steps if step[0].mode == mode and which(step[0])]
    return np.array([max(getattr(one, what) for one in step) for step in ours])


def slowest(of_ranks: Iterable[list[float]]) -> np.ndarray:
    return np.array(list(of_ranks)).max(axis=0)


def milliseconds(seconds: np.ndarray, *percentiles: int) -> list[str]:
    return [f"{1e3 * np.percentile(seconds, p):.2f}" for p in percentiles]


if __name__ == "__main__":
    main()
