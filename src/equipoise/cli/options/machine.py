"""The ranks, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.groups import HARDWARE
from equipoise.cli.options.limits import Size
from equipoise.errors import EquipoiseError
from equipoise.topology import Topology


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True, kw_only=True)
class MachineArguments:
    """The ranks: their nodes, speeds and memory.

    Parameters
    ----------
    ranks_per_node
        Ranks that share one fast interconnect. If not given: all ranks, or those that --hardware
        says.
    speed
        Relative speeds, one for each rank, as in 1,1,2,2.
    room
        Experts of a layer that the memory of each rank holds, one number for each rank, as in
        5,5,4,5. If not given: all slots of a rank hold different experts.
    """

    ranks_per_node: Annotated[int | None, Size] = None
    speed: str | None = None
    room: str | None = None

    def topology(self, ranks: int) -> Topology:
        """The topology of ``ranks`` ranks with these options."""
        room = None if self.room is None else tuple(map(int, numbers("--room", self.room)))
        speed = None if self.speed is None else numbers("--speed", self.speed)
        return Topology(ranks, self.ranks_per_node, speed=speed, room=room)


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers between commas, one a rank."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or (option == "--room" and any(v % 1 for v in values)):
        kind = "whole numbers" if option == "--room" else "numbers"
        raise EquipoiseError(f"{option} is {text!r}; expected {kind}, one a rank, as in 1,1,2,2.")
    return values
