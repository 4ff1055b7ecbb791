"""Several virtual ranks on one device: a stream each, and experts that move between them.

One device cannot hold several ranks of NCCL. Here a rank is a part of the slots, with weights and a
stream of its own; what an all-to-all would send is taken from the memory that all share. So the
times have no network in them. They show what serving the slots takes and how much copying disturbs
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.sizes import TOP_K, Sizes, batch, close, expert_weights, hot_copies, popularity
from benchmarks.gpu.timing import Row, TimeBudget, row, samples
from equipoise.dispatch.gpu import GpuMinMax, GpuPlacement
from equipoise.placement import Placement
from equipoise.runtime.moe.layer import swiglu

NUM_RANKS = 4


class VirtualRanks:
    """One layer whose slots are served by ``NUM_RANKS`` streams.

    Parameters
    ----------
    placement
        Placement of the layer, one row.
    of_expert
        Weights of every expert by name, ``(E, ...)``.
    """

    def __init__(self, placement: Placement, of_expert: dict[str, Tensor]) -> None:
        device = next(iter(of_expert.values())).device
        self.device = device
        self.placed = GpuPlacement(placement, device)
        self.dispatch = GpuMinMax(placement=self.placed)
        held = torch.tensor(placement.slots[0], device=device)
        self.slots = {name: tensor[held] for name, tensor in of_expert.items()}
        self.streams = [_stream(device) for _ in range(placement.num_ranks)]
        self.copying = _stream(device)
        self.spare: dict[str, Tensor] = {}

    def step(self, hidden: Tensor, ids: Tensor, factors: Tensor) -> Tensor:
        """Dispatch, serve every rank's rows on its stream, and add up the results, ``(D, H)``."""
        placement = self.placed.host
        slots, order = self.dispatch.dispatch(ids, 0).flatten().sort(stable=True)
        counts = torch.bincount(slots, minlength=placement.num_slots).tolist()
        size = placement.slots_per_rank
        sent = [counts[first : first + size] for first in range(0, len(counts), size)]
        rows = torch.split(order, [sum(part) for part in sent])
        answers = hidden.new_empty(ids.numel(), hidden.shape[1])
        _wait_for_current(self.streams)
        for rank, stream in enumerate(self.streams):
            with _on(stream):
                here = {n: t[rank * size : (rank + 1) * size] for n, t in self.slots.items()}
                answers[rows[rank]] = swiglu(hidden[rows[rank] // TOP_K], sent[rank], here)
        _current_waits_for(self.streams)
        weighed = answers.view(*ids.shape, -1) * factors[:, :, None]
        return weighed.sum(dim=1)

    def copy(self, new: Placement) -> None:
        """Begin to gather the weights of another placement, on a stream of its own."""
        origin = torch.tensor(_sources(self.placed.host, new), device=self.device)
        _wait_for_current([self.copying])
        with _on(self.copying):
            self.spare = {name: tensor[origin] for name, tensor in self.slots.items()}

    def commit(self, new: Placement) -> None:
        """Serve the other placement from now on."""
        _current_waits_for([self.copying])
        self.slots, self.spare = self.spare, {}
        self.placed.replace(new)


def measure(sizes: Sizes, device: torch.device, budget: TimeBudget) -> Iterator[Row]:
    """A step at rest, and one during which all weights of the layer are copied."""
    layouts = [hot_copies(popularity(sizes, seed)[:1], sizes, NUM_RANKS) for seed in (0, 1)]
    ranks = VirtualRanks(layouts[0], expert_weights(sizes, device))
    given = batch(sizes, device)
    before = ranks.step(*given)
    rest = samples(lambda: ranks.step(*given), sizes.samples, device, budget)
    yield row(
        f"step of {NUM_RANKS} virtual ranks, at rest", rest, right=bool(before.isfinite().all())
    )
    moving: list[float] = []
    right = True
    while not moving or (len(moving) < sizes.samples and not budget.is_spent):
        new = layouts[1] if ranks.placed.host == layouts[0] else layouts[0]
        ranks.copy(new)
        moving += samples(lambda: ranks.step(*given), 1, device, budget)
        ranks.commit(new)
        right = right and close(ranks.step(*given), before)
    yield row(f"step of {NUM_RANKS} virtual ranks, all experts moving", moving, right=right)


def _sources(old: Placement, new: Placement) -> np.ndarray:
    """A slot that holds what each slot is to hold, ``(S,)``."""
    first = np.empty(old.num_experts, np.int64)
    first[old.slots[0, ::-1]] = np.arange(old.num_slots)[::-1]
    return first[new.slots[0]]


def _stream(device: torch.device) -> Any:
    cuda: Any = torch.cuda
    return cuda.Stream(device) if device.type == "cuda" else None


def _on(stream: Any) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _wait_for_current(streams: list[Any]) -> None:
    for stream in streams:
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())


def _current_waits_for(streams: list[Any]) -> None:
    for stream in streams:
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
