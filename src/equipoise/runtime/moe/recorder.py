"""Counting the loads of the served traffic, on the device that serves it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from equipoise.checks import check_count
from equipoise.errors import EquipoiseError
from equipoise.runtime.members.agreement import ProcessGroup
from equipoise.trace import MEMORY, Provenance, Trace

Phase = Literal["prefill", "decode"]


class LoadRecorder:
    """Counts of the last forward passes, per layer and logical expert, on the device.

    Logical experts are counted before a copy is chosen, so the history stays right when experts
    move. Each rank counts the choices of its own tokens, without communication and without waiting
    for the device; ``to_trace`` adds up the ranks. Layers without a recorder do nothing.

    Every rank makes one with the same parameters, and begins the same iterations.

    Parameters
    ----------
    layer_ids
        The model's number of each MoE layer, ``L`` of them, ascending.
    num_experts
        Number of logical experts ``E``.
    window
        Number of iterations to remember, ``8 (L E + 1)`` bytes each.
    iterations
        Range ``(START, STOP)``: record only iterations ``START <= i < STOP``, counted from 0.
    device
        Device of the layers.

    Raises
    ------
    EquipoiseError
        The window is below 1, or the iterations are not a range.
    """

    def __init__(
        self,
        layer_ids: Sequence[int],
        num_experts: int,
        *,
        window: int = 1000,
        iterations: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_count("window", window)
        if iterations is not None and not 0 <= iterations[0] < iterations[1]:
            raise EquipoiseError(
                f"Iterations {iterations} are not a range; expected START, STOP with START < STOP."
            )
        self.layer_ids = tuple(layer_ids)
        self.num_experts = num_experts
        self._row = {layer: row for row, layer in enumerate(self.layer_ids)}
        self._iterations = iterations
        self._iteration = -1
        self._recorded: deque[int] = deque(maxlen=window)  # iterations, the oldest first
        # The last column counts ranks in prefill; one collective sums both.
        width = len(self.layer_ids) * num_experts + 1
        self._ring = torch.zeros((window, width), dtype=torch.int64, device=device)
        self._now: Tensor | None = None  # the row of the iteration under way, if it is recorded

    def begin(self, phase: Phase) -> None:
        """Begin the next iteration; it counts as prefill if it is prefill on any rank."""
        self._iteration += 1
        self._now = None
        if self._iterations is not None:
            start, stop = self._iterations
            if not start <= self._iteration < stop:
                return
        self._now = self._ring[self._place(self._iteration)]
        self._now.zero_()
        self._now[-1] = int(phase == "prefill")
        self._recorded.append(self._iteration)

    def add(self, layer_id: int, counts: Tensor) -> None:
        """Add assignments of a layer, ``(E,)``, to the iteration under way, if it is recorded."""
        if self._now is not None:
            first = self._row[layer_id] * self.num_experts
            self._now[first : first + self.num_experts] += counts

    @property
    def counted(self) -> int:
        """Assignments of this rank's tokens in the remembered iterations, over all layers."""
        return int(self._ring[:, :-1].sum())

    def to_trace(self, group: ProcessGroup = None) -> Trace:
        """Return the loads of all ranks together in the remembered iterations.

        Takes one collective; every rank of the process group calls it between the same iterations.

        Raises
        ------
        EquipoiseError
            See ``sum_up`` and ``SummedLoads.trace``.
        """
        return self.sum_up(group).trace()

    def sum_up(self, group: ProcessGroup = None) -> SummedLoads:
        """Begin to add up the ranks without waiting; collective like ``to_trace``.

        Raises
        ------
        EquipoiseError
            Nothing was recorded.
        """
        if not self._recorded:
            raise EquipoiseError(
                f"Nothing is recorded after {self._iteration + 1} iterations; "
                "serve first, in the range to be recorded."
            )
        summed = self._ring[[self._place(iteration) for iteration in self._recorded]]
        work = dist.all_reduce(summed, group=group, async_op=True)
        return SummedLoads(self.layer_ids, np.array(self._recorded), summed, work)

    def _place(self, iteration: int) -> int:
        """Row of an iteration in the buffer."""
        return iteration % len(self._ring)


@dataclass(frozen=True, eq=False)
class SummedLoads:
    """Loads of all ranks while they are being summed.

    Parameters
    ----------
    layer_ids
        The model's number of each layer.
    iterations
        Iterations that are summed, ``(T,)``, ascending.
    summed
        Assignments, and the number of ranks in prefill, ``(T, L E + 1)``.
    work
        Collective that fills ``summed``.
    """

    layer_ids: tuple[int, ...]
    iterations: NDArray[np.int64]
    summed: Tensor
    work: Any

    @property
    def done(self) -> bool:
        """Whether the sums have arrived."""
        return bool(self.work.is_completed())

    def trace(self) -> Trace:
        """Wait for the sums and return them as a trace.

        An iteration in which not all layers saw all tokens, because a forward pass was broken off,
        is left out, and the trace says so.

        Raises
        ------
        EquipoiseError
            No layer saw a token.
        """
        self.work.wait()
        array: NDArray[np.int64] = self.summed.cpu().numpy()
        counts = array[:, :-1].reshape(len(array), len(self.layer_ids), -1)
        total = counts.sum(axis=2)
        if not total.any():
            raise EquipoiseError("No layer saw a token in the iterations recorded; serve first.")
        whole = total.min(axis=1) == total.max(axis=1)
        if not whole.any():
            raise EquipoiseError("All iterations recorded were broken off; serve first.")
        phase = np.where(array[:, -1] > 0, "prefill", "decode")
        notes = [
            f"Iteration {step} is left out: its layers saw unequal numbers of tokens."
            for step in self.iterations[~whole]
        ]
        return Trace(
            counts=counts[whole],
            layer_ids=self.layer_ids,
            step_ids=self.iterations[whole],
            labels={"phase": phase[whole]},
            provenance=Provenance("runtime", MEMORY, tuple(notes)),
        )


def count_experts(ids: Tensor, num_experts: int) -> Tensor:
    """Count assignments of each expert, ``(E,)`` int64; ids outside ``[0, E)`` are ignored."""
    known = (ids >= 0) & (ids < num_experts)
    cells = torch.where(known, ids, num_experts).flatten()
    return cells.bincount(minlength=num_experts + 1)[:-1]
