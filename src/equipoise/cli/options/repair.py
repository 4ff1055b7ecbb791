"""Planning from the map in force, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.cli.options.groups import LIMITS
from equipoise.cli.options.planner import Judging, silent, with_options
from equipoise.dispatch import Dispatcher
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Planner
from equipoise.plan.planners.registry import PLANNERS, PlannerEntry

_REPAIR = PLANNERS["repair"]


@dataclass(frozen=True, kw_only=True)
class _Repairing(Judging):
    """Few moves from the map in force."""

    @property
    def entry(self) -> PlannerEntry:
        """What the registry knows of the planner."""
        return _REPAIR

    @property
    def is_priced(self) -> bool:
        """Whether moves are limited by their bytes or seconds."""
        return bool(given(self) & {"max_bytes", "max_seconds"})

    def check(self, expert_bytes: int | None) -> None:
        """Refuse limits that need what nobody said."""
        if self.is_priced and expert_bytes is None:
            raise EquipoiseError(
                "--max-bytes and --max-seconds need the bytes of one expert: give --model, the "
                "model's config.json, or --expert-bytes."
            )
        self.check_steps()
        self.judge()  # what the dispatcher refuses itself

    def configured(
        self, current: Placement, judge: Dispatcher, expert_bytes: int | None
    ) -> Planner:
        """The planner that starts from a map."""
        # Without a limit on bytes or seconds the bytes only say what the moves take.
        size = expert_bytes if self.is_priced else None
        return self.made(_REPAIR, judge, silent, current=current, expert_bytes=size)


if TYPE_CHECKING:

    class RepairArguments(_Repairing):
        """What the type checker sees of the arguments made below."""

        expert_bytes: int | None = None

else:
    RepairArguments = with_options(_Repairing, "RepairArguments", [_REPAIR], heading=LIMITS)
