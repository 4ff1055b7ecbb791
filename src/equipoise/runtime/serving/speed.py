"""The speed of each rank, so that one that has become slow gets less work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.control.speeds import in_steps
from equipoise.runtime.members.agreement import ProcessGroup
from equipoise.runtime.moe.layer import ExpertFunction


class SpeedMeter:
    """Computes experts and measures the time.

    For CPUs only: elsewhere the function returns before its work is done.

    Parameters
    ----------
    compute
        Function that computes the experts.
    clock
        Function that returns the time in seconds.
    """

    def __init__(
        self, compute: ExpertFunction, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._compute, self._clock = compute, clock
        self._forget()

    def __call__(
        self, rows: Tensor, counts: Sequence[int], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``ExpertFunction``."""
        began = self._clock()
        answers = self._compute(rows, counts, weights)
        self._seconds += self._clock() - began
        self._rows += len(rows)
        self._active += sum(count > 0 for count in counts)
        return answers

    def speeds(self, group: ProcessGroup = None) -> tuple[float, ...]:
        """Speed of each rank since the last call, relative to the median; one small collective.

        Speeds are powers of 1.25. A rank has 1 if it is less than two such steps from the median,
        or had nothing to do.
        """
        mine = torch.tensor([self._rows, self._active, self._seconds], dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine, group=group)
        self._forget()
        return in_steps(torch.stack(every).tolist())

    def _forget(self) -> None:
        self._rows, self._active, self._seconds = 0, 0, 0.0
