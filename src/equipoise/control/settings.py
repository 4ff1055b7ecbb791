"""The settings of live balancing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from equipoise.checks import brief, check_number, check_whole
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import check_slot_count

_LEAST = {
    "num_redundant": 0, "window": 8, "update_interval": 1, "wait_steps": 1, "warm_up_steps": 0,
    "cool_down_steps": 1, "layers_per_step": 0, "max_bytes_per_step": 1,
}  # fmt: skip
_MAY_BE_NONE = ("max_bytes_per_step", "cool_down_steps")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of live balancing: when to look, when to plan, how much to move at a time.

    A step is a forward pass.

    Parameters
    ----------
    num_redundant
        Number of redundant slots of a layer, all ranks together.
    window
        Number of latest steps whose loads are looked at.
    update_interval
        Number of steps from one look at the loads to the next.
    wait_steps
        Number of steps that the planner may take; serving does not wait for it. It gets more steps
        if planning was seen to take longer, and at least until the next look is due: see ``Wait``.
    layers_per_step
        Largest number of layers that move in a step. With 0 nothing moves and loads are only
        measured, which needs a map.
    max_bytes_per_step
        Mean number of bytes that may move in a step, all ranks together; ``None`` for no limit.
    warm_up_steps
        Number of first steps whose loads are ignored. In this time the planner starts, compiles and
        measures how many steps a plan takes. With 0 it starts at its first question.
    cool_down_steps
        Number of steps after a move until it is judged and loads are looked at again; ``None`` for
        the window.
    excess_on, excess_off
        Imbalance above the noise floor that turns the alarm on, and below which it turns off.
    background
        Flag to move while serving; otherwise serving waits for every move.
    once
        Flag to stop balancing after the first completed change.
    map_path
        Path of a map to start from.

    Raises
    ------
    EquipoiseError
        Values that are out of range or contradict each other.
    """

    num_redundant: int = 0
    window: int = 1000
    update_interval: int = 3000
    wait_steps: int = 1000
    layers_per_step: int = 1
    max_bytes_per_step: int | None = None
    warm_up_steps: int = 100
    cool_down_steps: int | None = None
    excess_on: float = 0.05
    excess_off: float = 0.02
    background: bool = True
    once: bool = False
    map_path: str | Path | None = None

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                check_whole(argument(name), value, low=low)
        for name in ("background", "once"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise EquipoiseError(f"{argument(name)} is {brief(value)}; expected true or false.")
        self._check_thresholds()
        self._check_steps()
        self._check_map()

    @property
    def settle_steps(self) -> int:
        """Number of steps after a move until it is judged."""
        return self.window if self.cool_down_steps is None else self.cool_down_steps

    def num_slots(self, num_experts: int, num_ranks: int) -> int:
        """Compute the number of slots of a layer, all ranks together.

        Raises
        ------
        EquipoiseError
            A single rank, slots that the ranks cannot share equally (the message names the nearest
            numbers that they can), or more than ``E * R`` slots.
        """
        if num_ranks == 1:
            raise EquipoiseError("There is one rank, so nothing to balance; serve with more.")
        slots, most = num_experts + self.num_redundant, num_experts * (num_ranks - 1)
        check_slot_count(slots, num_ranks=num_ranks, num_experts=num_experts)
        if self.num_redundant > most:
            raise EquipoiseError(
                f"{argument('num_redundant')} is {self.num_redundant}; {most} already put every "
                f"expert on each of {num_ranks} ranks."
            )
        return slots

    def rounded_slots(self, num_experts: int, num_ranks: int) -> int:
        """Compute the slots for a changed number of ranks, rounded up to a multiple of it."""
        slots_per_rank = -(-(num_experts + self.num_redundant) // num_ranks)
        return min(slots_per_rank, num_experts) * num_ranks

    def _check_thresholds(self) -> None:
        for name in ("excess_on", "excess_off"):
            check_number(argument(name), getattr(self, name), low=0, high=math.inf)
        if self.excess_off >= self.excess_on:
            raise EquipoiseError(
                f"{argument('excess_off')} is {self.excess_off}, {argument('excess_on')} "
                f"{self.excess_on}; the alarm has to fall at less than what raises it, or it "
                "flutters."
            )

    def _check_steps(self) -> None:
        if self.window > self.update_interval:
            raise EquipoiseError(
                f"{argument('window')} is {self.window}, longer than the "
                f"{argument('update_interval')} of {self.update_interval}: loads that a plan has "
                "answered would be planned for again; give a window of at most the interval."
            )
        if self.settle_steps < self.window:
            raise EquipoiseError(
                f"{argument('cool_down_steps')} is {self.cool_down_steps}, {argument('window')} "
                f"{self.window}: a move would be judged by steps from before it; cool down for the "
                "window or longer."
            )

    def _check_map(self) -> None:
        path = self.map_path
        if path is not None and not (isinstance(path, str | Path) and _is_file(path)):
            raise EquipoiseError(
                f"{argument('map_path')}: there is no map {brief(str(path))}; give the path of a "
                "file."
            )
        if self.layers_per_step == 0 and self.map_path is None:
            raise EquipoiseError(
                f"{argument('layers_per_step')} is 0 and there is no map: nothing would ever be "
                f"balanced; give a {argument('map_path')}, or move 1 layer or more a step."
            )


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # for instance, the name is too long for a file
        return False
