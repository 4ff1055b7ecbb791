"""How fast each rank computes, to give less work to one that has become slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.runtime.agreement import Group
from equipoise.runtime.layer import ExpertFunction

_STEP = 1.25  # speeds are told in powers of this: smaller differences come and go
_LEAST_STEPS = 2  # of these that a rank has to be off the middle one to count as other than it


class SpeedMeter:
    """Computes experts, and takes the time.

    On CPUs only: elsewhere the function returns before its work is done.

    Parameters
    ----------
    compute
        What experts compute.
    clock
        Tells the time in seconds.
    """

    def __init__(
        self, compute: ExpertFunction, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._compute, self._clock = compute, clock
        self._rows, self._seconds = 0, 0.0

    def __call__(
        self, rows: Tensor, counts: Sequence[int], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``ExpertFunction``."""
        began = self._clock()
        answers = self._compute(rows, counts, weights)
        self._seconds += self._clock() - began
        self._rows += len(rows)
        return answers

    def speeds(self, group: Group = None) -> tuple[float, ...]:
        """Of each rank since the last call, the middle one being 1; one small collective.

        In powers of 1.25, and 1 for all that are less than two of these off; 1 too for ranks that
        had nothing to compute.
        """
        mine = torch.tensor([self._rows, self._seconds], dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, mine, group=group)
        self._rows, self._seconds = 0, 0.0
        return in_steps([(float(rows), float(seconds)) for rows, seconds in every])


def in_steps(work: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Speeds from rows and seconds of each rank; see ``SpeedMeter.speeds``."""
    known = [rows / seconds if rows and seconds else np.nan for rows, seconds in work]
    if np.isnan(known).all():
        return (1.0,) * len(work)
    steps = np.rint(np.log(np.array(known) / np.nanmedian(known)) / np.log(_STEP))
    steps[np.isnan(steps) | (np.abs(steps) < _LEAST_STEPS)] = 0
    return tuple(float(_STEP**step) for step in steps)
