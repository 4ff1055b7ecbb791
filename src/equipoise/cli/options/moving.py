"""Moving from the map in force, on the command line: what it costs a forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from equipoise.cli.options.gate import PRICES
from equipoise.cli.options.groups import MOVING
from equipoise.cli.options.limits import AtLeastZero
from equipoise.cli.options.names import option_name
from equipoise.cli.options.units import Seconds
from equipoise.engines.formats import MapContext, given
from equipoise.engines.map_io import read_map
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.simulate.forecast import Moving
from equipoise.simulate.online_trial import Online
from equipoise.trace import Trace

ASSUMED: Mapping[str, tuple[float, str]] = {
    "interference": (1.0, "serving waits for transfers"),
    "stall_seconds": (0.0, "a change of the map stalls nothing else"),
    "plan_seconds": (1.0, "the old map serves while ours is planned"),
}
"""What moving is taken to cost a replay where nobody says it, and what that means."""


@dataclass(frozen=True, kw_only=True)
class ReplayPrices:
    """What planning and moving cost a replay.

    Parameters
    ----------
    interference, stall_seconds, plan_seconds
        Serving seconds lost for each second of transfers, for each change of the map, and what a
        plan takes.
    assumed
        Which of them nobody gave, as a sentence; nothing if all were.
    """

    interference: float
    stall_seconds: float
    plan_seconds: float
    assumed: str


def replay_prices(**by_hand: float | None) -> ReplayPrices:
    """The prices that were given, and ``ASSUMED`` in place of those that were not."""
    missing = [name for name in ASSUMED if by_hand.get(name) is None]
    said = [f"{option_name(name)} {ASSUMED[name][0]:g} ({ASSUMED[name][1]})" for name in missing]
    values = {name: ASSUMED[name][0] for name in missing}
    return ReplayPrices(
        **{name: value for name, value in by_hand.items() if value is not None} | values,
        assumed=f"Assumed, since not given: {', '.join(said)}." if said else "",
    )


@Parameter(name="*", group=MOVING)
@dataclass(frozen=True, kw_only=True)
class MovingArguments:
    """The map in force, and what moving from it costs.

    Parameters
    ----------
    from_map
        Map in force: gains are counted from it, not from serving without balancing.
    dwell_steps
        Steps until the loads have drifted away from those that a new map was made for (with
        --from).
    stall_seconds
        Seconds for which serving stops at a change of the map (with --from or --online).
    interference
        Seconds of serving lost for each second of transfers, from 0 to 1 (with --from or --online).
    delay_steps
        Steps until the new map is in force (with --from).
    online
        Try our controller too. It starts from each plan and serves the unseen steps; planning and
        moves are charged. This takes seconds to minutes and needs --expert-bytes or --model.
    plan_seconds
        Seconds that a plan takes, in which the old map serves (with --online).
    """

    from_map: Annotated[Path | None, Parameter(name="--from")] = None
    dwell_steps: AtLeastZero = None
    stall_seconds: Annotated[float | None, Seconds] = None
    interference: AtLeastZero = None
    delay_steps: AtLeastZero = None
    online: bool = False
    plan_seconds: Annotated[float | None, Seconds] = None

    def prices(self, expert_bytes: int | None) -> tuple[Online | None, str]:
        """What planning and moving cost our controller, and which of it was assumed.

        Raises
        ------
        EquipoiseError
            A price of it without --online, or no bytes of an expert.
        """
        if not self.online:
            if self.plan_seconds is not None:
                raise EquipoiseError("--plan-seconds: only with --online.")
            return None, ""
        if expert_bytes is None:
            raise EquipoiseError(
                "--online charges moves, and the size of an expert is not known; give "
                "--expert-bytes or --model."
            )
        prices = replay_prices(
            interference=self.interference,
            stall_seconds=self.stall_seconds,
            plan_seconds=self.plan_seconds,
        )
        online = Online(
            expert_bytes=expert_bytes,
            interference=prices.interference,
            stall_seconds=prices.stall_seconds,
            plan_seconds=prices.plan_seconds,
        )
        return online, prices.assumed

    def moving(self, expert_bytes: int | None) -> Moving | None:
        """What moving costs; ``None`` if nobody says.

        Raises
        ------
        EquipoiseError
            Some of the values without the others, or without a map.
        """
        prices: dict[str, Any] = {name: getattr(self, name) for name in PRICES}
        named = given(self) & prices.keys()
        if self.from_map is None and self.online:
            named -= ASSUMED.keys()
        if not named:
            return None
        if self.from_map is None:
            names = ", ".join(sorted(map(option_name, named)))
            either = ", or with --online" if named <= ASSUMED.keys() else ""
            raise EquipoiseError(f"{names}: only with --from, the map in force{either}.")
        missing = [option_name(name) for name, value in prices.items() if value is None]
        missing += ["--expert-bytes (or --model)"] if expert_bytes is None else []
        if expert_bytes is None or missing:
            raise EquipoiseError(
                f"To price the move, give {', '.join(missing)} as well: they have no default, "
                "since none fits every system."
            )
        return Moving(expert_bytes=expert_bytes, **prices)

    def read(self, recording: Trace, ranks: int) -> Placement | None:
        """The map in force; ``None`` if there is none."""
        if self.from_map is None:
            return None
        context = MapContext(
            num_experts=recording.num_experts, num_ranks=ranks, layer_ids=recording.layer_ids
        )
        return read_map(self.from_map, context)
