"""The registry of planners, behind the command's options, the documentation and contract tests.

A new planner is one class, in a file of this folder, and one entry here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Any, Literal, cast, get_type_hints

from equipoise.errors import EquipoiseError
from equipoise.plan.result import Planner

Sight = Literal["windows", "room", "speeds"]
"""Parts of a problem that only some planners use: the single windows, the ranks' memory and their
speeds."""

_COUNT = {"gte": 1, "lte": 1 << 20}
_AMOUNT = {"gte": 1, "lte": 1 << 40}


@dataclass(frozen=True)
class Option:
    """A field of a planner that the command offers.

    Parameters
    ----------
    field
        Name of the field. Type, default and description come from the class.
    name
        Name of the option, if it differs from the field's.
    limits
        Limits of a number by comparison: ``gt``, ``gte``, ``lt``, ``lte``.
    """

    field: str
    name: str = ""
    limits: Mapping[str, float] | None = None

    @property
    def key(self) -> str:
        """Name of the option as a Python identifier."""
        return self.name or self.field


@dataclass(frozen=True, kw_only=True)
class PlannerEntry:
    """A planner, and what the command, the documentation and the tests need to know about it.

    Parameters
    ----------
    name
        Name of the planner on the command line.
    home
        Module and class as ``"module:Class"``; imported on first use.
    summary
        Line that says when to use it.
    time
        Time for one layer.
    options
        Fields that the command offers.
    told
        Fields that the command fills in itself: ``dispatch``, ``cost``, ``step_assignments``,
        ``progress``.
    sees
        Parts of a problem that it uses in addition to the summed loads.
    needs
        Fields that no option gives, with a description, such as the placement in force.
    chosen_by
        Option that chooses it instead of ``--planner``; empty if none does.
    dispatch
        Dispatcher that it plans for, if it has no field ``dispatch``.
    pins_copies
        Flag that its copies must stay where it puts them.
    example
        Values for documentation and tests, at least of the fields without a default.
    """

    name: str
    home: str
    summary: str
    time: str
    options: tuple[Option, ...] = ()
    told: frozenset[str] = frozenset()
    sees: frozenset[Sight] = frozenset()
    needs: Mapping[str, str] = field(default_factory=dict)
    chosen_by: str = ""
    dispatch: str = "even"
    pins_copies: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Planner]:
        """Import and return the planner's class."""
        module, _, name = self.home.partition(":")
        return cast("type[Planner]", getattr(import_module(module), name))

    @property
    def required(self) -> tuple[Option, ...]:
        """Options of the fields without a default."""
        return tuple(option for option in self.options if self.default(option) is MISSING)

    def default(self, option: Option) -> Any:
        """Return the field's default, or ``dataclasses.MISSING`` if it has none."""
        return next(f.default for f in fields(cast("Any", self.kind)) if f.name == option.field)

    def type_of(self, option: Option) -> Any:
        """Return the type annotation of the field."""
        return get_type_hints(self.kind)[option.field]

    def describe(self, option: Option) -> str:
        """Return the first sentence of the field's description in the class's docstring."""
        texts = (_description(kind, option.field) for kind in self.kind.__mro__)
        found = next(filter(None, texts), "")
        assert found, f"{self.home} does not describe its field {option.field}"
        return found

    def make(self, **values: Any) -> Planner:
        """Make the planner with these field values."""
        return self.kind(**values)


def _description(kind: type, name: str) -> str:
    """Return the first sentence of a parameter's description without markup, or an empty text."""
    lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    if name not in lines:
        return ""
    start = lines.index(name) + 1
    length = next((i for i, x in enumerate(lines[start:]) if not x[:1].isspace()), None)
    text = " ".join(map(str.strip, lines[start:][:length])).replace("``", "")
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0]


_SEARCH = (
    Option("proposals", limits=_AMOUNT),
    Option("time_budget_seconds", limits={"gt": 0}),
    Option("seed", limits={"gte": 0}),
    Option("deviation", limits={"gte": 0, "lte": 1e6}),
)
_TOLD = frozenset({"dispatch", "cost", "step_assignments", "progress"})
_ALL_SIGHTS: frozenset[Sight] = frozenset({"windows", "room", "speeds"})
_SAME_RANK = Option("allow_same_rank_copies")

PLANNERS: dict[str, PlannerEntry] = {
    entry.name: entry
    for entry in (
        PlannerEntry(
            name="robust",
            home="equipoise.plan.planners.robust:Robust",
            summary="by default: balances the windows of the recording, not their sum; see "
            "[robust.md](../explanation/robust.md)",
            time="0.1 to 0.6 s (two cores, GLM-5.2)",
            options=_SEARCH,
            told=_TOLD,
            sees=_ALL_SIGHTS,
        ),
        PlannerEntry(
            name="survivable",
            home="equipoise.plan.planners.survivable:Survivable",
            summary="where ranks or nodes may be lost; see [failure.md](../howto/failure.md)",
            time="as `Robust`",
            options=(
                *_SEARCH,
                Option("losses", limits=_COUNT),
                Option("failure_domain", name="loss_of"),
                Option("mirrored"),
            ),
            told=_TOLD,
            sees=_ALL_SIGHTS,
            pins_copies=True,
        ),
        PlannerEntry(
            name="greedy",
            home="equipoise.plan.planners.eplb:Greedy",
            summary="where milliseconds count, or one window is all there is; with same-rank "
            "copies, what DeepSeek's EPLB gives, slot for slot",
            time="`O(E log E + S log R)`",
            options=(_SAME_RANK,),
        ),
        PlannerEntry(
            name="hierarchical",
            home="equipoise.plan.planners.eplb:Hierarchical",
            summary="where the router picks whole expert groups and traffic between nodes is dear",
            time="`O(E log E + S log R)`",
            options=(Option("num_expert_groups", name="expert_groups", limits=_COUNT), _SAME_RANK),
            example={"num_expert_groups": 4},
        ),
        PlannerEntry(
            name="trtllm",
            home="equipoise.plan.planners.eplb:TrtllmGreedy",
            summary="to get what TensorRT-LLM's planner gives, slot for slot",
            time="`O(S log S)`",
        ),
        PlannerEntry(
            name="fixed-graph",
            home="equipoise.plan.planners.lplb:FixedGraph",
            summary="for LPLB, whose dispatcher needs its graph",
            time="`O(E log E + S log R)`",
            options=(Option("graph"), Option("across_nodes")),
            dispatch="minmax",
            pins_copies=True,
            example={"graph": "ring", "across_nodes": "price"},
        ),
        PlannerEntry(
            name="contiguous",
            home="equipoise.plan.planners.baselines:Contiguous",
            summary="as the baseline: what an engine does before any balancing",
            time="`O(S)`",
        ),
        PlannerEntry(
            name="round-robin",
            home="equipoise.plan.planners.baselines:RoundRobin",
            summary="as a second baseline, where neighbouring experts are similar",
            time="`O(S)`",
        ),
        PlannerEntry(
            name="repair",
            home="equipoise.plan.planners.repair:Repair",
            summary="where a placement is in force and moves cost; see "
            "[repair.md](../howto/repair.md)",
            time="as `Robust`",
            options=(
                *_SEARCH,
                Option("max_moves", limits={"gte": 0, "lte": 1 << 40}),
                Option("max_bytes", limits={"gte": 0, "lte": 1 << 60}),
                Option("max_seconds", limits={"gt": 0}),
                Option("expert_bytes", limits=_AMOUNT),
            ),
            told=_TOLD - {"progress"},
            sees=_ALL_SIGHTS,
            needs={"current": "the placement in force"},
            chosen_by="--from",
        ),
        PlannerEntry(
            name="colocate",
            home="equipoise.plan.planners.colocate:Colocate",
            summary="where traffic between ranks or nodes is dear; see "
            "[locality.md](../howto/locality.md)",
            time="as `Robust`, and a second",
            options=(
                Option("price", name="locality_price", limits={"gte": 0}),
                Option("proposals", limits=_AMOUNT),
                Option("seed", limits={"gte": 0}),
            ),
            sees=_ALL_SIGHTS,
            needs={"tokens": "the tokens' own choices", "start": "a planner to start from"},
            chosen_by="--locality-price",
        ),
    )
}
"""Every planner by name, in the order that help and documentation list them."""


def find_planner(name: str) -> PlannerEntry:
    """Look up a planner's entry by the name used on the command line.

    Raises
    ------
    EquipoiseError
        An unknown name; the message lists the known ones.
    """
    names = planner_names()
    if name not in names:
        raise EquipoiseError(f"There is no planner {name!r}; use one of {', '.join(names)}.")
    return PLANNERS[name]


def planner_names() -> list[str]:
    """List the names of the planners that ``--planner`` takes."""
    return [name for name, entry in PLANNERS.items() if not entry.chosen_by]
