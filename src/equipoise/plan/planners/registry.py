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
    help
        Description for the command, if other than the first sentence of the field's.
    """

    field: str
    name: str = ""
    limits: Mapping[str, float] | None = None
    help: str = ""

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
        Command that gives it what it needs; empty for a planner that needs only a problem.
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
        """Return the option's own description, or the first sentence of the field's docstring."""
        if option.help:
            return option.help
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


_PROPOSALS = Option(
    "proposals",
    limits=_AMOUNT,
    help="Number of proposals per layer: candidate changes that the search tries.",
)
_SEARCH = (
    _PROPOSALS,
    Option(
        "time_budget_seconds",
        limits={"gt": 0},
        help="Seconds after which the best plan so far is taken; it then depends on the machine.",
    ),
    Option("seed", limits={"gte": 0}),
    Option("deviation", limits={"gte": 0, "lte": 1e6}),
)
_TOLD = frozenset({"dispatch", "cost", "step_assignments", "progress"})
_ALL_SIGHTS: frozenset[Sight] = frozenset({"windows", "room", "speeds"})
_SAME_RANK = Option(
    "allow_same_rank_copies",
    help="Allow two copies of one expert on a rank, as DeepSeek's EPLB does.",
)

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
                Option(
                    "losses",
                    limits=_COUNT,
                    help="Number of ranks, or of nodes, that may be lost at the same time.",
                ),
                Option(
                    "failure_domain",
                    name="loss_of",
                    help="Failure domain: what is lost as a whole.",
                ),
                Option(
                    "mirrored",
                    help="Hold the same experts on equal parts of the ranks, rank by rank.",
                ),
            ),
            told=_TOLD,
            sees=_ALL_SIGHTS,
            pins_copies=True,
        ),
        PlannerEntry(
            name="greedy",
            home="equipoise.plan.planners.eplb:Greedy",
            summary="if planning must take milliseconds, or there is only one window; with "
            "same-rank copies it gives DeepSeek's EPLB, slot for slot",
            time="`O(E log E + S log R)`",
            options=(_SAME_RANK,),
        ),
        PlannerEntry(
            name="hierarchical",
            home="equipoise.plan.planners.eplb:Hierarchical",
            summary="where the router picks whole expert groups and traffic between nodes is "
            "expensive",
            time="`O(E log E + S log R)`",
            options=(
                Option(
                    "num_expert_groups",
                    name="expert_groups",
                    limits=_COUNT,
                    help="Number of expert groups, each of consecutive experts; the number of "
                    "nodes must divide it.",
                ),
                _SAME_RANK,
            ),
            example={"num_expert_groups": 4},
        ),
        PlannerEntry(
            name="trtllm",
            home="equipoise.plan.planners.eplb:TrtllmGreedy",
            summary="to reproduce TensorRT-LLM's planner, slot for slot",
            time="`O(S log S)`",
        ),
        PlannerEntry(
            name="fixed-graph",
            home="equipoise.plan.planners.lplb:FixedGraph",
            summary="for LPLB, whose dispatcher needs its graph",
            time="`O(E log E + S log R)`",
            options=(
                Option("graph", help="Graph of ranks that LPLB published."),
                Option(
                    "across_nodes",
                    help="Treatment of a graph whose edges cross nodes, over slower links: refuse "
                    "it, or accept it and say what those edges carry (price).",
                ),
            ),
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
                Option(
                    "max_moves",
                    limits={"gte": 0, "lte": 1 << 40},
                    help="Largest number of slots whose content may change, all layers together.",
                ),
                Option(
                    "max_bytes",
                    limits={"gte": 0, "lte": 1 << 60},
                    help="Largest number of bytes that ranks may send each other, such as 2GB.",
                ),
                Option(
                    "max_seconds",
                    limits={"gt": 0},
                    help="Longest time of the transfers in seconds, as equipoise diff computes it.",
                ),
                Option(
                    "expert_bytes",
                    limits=_AMOUNT,
                    help="Bytes of one expert in one layer, scales included, as in 44M. It limits "
                    "and reports what the moves take; --model gives it too.",
                ),
                *_SEARCH,
            ),
            told=_TOLD - {"progress"},
            sees=_ALL_SIGHTS,
            needs={"current": "the placement in force"},
            chosen_by="equipoise repair",
        ),
        PlannerEntry(
            name="colocate",
            home="equipoise.plan.planners.colocate:Colocate",
            summary="where traffic between ranks or nodes is expensive; see "
            "[locality.md](../howto/locality.md)",
            time="as `Robust`, and a second",
            options=(
                Option(
                    "price",
                    name="locality_price",
                    limits={"gte": 0, "lte": 1e6},
                    help="Share by which the load of the busiest rank may rise so that tokens "
                    "reach fewer ranks and nodes.",
                ),
                _PROPOSALS,
                Option("seed", limits={"gte": 0}),
            ),
            sees=_ALL_SIGHTS,
            needs={"start": "a planner to start from", "tokens": "the tokens' own choices"},
            chosen_by="equipoise plan --planner colocate",
        ),
    )
}
"""Every planner by name, in the order that help and documentation list them."""


def find_planner(name: str) -> PlannerEntry:
    """Look up the entry of a planner that needs nothing but a problem, by its name.

    Raises
    ------
    EquipoiseError
        An unknown name, or a planner that needs more; the message says which to use.
    """
    names = planner_names()
    if name in names:
        return PLANNERS[name]
    if name in PLANNERS:
        entry = PLANNERS[name]
        needs = " and ".join(entry.needs.values())
        raise EquipoiseError(f"The planner {name} needs {needs}; use {entry.chosen_by}.")
    raise EquipoiseError(f"There is no planner {name!r}; use one of {', '.join(names)}.")


def planner_names() -> list[str]:
    """Return the names of the planners that need nothing but a problem."""
    return [name for name, entry in PLANNERS.items() if not entry.needs]
