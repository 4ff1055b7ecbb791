"""Counting, solving and assigning on the device, all layers in one captured CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu.sizes import Sizes, draw_ids, hot_copies, popularity
from benchmarks.gpu.timing import Row, TimeBudget, captured, row, samples
from equipoise.dispatch.gpu import GpuMinMax, GpuPlacement

TARGET_US = 30.0  # a layer


def measure(sizes: Sizes, device: torch.device, budget: TimeBudget) -> Iterator[Row]:
    """A row for each of two numbers of redundant slots; device time of a layer in the graph."""
    for redundant in (sizes.redundant, 2 * sizes.redundant):
        yield _row(replace(sizes, redundant=redundant), device, budget)


def _row(sizes: Sizes, device: torch.device, budget: TimeBudget) -> Row:
    loads = popularity(sizes, 0)
    placement = GpuPlacement(hot_copies(loads, sizes, sizes.ranks), device)
    fast = GpuMinMax(placement=placement)
    plain = GpuMinMax(placement=placement, backend="torch")
    ids = draw_ids(loads, sizes.tokens, 1).to(device)
    replay, slots = captured(
        lambda: [fast.dispatch(ids[i], i) for i in range(sizes.layers)], device
    )
    ids.copy_(draw_ids(loads, sizes.tokens, 2))  # the graph has to follow its input
    if device.type == "cuda":
        replay()
    else:
        slots = replay()
    right = all(torch.equal(slots[i], plain.dispatch(ids[i], i)) for i in range(sizes.layers))
    seconds = [t / sizes.layers for t in samples(replay, sizes.samples, device, budget)]
    where = "one CUDA graph" if device.type == "cuda" else "without a graph"
    return row(
        f"dispatch of a layer, {sizes.redundant} redundant, {where}",
        seconds,
        right=right,
        target_us=TARGET_US,
    )
