"""Planning from the map in force, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.common import Amount, option_name
from equipoise.cli.options.planner import PlannerArguments
from equipoise.dispatch import Dispatcher
from equipoise.engines.formats import MapContext, given
from equipoise.engines.map_io import read_map
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Problem
from equipoise.plan.planners.repair import Repair


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RepairArguments:
    """Plan from the map in force, with few moves.

    Parameters
    ----------
    from_map
        The map in force: keep what it has where that is, see docs/repair.md.
    max_moves
        With --from: slots whose content may change, all layers together.
    max_bytes
        With --from: bytes that may cross wires.
    max_seconds
        With --from: time the transfers may take.
    expert_bytes
        With --from: bytes of one expert in one layer, scales included, for what the moves take.
    """

    from_map: Annotated[Path | None, Parameter(name="--from")] = None
    max_moves: Annotated[int | None, Parameter(validator=Number(gte=0, lte=1 << 40))] = None
    max_bytes: Annotated[int | None, Parameter(validator=Number(gte=0, lte=1 << 60))] = None
    max_seconds: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    expert_bytes: Annotated[int | None, Amount] = None

    def check(self, planning: PlannerArguments) -> None:
        """Refuse a budget without a map, and planner options that a repair would ignore."""
        if self.from_map is None:
            if given(self):
                names = ", ".join(sorted(map(option_name, given(self))))
                raise EquipoiseError(f"{names}: only with --from, the map in force.")
            return
        unused = given(planning) - {"dispatch", "moves", "seed"}
        if unused:
            raise EquipoiseError(
                f"With --from the planner is repair, which has no use for "
                f"{', '.join(map(option_name, sorted(unused)))}."
            )
        if self._is_priced and self.expert_bytes is None:
            raise EquipoiseError(
                "--max-bytes and --max-seconds need --expert-bytes, the bytes of one expert."
            )

    @property
    def _is_priced(self) -> bool:
        return self.max_bytes is not None or self.max_seconds is not None

    def read(self, problem: Problem) -> Placement | None:
        """The map in force; ``None`` if there is none."""
        if self.from_map is None:
            return None
        context = MapContext(
            num_experts=problem.num_experts,
            num_ranks=problem.topology.num_ranks,
            layer_ids=problem.layer_ids,
        )
        current = read_map(self.from_map, context)
        if current.num_slots != problem.num_slots:
            raise EquipoiseError(
                f"{self.from_map} has {current.num_slots} slots a layer; "
                f"plan with --redundant {current.num_redundant}."
            )
        return current

    def configured(
        self, current: Placement, planning: PlannerArguments, judge: Dispatcher
    ) -> Repair:
        """The planner that starts from a map."""
        return Repair(
            current=current,
            dispatch=planning.planned_for(judge),
            max_moves=self.max_moves,
            max_bytes=self.max_bytes,
            max_seconds=self.max_seconds,
            expert_bytes=self.expert_bytes if self._is_priced else None,
            proposals=planning.moves,
            seed=planning.seed,
        )
