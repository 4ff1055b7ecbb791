"""Which layers take their turn in which step: TensorRT-LLM's rules, kept for those who know them.

``layer_updates_per_iter`` deals the layers into groups, one of which is updated a step. A cycle
(an experimental branch) separates the steps that count loads from those that update.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

from equipoise.balance import check_count, check_number


def layer_groups(num_layers: int, layers_per_step: int) -> tuple[tuple[int, ...], ...]:
    """Rows of the layers, dealt to as few groups as hold at most so many, one group a step.

    As TensorRT-LLM does: layer ``l`` goes to group ``l mod G``, and where all groups are equally
    large an empty one follows, a step in which nothing is updated.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive.
    """
    check_count("num_layers", num_layers)
    check_count("layers_per_step", layers_per_step)
    size = -(-num_layers // layers_per_step)
    groups = tuple(tuple(range(first, num_layers, size)) for first in range(size))
    return (*groups, ()) if len(groups[0]) == len(groups[-1]) else groups


class Turn(Enum):
    """What an iteration of a cycle is for."""

    SKIP = "skip"
    SAMPLE = "sample"
    UPDATE = "update"
    DRAIN = "drain"


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Loads are counted for a while, then every group of layers is updated once, then a pause.

    Parameters
    ----------
    num_layers, layers_per_step
        As for ``layer_groups``.
    samples
        Iterations that count loads, in a cycle.
    start
        The first iteration of the first cycle.
    sample_interval, update_interval
        Iterations from one sample or update to the next; updates need 2, to finish the last one.
    gap
        Iterations without either at the end of a cycle.

    Raises
    ------
    EquipoiseError
        Numbers out of range.
    """

    num_layers: int
    layers_per_step: int
    samples: int
    start: int = 0
    sample_interval: int = 1
    update_interval: int = 2
    gap: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            low = {"start": 0, "gap": 0, "update_interval": 2}.get(field.name, 1)
            check_number(field.name, getattr(self, field.name), low=low, high=float("inf"))

    def turn(self, iteration: int) -> Turn:
        """What an iteration is for, counted from 0."""
        num_groups = len(layer_groups(self.num_layers, self.layers_per_step))
        last_sample = (self.samples - 1) * self.sample_interval
        last_update = last_sample + 1 + (num_groups - 1) * self.update_interval
        at = (iteration - self.start) % (last_update + 2 + self.gap)
        if iteration < self.start or at > last_update + 1:
            return Turn.SKIP
        if at <= last_sample:
            return Turn.SKIP if at % self.sample_interval else Turn.SAMPLE
        since = (at - last_sample - 1) % self.update_interval
        return {0: Turn.UPDATE, 1: Turn.DRAIN}.get(since, Turn.SKIP)
