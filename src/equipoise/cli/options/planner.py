"""Choosing a planner on the command line: its options come from the registry of planners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.checks import check_number
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.units import CONVERTERS
from equipoise.cli.views.progress import Progress
from equipoise.cost import RankCost
from equipoise.dispatch import DISPATCHERS, Dispatcher, dispatcher
from equipoise.dispatch.base import takes
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.plan import Planner
from equipoise.plan.planners.registry import (
    PLANNERS,
    Option,
    PlannerEntry,
    find_planner,
    planner_names,
)
from equipoise.plan.search.anneal import Progress as SearchProgress
from equipoise.simulate.named_cost import cost_model
from equipoise.topology import Topology

_PER_MILLE = 1000  # steps of a progress bar

_Planner = Parameter(
    help=f"The planner: {', '.join(planner_names())}; see equipoise explain planners."
)


def dispatch_help() -> str:
    """What ``--dispatch`` chooses between."""
    named = (
        f"{name}{f' ({entry.engine})' if entry.engine else ''}: {entry.summary}"
        for name, entry in DISPATCHERS.items()
    )
    return (
        "How copies share each batch, for the scores and for what a search plans for; even if not "
        "given, minmax for a fixed graph, which is made for it. What a copy of an expert gets, by "
        f"{'; '.join(named)}. See equipoise explain dispatch, "
        "and equipoise explain tokens for the engines' rules."
    )


@dataclass(frozen=True, kw_only=True)
class _PlannerChoice:
    """Which planner, and for which dispatcher.

    Parameters
    ----------
    rank_cost
        Score the time that ranks take, which robust, survivable and repair then balance, by
        published constants of this name, such as h100-deepep-ep32, or by a file that equipoise
        calibrate wrote from timed runs; all names in equipoise explain costs.
    step_assignments
        With --rank-cost or --hardware: assignments of one step in a layer, all ranks together;
        those of the mean recorded step if not given.
    timed
        What ranks take where hardware says it, in place of --rank-cost.
    """

    planner: Annotated[str, _Planner] = "robust"
    dispatch: Annotated[str | None, Parameter(help=dispatch_help())] = None
    rank_cost: str | None = None
    timed: Annotated[RankCost | None, Parameter(parse=False)] = None
    step_assignments: Annotated[float | None, Parameter(validator=Number(gt=0))] = None

    @property
    def entry(self) -> PlannerEntry:
        """What the registry knows of the planner."""
        return find_planner(self.planner)

    def check(self, machine: MachineArguments, also: frozenset[str] = frozenset()) -> None:
        """Refuse options the planner would ignore, and the lack of one it needs.

        Parameters
        ----------
        also
            Options that something besides the planner uses.
        """
        entry = self.entry
        takes = {option.key for option in entry.options}
        unused = self.chosen - takes - also
        if unused:
            raise EquipoiseError(
                f"The planner {entry.name} has no use for {_listed(unused)}; it takes "
                f"{_listed(takes) or 'none'}."
            )
        if machine.room is not None and "room" not in entry.sees:
            others = " or ".join(n for n in planner_names() if "room" in PLANNERS[n].sees)
            raise EquipoiseError(f"The planner {entry.name} does not look at --room; use {others}.")
        for option in entry.required:
            if option.key not in self.chosen:
                what = entry.describe(option)
                raise EquipoiseError(
                    f"The planner {entry.name} needs {option_name(option.key)}: "
                    f"{what[0].lower()}{what[1:]}"
                )
        if self.step_assignments is not None:
            check_number("--step-assignments", self.step_assignments, low=0, high=float("inf"))
            if self.cost is None:
                raise EquipoiseError(
                    "--step-assignments matters with --rank-cost or --hardware only; give both."
                )
        self.configured(self.judge(), silent)  # what planner and dispatcher refuse themselves

    @property
    def chosen(self) -> frozenset[str]:
        """The planners' options that were given."""
        return given(self) & PLANNER_OPTIONS.keys()

    def by(self, machine: Machine | None) -> Self:
        """The same options with the times of a machine, if there is one."""
        return self if machine is None else replace(self, timed=machine.planning_cost)

    @property
    def dispatch_name(self) -> str:
        """The dispatcher asked for, or else the one that the planner plans for."""
        return self.dispatch or self.entry.dispatch

    @property
    def cost(self) -> RankCost | None:
        """What a rank's share takes, if times count."""
        return self.timed if self.rank_cost is None else cost_model(self.rank_cost).planning_cost

    def judge(self, topology: Topology | None = None, top_k: int | None = None) -> Dispatcher:
        """The dispatcher that scores, told of the machines, the router and the cost."""
        return dispatcher(self.dispatch_name, topology, cost=self.cost, top_k=top_k)

    def planned_for(self, judge: Dispatcher) -> str | Dispatcher:
        """The dispatcher as a planner takes it: by name if that says all."""
        return judge if takes(judge, "top_k") else self.dispatch_name

    def configured(self, judge: Dispatcher, progress: Progress) -> Planner:
        """The planner; ``progress`` is told how much of a search is done, of a thousand."""
        return self.made(self.entry, judge, progress)

    def made(
        self, entry: PlannerEntry, judge: Dispatcher, progress: Progress, **values: Any
    ) -> Planner:
        """A planner of the registry with these options of its, and with the values given."""
        told = {
            "dispatch": self.planned_for(judge),
            "cost": self.cost,
            "step_assignments": self.step_assignments,
            "progress": lambda p: progress(round(p.done * _PER_MILLE), _PER_MILLE, _standing(p)),
        }
        told = {name: value for name, value in told.items() if name in entry.told}
        return entry.make(**told, **chosen_fields(self, entry), **values)


def chosen_fields(arguments: Any, entry: PlannerEntry) -> dict[str, Any]:
    """The fields of a planner for which options were given, and their values."""
    chosen = given(arguments)
    return {o.field: getattr(arguments, o.key) for o in entry.options if o.key in chosen}


def options_of(entries: Iterable[PlannerEntry]) -> dict[str, list[tuple[PlannerEntry, Option]]]:
    """The options of these planners by name, each with all planners that have it."""
    names = dict.fromkeys(option.key for entry in entries for option in entry.options)
    return {
        name: [(e, o) for e in PLANNERS.values() for o in e.options if o.key == name]
        for name in names
    }


def with_options(
    base: type, name: str, options: Mapping[str, list[tuple[PlannerEntry, Option]]]
) -> type:
    """The arguments of a base class and these options, for the command."""
    made = make_dataclass(
        name,
        [(key, *_argument(owners)) for key, owners in options.items()],
        bases=(base,),
        namespace={"__module__": base.__module__, "__doc__": base.__doc__},
        frozen=True,
        kw_only=True,
    )
    return Parameter(name="*")(made)


def _argument(owners: list[tuple[PlannerEntry, Option]]) -> tuple[Any, Any]:
    """The annotation and the default of an option that these planners have."""
    entry, option = owners[0]
    default, kind = entry.default(option), entry.type_of(option)
    if default is MISSING:
        default, kind = None, kind | None
    names = ", ".join(owner.name for owner, _ in owners)
    whose = f"With {entry.chosen_by}" if entry.chosen_by else names
    parameter = Parameter(
        help=f"{whose}: {entry.describe(option)}",
        converter=CONVERTERS.get(option.key.rpartition("_")[2]),
        validator=None if option.limits is None else Number(**option.limits),
        negative=() if kind is bool else None,
    )
    return Annotated[kind, parameter], field(default=default)


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(option_name, sorted(keys)))


def silent(done: int, total: int, said: str = "") -> None:
    """Report nothing."""


def _standing(search: SearchProgress) -> str:
    """What a search is at, and the best it has so far."""
    return search.stage if search.best is None else f"{search.stage}, best {search.best:.4f}"


PLANNER_OPTIONS = options_of(PLANNERS[name] for name in planner_names())
"""The options of the planners that are chosen by name, and which planners have them."""

if TYPE_CHECKING:
    from equipoise.simulate.machine import Machine

    PlannerArguments = _PlannerChoice
else:
    PlannerArguments = with_options(_PlannerChoice, "PlannerArguments", PLANNER_OPTIONS)
