"""Trials of changes on recorded steps: plans from earlier steps, timed on later steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equipoise.cost import RankCost
from equipoise.dispatch import DISPATCHERS, Dispatcher, dispatcher
from equipoise.dispatch.base import TOO_MUCH_LOAD, takes
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.planners.robust import Robust
from equipoise.plan.problem import Problem, with_mean_step
from equipoise.plan.result import Planner
from equipoise.simulate.expert_time import ComputeModel, Layout
from equipoise.simulate.gain import gain
from equipoise.simulate.kinds import loaded_steps, step_kinds
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

_SOME_STEPS = 32  # number of steps used to estimate how plans differ, and the effect of chance


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """The unseen steps, and the models that time them.

    Parameters
    ----------
    load
        Assignments, ``(T, L, E)``.
    models
        Time models: the best guess, then those that may be the true one.
    other_seconds
        Time of a step that the models do not include.
    """

    load: Floats
    topology: Topology
    models: tuple[ComputeModel, ...]
    other_seconds: float

    def time(self, layout: Layout) -> Floats:
        """Compute the seconds of each step by each model, ``(M, T)``."""
        return self.other_seconds + layout.step_seconds(self.load, self.topology, self.models)

    def some_times(self, layout: Layout) -> Floats:
        """Compute the seconds of some of the steps by the first model, ``(T',)``."""
        load = self.load[some_steps(len(self.load))]
        times = layout.step_seconds(load, self.topology, self.models[:1])[0]
        return np.asarray(self.other_seconds + times)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A change, and the times of unseen steps without and with it.

    Parameters
    ----------
    redundant, dispatch
        Number of redundant slots, and name of the dispatcher.
    placement
        Plan with them.
    old, new
        Seconds of unseen steps without and with the change, by model, ``(M, T)``.
    twin_gains
        Gains of two plans that were made from half the steps each; empty for a single step.
    """

    redundant: int
    dispatch: str
    placement: Placement
    old: Floats
    new: Floats
    twin_gains: tuple[tuple[float, float], ...]


class Plans:
    """Plans from the earlier steps; each plan is made once.

    Parameters
    ----------
    fit
        Trace of the earlier steps.
    planner
        Function that makes the planner for a dispatcher, by name.
    """

    def __init__(self, fit: Trace, topology: Topology, planner: Callable[[str], Planner]) -> None:
        self._fit, self._topology, self._planner = fit, topology, planner
        self._made: dict[tuple[int, str], Placement] = {}
        self._twins: dict[int, list[Placement]] = {}

    def plan(self, redundant: int, dispatch: str) -> Placement:
        """Return the plan for a dispatcher, or for an even split if it knows no times."""
        told = dispatch if takes(DISPATCHERS[dispatch].kind, "cost") else "even"
        if (redundant, told) not in self._made:
            plan = self._planner(told).plan(self._problem(self._fit, redundant))
            self._made[redundant, told] = plan.placement
        return self._made[redundant, told]

    def twins(self, redundant: int) -> list[Placement]:
        """Plan on two halves of each kind of steps with the fastest planner, if possible."""
        if redundant not in self._twins:
            self._twins[redundant] = [
                Greedy().plan(self._problem(half, redundant)).placement for half in self._halves
            ]
        return self._twins[redundant]

    @cached_property
    def _halves(self) -> list[Trace]:
        # Earlier and later half, so that a request, which lasts several steps, is in one of them.
        kinds = step_kinds(self._fit)
        order = np.argsort(kinds, kind="stable")
        _, start, size = np.unique(kinds[order], return_index=True, return_counts=True)
        place = np.arange(len(kinds)) - np.repeat(start, size)
        steps = np.flatnonzero(loaded_steps(self._fit))[order]
        earlier = place < np.repeat(size // 2, size)
        halves = [np.sort(steps[is_in]) for is_in in (earlier, ~earlier)]
        return [self._fit.select(steps=half) for half in halves] if len(halves[0]) else []

    def _problem(self, part: Trace, redundant: int) -> Problem:
        return Problem(part, self._topology, part.num_experts + redundant)


def attempt(
    bench: Bench,
    plans: Plans,
    judge: Dispatcher,
    before: Floats,
    *,
    redundant: int,
    dispatch: str,
) -> Trial:
    """Plan and time one change of a layout whose steps take ``before``, ``(M, T)``."""
    placement = plans.plan(redundant, dispatch)
    some = before[0, some_steps(before.shape[1])]
    twins = [
        gain(some, bench.some_times(Layout(placement=twin, dispatch=judge)))
        for twin in plans.twins(redundant)
    ]
    return Trial(
        redundant=redundant,
        dispatch=dispatch,
        placement=placement,
        old=before,
        new=bench.time(Layout(placement=placement, dispatch=judge)),
        twin_gains=tuple(zip(twins[::2], twins[1::2], strict=True)),
    )


def robust_for(cost: RankCost, step_assignments: float | None) -> Callable[[str], Planner]:
    """Return the default planner for each dispatcher."""
    return lambda dispatch: Robust(dispatch=dispatch, cost=cost, step_assignments=step_assignments)


def judge_of(name: str, topology: Topology, cost: RankCost, top_k: int | None) -> Dispatcher:
    """Make the dispatcher of a name, with the cost if it can use one."""
    knows = name in DISPATCHERS and takes(DISPATCHERS[name].kind, "cost")
    return dispatcher(name, topology, cost=cost if knows else None, top_k=top_k)


def step_loads(trace: Trace, step_assignments: float | None, seed: int, *, each: int = 1) -> Floats:
    """Return the loads of all steps with load, ``(T, L, E)``.

    Parameters
    ----------
    step_assignments
        Number of assignments of a mean step in a layer. Every row then becomes a step of about that
        size, drawn at random from the row's shares, with the noise of its size. ``None`` takes the
        rows as steps.
    seed
        Random seed.
    each
        Number of steps drawn from each row, one after the other.
    """
    load = trace.counts[loaded_steps(trace)].astype(np.float64)
    if not len(load):
        raise EquipoiseError(
            "The steps to forecast on have no load; record more traffic, or hold out more steps "
            f"({argument('hold_out')})."
        )
    if step_assignments is not None:
        load = with_mean_step(load, step_assignments)
    if load.sum(axis=-1).max() >= TOO_MUCH_LOAD:
        raise EquipoiseError(
            "A layer has 2**53 assignments or more in a step; give the counts of one step, or "
            "scale them down."
        )
    return load if step_assignments is None else _drawn(np.repeat(load, each, axis=0), seed)


def _drawn(load: Floats, seed: int) -> Floats:
    """Draw steps of about these sizes at random from their shares."""
    total = np.rint(load.sum(axis=-1)).astype(np.int64)
    recorded = load.sum(axis=-1, keepdims=True)
    even = np.full_like(load, 1 / load.shape[-1])  # shares of layers without load, unused
    shares = np.divide(load, recorded, out=even, where=recorded > 0)
    drawn = np.random.default_rng(seed).multinomial(total, shares)
    return drawn.astype(np.float64)


def some_steps(num_steps: int) -> NDArray[np.int64]:
    """Choose evenly spaced positions of some steps, or all if there are few."""
    return np.unique(np.linspace(0, num_steps - 1, _SOME_STEPS).astype(np.int64))
