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
    """A plan, its scores next to the layouts before it, and the moves that it takes.

    Parameters
    ----------
    plan
        Placement, bound and status, for the steps and the dispatcher of the scores.
    scores
        Imbalance without balancing, on the map in force and with the plan, on steps planned on and
        on held-out steps.
    migration
        Moves from the map in force to the plan; ``None`` if no map is in force.
    held
        Trace of the held-out steps; ``None`` if there are none.
    """

    plan: Plan
    scores: Scores
    migration: Migration | None
    held: Trace | None

    @property
    def verdict(self) -> Verdict:
        """Decision whether to load the plan, with the reasons."""
        return self.scores.verdict

    def __repr__(self) -> str:
        return f"Study({self.plan!r}, {self.verdict!r})"

    @cached_property
    def reach(self) -> Reach | None:
        """Count the ranks and nodes that held-out tokens go to; ``None`` without held-out steps.

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
    trace
        Recording to plan on and to score on; not changed.
    topology
        Ranks to place the experts on.
    num_slots
        Number of slots per layer ``S``, all ranks together, redundant ones included; a multiple of
        ``R``.
    planner
        Planner, or a function that makes it from the steps to plan on (``Colocate`` needs their
        tokens).
    dispatch
        Dispatcher of the scores, by name or as an object.
    hold_out
        Share of the steps to score on, the latest of each domain; 0 plans on all steps.
    current
        Placement in force. The plan is compared with it, and moves are counted from it.
    step_assignments
        Number of assignments of a mean step in a layer, for the scores; as recorded if ``None``.
    before_search
        Function that receives the problem before the search starts, and may refuse it.

    Raises
    ------
    EquipoiseError
        A ``hold_out`` that leaves no step on one side, a placement in force with other layers or
        experts, or whatever the problem, the planner or the dispatcher refuses.
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
    """Split into earlier steps to plan on and later ones to score on; all and ``None`` for 0.

    Raises
    ------
    EquipoiseError
        A share outside [0, 1), or a trace (or a domain of it) with a single step.
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
