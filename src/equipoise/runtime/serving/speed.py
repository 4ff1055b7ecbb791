"""How fast each rank computes, to give less work to one that has become slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.runtime.members.agreement import ProcessGroup
from equipoise.runtime.moe.layer import ExpertFunction

_STEP = 1.25  # speeds are powers of this: smaller differences are noise
_LEAST_STEPS = 2  # from the median that a rank has to be to count as different


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


def in_steps(work: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Speeds from rows, active experts and seconds of each rank; see ``SpeedMeter.speeds``.

    Depending on the rows of an expert, the time goes with the rows or with the active experts. A
    rank counts as slow, or fast, only as far as both say so: few rows on many experts look slow
    per row and are not.
    """
    table = np.array(work, dtype=np.float64)
    idle = np.asarray((table <= 0).any(axis=1))
    if idle.all():
        return (1.0,) * len(work)
    table[idle] = 1.0
    rates = np.log(table[:, :2] / table[:, 2:])
    rates -= np.median(rates[~idle], axis=0)
    by_rows, by_experts = rates.T
    agreed = np.where(np.abs(by_rows) < np.abs(by_experts), by_rows, by_experts)
    steps = np.rint(agreed / np.log(_STEP))
    steps[idle | (by_rows * by_experts < 0) | (np.abs(steps) < _LEAST_STEPS)] = 0
    return tuple(float(_STEP**step) for step in steps)
