"""The MoE layer of the runtime on one device, alone and while its weights are copied."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from benchmarks.gpu.sizes import Sizes, batch, close, expert_weights, hot_copies, popularity
from benchmarks.gpu.timing import Row, TimeBudget, row, samples
from equipoise.migration import diff
from equipoise.runtime.moe.assignment import OnDevice
from equipoise.runtime.moe.layer import ExpertParallelLayer
from equipoise.runtime.moving.background import BackgroundTransfer
from equipoise.topology import Topology


def measure(sizes: Sizes, device: torch.device, budget: TimeBudget) -> Iterator[Row]:
    """A step of the layer alone, and steps while a thread gathers weights on a stream of its own.

    A process group of one rank: all messages stay on the device, all else is what runs on many.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield from _rows(sizes, device, budget)
    finally:
        dist.destroy_process_group()


def _rows(sizes: Sizes, device: torch.device, budget: TimeBudget) -> Iterator[Row]:
    layouts = [hot_copies(popularity(sizes, seed)[:1], sizes, 1) for seed in (0, 1)]
    of_expert = expert_weights(sizes, device)
    held = torch.tensor(layouts[0].slots[0], device=device)
    weights = {name: tensor[held] for name, tensor in of_expert.items()}
    del of_expert
    layer = ExpertParallelLayer(layouts[0], weights, dispatch=OnDevice())
    given = batch(sizes, device)
    before = layer(*given)
    alone = samples(lambda: layer(*given), sizes.samples, device, budget)
    yield row("step of a layer, alone", alone, right=bool(before.isfinite().all()))
    spare = dist.new_group()
    moving: list[float] = []
    while not moving or (len(moving) < sizes.samples and not budget.is_spent):
        new = layouts[1] if layer.placement == layouts[0] else layouts[0]
        transfer = BackgroundTransfer(diff(layer.placement, new, Topology(1)), [layer], group=spare)
        while not transfer.done:
            moving += samples(lambda: layer(*given), 1, device, budget)
            transfer.commit()
        transfer.close()
    yield row(
        "step of a layer, weights copied on another stream",
        moving,
        right=not transfer.outcome.failures and close(layer(*given), before),
    )
