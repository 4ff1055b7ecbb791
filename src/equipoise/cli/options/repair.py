"""Planning from the map in force, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from equipoise.cli.options.names import option_name
from equipoise.cli.options.planner import (
    PLANNER_OPTIONS,
    PlannerArguments,
    chosen_fields,
    options_of,
    silent,
    with_options,
)
from equipoise.dispatch import Dispatcher
from equipoise.engines.formats import MapContext, given
from equipoise.engines.map_io import read_map
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Planner
from equipoise.plan.planners.registry import PLANNERS
from equipoise.trace import Trace

_REPAIR = PLANNERS["repair"]


@dataclass(frozen=True, kw_only=True)
class _MapInForce:
    """Plan from the map in force, with few moves.

    Parameters
    ----------
    from_map
        The map in force: plan from it with few moves, see equipoise explain repair.
    """

    from_map: Annotated[Path | None, Parameter(name="--from")] = None

    def check(self, planning: PlannerArguments, expert_bytes: int | None) -> None:
        """Refuse a budget without a map, and planner options that a repair would ignore."""
        if self.from_map is None:
            if given(self):
                names = ", ".join(sorted(map(option_name, given(self))))
                raise EquipoiseError(f"{names}: only with --from, the map in force.")
            return
        unused = given(planning) - _REPAIR.told - {option.key for option in _REPAIR.options}
        if unused:
            raise EquipoiseError(
                f"With --from the planner is repair, which has no use for "
                f"{', '.join(map(option_name, sorted(unused)))}."
            )
        if self.is_priced and expert_bytes is None:
            raise EquipoiseError(
                "--max-bytes and --max-seconds need the bytes of one expert: give --model, the "
                "model's config.json, or --expert-bytes."
            )

    @property
    def is_priced(self) -> bool:
        """Whether moves are limited by their bytes or seconds."""
        return bool(given(self) & {"max_bytes", "max_seconds"})

    def read(self, recording: Trace, ranks: int, redundant: int) -> Placement | None:
        """The map in force; ``None`` if there is none."""
        if self.from_map is None:
            return None
        context = MapContext(
            num_experts=recording.num_experts, num_ranks=ranks, layer_ids=recording.layer_ids
        )
        current = read_map(self.from_map, context)
        if current.num_slots != recording.num_experts + redundant:
            raise EquipoiseError(
                f"{self.from_map} has {current.num_slots} slots a layer; "
                f"plan with --redundant {current.num_redundant}."
            )
        return current

    def configured(
        self,
        current: Placement,
        planning: PlannerArguments,
        judge: Dispatcher,
        expert_bytes: int | None,
    ) -> Planner:
        """The planner that starts from a map."""
        fields = chosen_fields(self, _REPAIR)
        # Without a limit on bytes or seconds the bytes only say what the moves take.
        fields["expert_bytes"] = expert_bytes if self.is_priced else None
        return planning.made(_REPAIR, judge, silent, current=current, **fields)


if TYPE_CHECKING:

    class RepairArguments(_MapInForce):
        """What the type checker sees of the arguments made below."""

        expert_bytes: int | None = None

else:
    RepairArguments = with_options(
        _MapInForce,
        "RepairArguments",
        {k: v for k, v in options_of([_REPAIR]).items() if k not in PLANNER_OPTIONS},
    )
