"""Choosing a planner on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.checks import check_number
from equipoise.cli.options.common import Amount, MachineArguments, Size, option_name
from equipoise.cli.views.progress import Progress
from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import DISPATCHERS, Dispatcher, dispatcher
from equipoise.dispatch.base import takes
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.plan import (
    Contiguous,
    FixedGraph,
    Greedy,
    Hierarchical,
    Planner,
    Robust,
    RoundRobin,
    Survivable,
    TrtllmGreedy,
)
from equipoise.plan.search.anneal import Progress as SearchProgress
from equipoise.topology import Topology

_PER_MILLE = 1000  # steps of a progress bar
_ALL = {"planner", "dispatch", "rank_cost", "step_assignments"}
_SEARCH = {"moves", "budget_seconds", "seed"}
_OPTIONS: dict[str, set[str]] = {
    "robust": _SEARCH,
    "survivable": _SEARCH | {"losses", "loss_of", "mirrored"},
    "greedy": {"allow_same_rank_copies"},
    "hierarchical": {"groups", "allow_same_rank_copies"},
    "trtllm": set(),
    "fixed-graph": {"graph"},
    "contiguous": set(),
    "round-robin": set(),
}


def dispatch_help() -> str:
    """What ``--dispatch`` chooses between."""
    named = (
        f"{name}{f' ({entry.engine})' if entry.engine else ''}: {entry.summary}"
        for name, entry in DISPATCHERS.items()
    )
    return (
        "How copies share each batch, for the scores and for what a search plans for; even if not "
        "given, minmax for a fixed graph, which is made for it. What a copy of an expert gets, by "
        f"{'; '.join(named)}. See docs/dispatch.md, and docs/tokens.md for the engines' rules."
    )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlannerArguments:
    """Which planner, and for which dispatcher.

    Parameters
    ----------
    planner
        The planner: see docs/planners.md.
    moves
        Planners that search: proposals per layer.
    budget_seconds
        Robust, survivable: stop then with the best so far, which makes the plan depend on the
        machine.
    seed
        Planners that search: of the random numbers.
    rank_cost
        Score the time that ranks take, which robust and survivable then balance, by published
        constants of this name, such as h100-deepep-ep32; all names in docs/costs.md.
    step_assignments
        With --rank-cost: assignments of one step in a layer, all ranks together; those of the mean
        recorded step if not given.
    losses
        Survivable: ranks or nodes that may be lost at a time.
    loss_of
        Survivable: what is lost as a whole.
    mirrored
        Survivable: let groups of ranks hold the same experts, rank by rank.
    graph
        Fixed graph: of LPLB.
    groups
        Hierarchical: expert groups.
    allow_same_rank_copies
        Greedy, hierarchical: let a rank hold two copies of one expert, as DeepSeek's EPLB does.
    """

    planner: Literal[
        "robust",
        "survivable",
        "greedy",
        "hierarchical",
        "trtllm",
        "fixed-graph",
        "contiguous",
        "round-robin",
    ] = "robust"
    dispatch: Annotated[str | None, Parameter(help=dispatch_help())] = None
    moves: Annotated[int, Amount] = Robust.moves
    budget_seconds: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    rank_cost: str | None = None
    step_assignments: Annotated[float | None, Parameter(validator=Number(gt=0))] = None
    losses: Annotated[int, Size] = 1
    loss_of: Literal["rank", "node"] = "rank"
    mirrored: Annotated[bool, Parameter(negative=())] = False
    graph: Literal["ring", "cube", "hypercube", "torus"] | None = None
    groups: Annotated[int | None, Size] = None
    allow_same_rank_copies: Annotated[bool, Parameter(negative=())] = False

    def check(self, machine: MachineArguments, also: frozenset[str] = frozenset()) -> None:
        """Refuse options the planner would ignore, and the lack of one it needs.

        Parameters
        ----------
        also
            Options that something besides the planner uses.
        """
        unused = given(self) - _ALL - _OPTIONS[self.planner] - also
        if unused:
            usable = ", ".join(map(option_name, sorted(_OPTIONS[self.planner]))) or "none"
            raise EquipoiseError(
                f"The planner {self.planner} has no use for "
                f"{', '.join(map(option_name, sorted(unused)))}; it takes {usable}."
            )
        if machine.room is not None and self.planner not in ("robust", "survivable"):
            raise EquipoiseError(
                f"The planner {self.planner} does not look at --room; use robust or survivable."
            )
        if self.planner == "hierarchical" and self.groups is None:
            raise EquipoiseError("The hierarchical planner needs --groups, the expert groups.")
        if self.planner == "fixed-graph" and self.graph is None:
            raise EquipoiseError("The planner fixed-graph needs --graph, one of LPLB's graphs.")
        if self.step_assignments is not None:
            check_number("--step-assignments", self.step_assignments, low=0, high=float("inf"))
            if self.rank_cost is None:
                raise EquipoiseError("--step-assignments matters with --rank-cost only; give both.")
        self.configured(self.judge(), _silent)  # what planner and dispatcher refuse themselves

    @property
    def dispatch_name(self) -> str:
        """The dispatcher asked for, or else the one that the planner plans for."""
        return self.dispatch or ("minmax" if self.planner == "fixed-graph" else "even")

    @property
    def cost(self) -> RankCost | None:
        """What a rank's share takes, if times count."""
        return None if self.rank_cost is None else rank_cost(self.rank_cost)

    def judge(self, topology: Topology | None = None, top_k: int | None = None) -> Dispatcher:
        """The dispatcher that scores, told of the machines, the router and the cost."""
        return dispatcher(self.dispatch_name, topology, cost=self.cost, top_k=top_k)

    def planned_for(self, judge: Dispatcher) -> str | Dispatcher:
        """The dispatcher as a planner takes it: by name if that says all."""
        return judge if takes(judge, "top_k") else self.dispatch_name

    def configured(self, judge: Dispatcher, progress: Progress) -> Planner:
        """The planner; ``progress`` is told how much of a search is done, of a thousand."""
        match self.planner:
            case "robust":
                return Robust(**self._search(judge, progress))
            case "survivable":
                return Survivable(
                    losses=self.losses,
                    domain=self.loss_of,
                    mirrored=self.mirrored,
                    **self._search(judge, progress),
                )
            case "fixed-graph":
                assert self.graph is not None  # checked
                return FixedGraph(graph=self.graph)
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

    def _search(self, judge: Dispatcher, progress: Progress) -> dict[str, Any]:
        """What robust and survivable have in common."""
        return {
            "dispatch": self.planned_for(judge),
            "cost": self.cost,
            "step_assignments": self.step_assignments,
            "moves": self.moves,
            "budget_seconds": self.budget_seconds,
            "seed": self.seed,
            "progress": lambda p: progress(round(p.done * _PER_MILLE), _PER_MILLE, _standing(p)),
        }


def _silent(done: int, total: int, said: str = "") -> None:
    """Nobody wants to know."""


def _standing(search: SearchProgress) -> str:
    """What a search is at, and the best it has so far."""
    return search.stage if search.best is None else f"{search.stage}, best {search.best:.4f}"
