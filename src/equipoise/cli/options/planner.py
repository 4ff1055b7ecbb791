"""Choosing a planner on the command line: its options come from the registry of planners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, make_dataclass, replace
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Self, Union, get_args, get_origin

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from equipoise.checks import check_number
from equipoise.cli.options.groups import HARDWARE, PLANNER, SEARCH
from equipoise.cli.options.lists import names
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.units import CONVERTERS
from equipoise.cli.views.progress import Progress
from equipoise.cost import RankCost
from equipoise.dispatch import DISPATCHERS, Dispatcher, Shares, dispatcher
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
from equipoise.trace import Trace

_PER_MILLE = 1000  # steps of a progress bar
_DEFAULT = "robust"
_COLOCATE = PLANNERS["colocate"]
_MOST_PLANNERS = 5  # lines of one figure that can be told apart


def dispatch_help() -> str:
    """What ``--dispatch`` chooses between."""
    return (
        "Dispatcher that shares each batch over the copies of an expert, for the scores and for "
        f"what a search plans for: {', '.join(DISPATCHERS)}. If not given: even (fixed-graph: "
        "minmax). equipoise explain dispatch says what each does."
    )


def _planner_help(names: Iterable[str]) -> str:
    return f"Planner: {', '.join(names)}. equipoise explain planners says when to use which."


@dataclass(frozen=True, kw_only=True)
class Judging:
    """The dispatcher that a plan is made for and scored by, and what ranks take.

    Parameters
    ----------
    rank_cost
        Time that ranks take: the name of published constants, such as h100-deepep-ep32 (equipoise
        explain costs lists them), or a file that equipoise calibrate wrote from timed runs. Then
        times are scored instead of loads, and planners that search balance times.
    step_assignments
        Assignments of one step in a layer, all ranks together (with --rank-cost or --hardware). If
        not given: those of the mean recorded step.
    timed
        What ranks take where hardware says it, in place of --rank-cost.
    """

    dispatch: Annotated[str | None, Parameter(help=dispatch_help())] = None
    rank_cost: Annotated[str | None, Parameter(group=HARDWARE)] = None
    timed: Annotated[RankCost | None, Parameter(parse=False)] = None
    step_assignments: Annotated[float | None, Parameter(validator=Number(gt=0), group=HARDWARE)] = (
        None
    )

    @property
    def entry(self) -> PlannerEntry:
        """What the registry knows of the planner."""
        raise NotImplementedError

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

    def check_steps(self) -> None:
        """Refuse the size of a step where no times count."""
        if self.step_assignments is None:
            return
        check_number("--step-assignments", self.step_assignments, low=0, high=float("inf"))
        if self.cost is None:
            raise EquipoiseError(
                "--step-assignments matters with --rank-cost or --hardware only; give both."
            )

    def made(
        self, entry: PlannerEntry, judge: Dispatcher, progress: Progress, **values: Any
    ) -> Planner:
        """A planner of the registry with these options of its, and with the values given.

        Parameters
        ----------
        progress
            Function that is told how much of a search is done, of a thousand.
        """
        told = {
            # By name if that says all.
            "dispatch": judge if takes(judge, "top_k") else self.dispatch_name,
            "cost": self.cost,
            "step_assignments": self.step_assignments,
            "progress": lambda p: progress(round(p.done * _PER_MILLE), _PER_MILLE, _standing(p)),
        }
        told = {name: value for name, value in told.items() if name in entry.told}
        chosen = given(self)
        fields = {o.field: getattr(self, o.key) for o in entry.options if o.key in chosen}
        return entry.make(**told, **(fields | values))


@dataclass(frozen=True, kw_only=True)
class _Counted(Judging):
    """A planner that needs nothing but the loads."""

    planner: Annotated[str, Parameter(help=_planner_help(planner_names()))] = _DEFAULT

    @property
    def entry(self) -> PlannerEntry:
        """What the registry knows of the planner."""
        return find_planner(self.planner)

    @property
    def entries(self) -> Sequence[PlannerEntry]:
        """The planners that take part."""
        return (self.entry,)

    def check(self, machine: MachineArguments) -> None:
        """Refuse options the planner would ignore, and the lack of one it needs."""
        names = " and ".join(entry.name for entry in self.entries)
        used = {option.key for entry in self.entries for option in entry.options}
        unused = given(self) & _KEYS - used
        if unused:
            raise EquipoiseError(
                f"The planner {names} has no use for {_listed(unused)}; it takes "
                f"{_listed(used) or 'none'}."
            )
        if machine.room is not None and any("room" not in entry.sees for entry in self.entries):
            others = " or ".join(n for n in planner_names() if "room" in PLANNERS[n].sees)
            raise EquipoiseError(f"The planner {names} does not look at --room; use {others}.")
        for entry, option in ((e, o) for e in self.entries for o in e.required):
            if option.field not in entry.needs and option.key not in given(self):
                what = entry.describe(option)
                raise EquipoiseError(
                    f"The planner {entry.name} needs {option_name(option.key)}: "
                    f"{what[0].lower()}{what[1:]}"
                )
        self.check_steps()
        self.configured(self.judge(), silent)  # what planner and dispatcher refuse themselves

    def configured(
        self, judge: Dispatcher, progress: Progress, fit: Trace | None = None
    ) -> Planner:
        """The planner.

        Parameters
        ----------
        fit
            The steps to plan on, for planners that look at their tokens.
        """
        del fit
        return self.made(self.entry, judge, progress)


@dataclass(frozen=True, kw_only=True)
class _Any(_Counted):
    """A planner that needs the loads, or the tokens of a recording too.

    Parameters
    ----------
    start
        Planner whose placement colocate starts from, with the options of that planner.
    """

    planner: Annotated[str, Parameter(help=_planner_help([*planner_names(), _COLOCATE.name]))] = (
        _DEFAULT
    )
    start: Annotated[str, Parameter(group=PLANNER)] = _DEFAULT

    @property
    def entry(self) -> PlannerEntry:
        """What the registry knows of the planner."""
        return _COLOCATE if self.planner == _COLOCATE.name else super().entry

    @property
    def entries(self) -> Sequence[PlannerEntry]:
        """The planner, and the one that it starts from if it needs one."""
        return (self.entry, find_planner(self.start)) if self.looks_at_tokens else (self.entry,)

    @property
    def looks_at_tokens(self) -> bool:
        """Whether the planner needs the tokens' own choices."""
        return "tokens" in self.entry.needs

    def check(self, machine: MachineArguments) -> None:
        """Refuse also what a search for locality would ignore or undo."""
        name = self.entry.name
        if not self.looks_at_tokens:
            if self.start != _DEFAULT:
                raise EquipoiseError(f"--start: only with --planner {_COLOCATE.name}.")
            return super().check(machine)
        if self.judge().shares is not Shares.EVEN:
            raise EquipoiseError(
                f"The planner {name} assumes an even split; leave --dispatch "
                f"{self.dispatch_name} out."
            )
        if find_planner(self.start).pins_copies:
            raise EquipoiseError(
                f"The planner {name} would move copies that {self.start} needs where they are; "
                "give another --start."
            )
        return super().check(machine)

    def configured(
        self, judge: Dispatcher, progress: Progress, fit: Trace | None = None
    ) -> Planner:
        """The planner, told the tokens and its start if it looks at them."""
        if not self.looks_at_tokens:
            return super().configured(judge, progress, fit)
        start = self.made(find_planner(self.start), judge, progress)
        tokens = None if fit is None else fit.tokens
        return self.made(self.entry, judge, progress, tokens=tokens, start=start)


@dataclass(frozen=True, kw_only=True)
class _Several(_Counted):
    """One planner, and others to compare with it.

    Parameters
    ----------
    also
        Further planners, up to four, as in greedy,trtllm: each is shown next to --planner. An
        option of planners holds for all that have it.
    """

    also: str | None = None

    @property
    def entries(self) -> Sequence[PlannerEntry]:
        """The planner, and those to compare with it."""
        others = [] if self.also is None else names(self.also)
        return tuple(map(find_planner, dict.fromkeys([self.planner, *others])))

    def check(self, machine: MachineArguments) -> None:
        """Refuse also what one of the others refuses, and more of them than can be shown."""
        if len(self.entries) > _MOST_PLANNERS:
            raise EquipoiseError(
                f"{len(self.entries)} planners are named; compare at most {_MOST_PLANNERS}."
            )
        super().check(machine)
        for entry in self.entries:
            self.made(entry, self.judge(), silent)


def with_options(
    base: type, name: str, entries: Sequence[PlannerEntry], heading: Group = PLANNER
) -> type:
    """The arguments of a base class and the options of these planners, for the command.

    Parameters
    ----------
    heading
        Group of the options that the default planner does not have.
    """
    keys = dict.fromkeys(option.key for entry in entries for option in entry.options)
    owners = {key: [(e, o) for e in entries for o in e.options if o.key == key] for key in keys}
    made = make_dataclass(
        name,
        [(key, *_argument(of, heading, len(entries) > 1)) for key, of in owners.items()],
        bases=(base,),
        namespace={"__module__": __name__, "__doc__": base.__doc__},  # where its hints have names
        frozen=True,
        kw_only=True,
    )
    return Parameter(name="*")(made)


def _argument(
    owners: Sequence[tuple[PlannerEntry, Option]], heading: Group, names_owners: bool
) -> tuple[Any, Any]:
    """The annotation and the default of an option that these planners have."""
    entry, option = owners[0]
    default, kind = entry.default(option), _typed(entry.type_of(option))
    if default is MISSING:
        default, kind = None, kind | None
    text = entry.describe(option)
    if names_owners:
        text = f"{text.removesuffix('.')} ({', '.join(owner.name for owner, _ in owners)})."
    parameter = Parameter(
        help=text,
        group=SEARCH if option.key in _SEARCHING else heading,
        converter=CONVERTERS.get(option.key.rpartition("_")[2]),
        validator=None if option.limits is None else Number(**option.limits),
    )
    return Annotated[kind, parameter], field(default=default)


def _typed(kind: Any) -> Any:
    """What of an annotation a command line can say."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return Union[*(part for part in get_args(kind) if part in (int, float, str, NoneType))]


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(option_name, sorted(keys)))


def silent(done: int, total: int, said: str = "") -> None:
    """Report nothing."""


def _standing(search: SearchProgress) -> str:
    """What a search is at, and the best it has so far."""
    return search.stage if search.best is None else f"{search.stage}, best {search.best:.4f}"


_KEYS = {option.key for entry in PLANNERS.values() for option in entry.options}
_SEARCHING = {option.key for option in PLANNERS[_DEFAULT].options}
_COUNTED = [PLANNERS[name] for name in planner_names()]

if TYPE_CHECKING:
    from equipoise.simulate.machine import Machine

    PlannerArguments = _Counted
    PlannersArguments = _Several
    AnyPlannerArguments = _Any
else:
    PlannerArguments = with_options(_Counted, "PlannerArguments", _COUNTED)
    PlannersArguments = with_options(_Several, "PlannersArguments", _COUNTED)
    AnyPlannerArguments = with_options(_Any, "AnyPlannerArguments", [*_COUNTED, _COLOCATE])
