"""Times on a GPU, or on the host where there is none, and how they are told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


class TimeBudget:
    """Seconds that are left for all measurements."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_spent(self) -> bool:
        return time.monotonic() >= self._end


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``median`` and ``p99`` are in ``unit``; ``target`` too, if there is one. ``right`` tells whether
    the answers were those of the plain path.
    """

    what: str
    median: float
    p99: float
    unit: str
    right: bool
    samples: int
    target: float | None = None


def row(what: str, seconds: list[float], *, right: bool, target_us: float | None = None) -> Row:
    us = np.array(seconds) * 1e6
    median, p99 = np.median(us), np.quantile(us, 0.99)
    return Row(what, float(median), float(p99), "us", right, len(us), target_us)


def samples(
    work: Callable[[], object],
    number: int,
    device: torch.device,
    budget: TimeBudget,
) -> list[float]:
    """Seconds of each of several calls, at least one; fewer calls if the time budget is spent."""
    times: list[float] = []
    while not times or (len(times) < number and not budget.is_spent):
        times.append(_seconds(work, device))
    return times


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time between two events of the stream, on a GPU; on the host else."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    cuda: Any = torch.cuda
    start, end = (cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def captured(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
    """The work as one CUDA graph, and what it returns; on other devices the work itself."""
    answer = work()  # compiles, which no capture can
    if device.type != "cuda":
        return work, answer
    cuda: Any = torch.cuda
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        answer = work()
    graph.replay()
    cuda.synchronize()
    return graph.replay, answer
