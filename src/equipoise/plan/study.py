"""From a recording to a scored plan: the parts of planning, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from equipoise.checks import brief, check_type
from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.errors import EquipoiseError, argument
from equipoise.migration import Migration, diff
from equipoise.placement import Placement
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, Planner
from equipoise.plan.scores import Scores, Verdict, score_before
from equipoise.plan.weigh.reach import Reach, measure_reach
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """A plan, what it does next to leaving things as they are, and what it takes to get there.

    Parameters
    ----------
    plan
        The placement, its bound and its status, certified for the steps and the dispatcher that the
        scores are of.
    scores
        Imbalance without balancing, on the map in force and with the plan, on steps planned on and
        on steps held out.
    migration
        What moves from the map in force; ``None`` if there is none.
    held
        The steps held out; ``None`` if none were.
    """

    plan: Plan
    scores: Scores
    migration: Migration | None
    held: Trace | None

    @property
    def verdict(self) -> Verdict:
        """Whether to load the plan, and why."""
        return self.scores.verdict

    def __repr__(self) -> str:
        return f"Study({self.plan!r}, {self.verdict!r})"

    @cached_property
    def reach(self) -> Reach | None:
        """Where tokens of the held-out steps go; ``None`` if none were held out.

        Raises
        ------
        EquipoiseError
            A trace without token ids.
        """
        if self.held is None:
            return None
        return measure_reach(self.plan.placement, self.held, self.plan.problem.topology)


def study(
    trace: Trace,
    topology: Topology,
    *,
    num_slots: int,
    planner: Planner | Callable[[Trace], Planner],
    dispatch: str | Dispatcher = "even",
    hold_out: float = 0.2,
    current: Placement | None = None,
    step_assignments: float | None = None,
    before_search: Callable[[Problem], None] | None = None,
) -> Study:
    """Plan on the earlier steps of a trace and score the plan on the later ones.

    Parameters
    ----------
    num_slots
        ``S``, all ranks together, redundant ones included; ``R`` divides it.
    planner
        The planner; or a function that makes it from the steps to plan on, as ``Colocate`` needs
        their tokens.
    dispatch
        Dispatcher that scores, by name or as configured.
    hold_out
        Share of the steps, the latest of each domain, to score on; 0 plans on all of them.
    current
        The placement in force: what the plan is compared with, and what moves are counted from.
    step_assignments
        Assignments of a mean step in a layer to score with; those recorded if ``None``.
    before_search
        Function that gets the problem just before the search: the last place to refuse.

    Raises
    ------
    EquipoiseError
        A share that holds out nothing or all; what the problem, the planner or the dispatcher
        refuse; a placement in force of other layers or experts.
    """
    check_type("trace", trace, Trace)
    check_type("topology", topology, Topology)
    judge = dispatcher(dispatch, topology, top_k=trace.top_k)
    fit, held = hold_out_steps(trace, hold_out)
    problem = Problem(fit, topology, num_slots)
    if current is not None:
        _check_fits(current, problem)
    before = score_before(
        fit, held, topology, judge, current=current, step_assignments=step_assignments
    )
    if before_search is not None:
        before_search(problem)
    chosen = planner(fit) if callable(planner) else planner
    plan = chosen.plan(problem)
    return Study(
        plan=replace(plan, dispatcher=judge, problem=problem.of_steps(step_assignments)),
        scores=before.with_plan(plan.placement),
        migration=None if current is None else diff(current, plan.placement, topology),
        held=held,
    )


def hold_out_steps(trace: Trace, share: float) -> tuple[Trace, Trace | None]:
    """The earlier steps to plan on, and the later ones to score on; all and ``None`` for 0.

    Raises
    ------
    EquipoiseError
        A share below 0 or not below 1; a trace, or a domain of it, of a single step.
    """
    check_type("trace", trace, Trace)
    if share == 0:
        return trace, None
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise EquipoiseError(
            f"{argument('hold_out')} is {brief(share)}; expected a share from 0 to below 1."
        )
    if trace.num_steps == 1:
        raise EquipoiseError(
            "The recording has one step, so none can be held out; record more steps, "
            f"or give {argument('hold_out')} 0 to plan without a score on unseen traffic."
        )
    return trace.split(at=1 - share)


def _check_fits(current: Placement, problem: Problem) -> None:
    check_type("current", current, Placement)
    other = problem.difference(current)
    if other is not None:
        raise EquipoiseError(
            f"The placement in force has other {other} than the problem; study one of the same "
            "model and devices."
        )
