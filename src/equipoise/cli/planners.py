"""Choosing a planner on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.common import Amount, Size, option_name, progress_bar
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.plan import (
    Contiguous,
    Greedy,
    Hierarchical,
    Plan,
    Planner,
    Problem,
    Progress,
    Robust,
    RoundRobin,
    TrtllmGreedy,
)

_OPTIONS: dict[str, set[str]] = {
    "robust": {"moves", "budget_seconds", "seed"},
    "greedy": {"allow_same_rank_copies"},
    "hierarchical": {"groups", "allow_same_rank_copies"},
    "trtllm": set(),
    "contiguous": set(),
    "round-robin": set(),
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlannerArguments:
    """Which planner, and for which dispatcher.

    Parameters
    ----------
    planner
        The planner: see docs/planners.md.
    dispatch
        How copies share each batch, for the scores and for what robust plans for: even, as
        engines of today do, or minmax, the exact split of docs/dispatch.md.
    moves
        Robust: proposals per layer.
    budget_seconds
        Robust: stop then with the best so far, which makes the plan depend on the machine.
    seed
        Robust: of the random numbers.
    groups
        Hierarchical: expert groups.
    allow_same_rank_copies
        Greedy, hierarchical: let a rank hold two copies of one expert, as DeepSeek's EPLB does.
    """

    planner: Literal["robust", "greedy", "hierarchical", "trtllm", "contiguous", "round-robin"] = (
        "robust"
    )
    dispatch: Literal["even", "minmax"] = "even"
    moves: Annotated[int, Amount] = Robust.moves
    budget_seconds: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    groups: Annotated[int | None, Size] = None
    allow_same_rank_copies: Annotated[bool, Parameter(negative=())] = False

    def check(self) -> None:
        """Refuse options the planner would ignore, and the lack of one it needs."""
        unused = given(self) - {"planner", "dispatch"} - _OPTIONS[self.planner]
        if unused:
            usable = ", ".join(map(option_name, sorted(_OPTIONS[self.planner]))) or "none"
            raise EquipoiseError(
                f"The planner {self.planner} has no use for "
                f"{', '.join(map(option_name, sorted(unused)))}; it takes {usable}."
            )
        if self.planner == "hierarchical" and self.groups is None:
            raise EquipoiseError("The hierarchical planner needs --groups, the expert groups.")

    def plan(self, problem: Problem) -> Plan:
        """The plan, with a progress bar on a terminal while a search runs."""
        with progress_bar("planning") as progress:
            planner = self._planner(lambda p: progress(p.rounds_done, p.num_rounds))
            return planner.plan(problem)

    def _planner(self, progress: Callable[[Progress], None]) -> Planner:
        match self.planner:
            case "robust":
                return Robust(
                    dispatch=self.dispatch,
                    moves=self.moves,
                    budget_seconds=self.budget_seconds,
                    seed=self.seed,
                    progress=progress,
                )
            case "greedy":
                return Greedy(allow_same_rank_copies=self.allow_same_rank_copies)
            case "hierarchical":
                assert self.groups is not None  # checked
                return Hierarchical(
                    num_groups=self.groups, allow_same_rank_copies=self.allow_same_rank_copies
                )
            case "trtllm":
                return TrtllmGreedy()
            case "contiguous":
                return Contiguous()
            case "round-robin":
                return RoundRobin()
