"""Whole steps by a machine, for plans, budgets and moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Dispatcher
from equipoise.migration import Migration
from equipoise.placement import Placement
from equipoise.plan.scores import WholeSteps
from equipoise.plan.study import Study
from equipoise.plan.weigh.gate import Decision, Gate, step_loads
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.machine import Machine
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]


def compare_whole(
    before: Layout, after: Layout, load: Floats, topology: Topology, machine: Machine
) -> WholeSteps:
    """Time the same steps, ``(T, L, E)``, with two layouts."""
    old, new = (_seconds(layout, load, topology, machine) for layout in (before, after))
    return WholeSteps(before=old, after=new, counts=machine.counts)


def judged_whole(
    study: Study, recording: Trace, current: Placement | None, machine: Machine
) -> Study:
    """Let whole steps decide a study: those held out, or all if none were."""
    scores, topology = study.scores, study.plan.problem.topology
    before = Layout.unbalanced(recording, topology.num_ranks)
    if current is not None:
        before = Layout(placement=current, dispatch=scores.dispatcher)
    after = Layout(placement=study.plan.placement, dispatch=scores.dispatcher)
    load = scores.fit if scores.held is None else scores.held
    whole = compare_whole(before, after, load, topology, machine)
    return replace(study, scores=replace(scores, whole=whole))


def weigh_whole(
    gate: Gate, migration: Migration, steps: Trace, machine: Machine
) -> tuple[Decision, WholeSteps]:
    """Decide by whole steps whether a move pays, and compare them; see ``Gate.decide``."""
    topology, load = migration.topology, step_loads(steps, migration.new)
    judge = gate.runs(topology)
    old, new = (Layout(placement=p, dispatch=judge) for p in (migration.old, migration.new))
    found = compare_whole(old, new, load, topology, machine)
    fewer = old.busiest(load) - new.busiest(load)
    return gate.weigh(migration, found.before[0] - found.after[0], fewer), found


def layer_seconds(
    machine: Machine, topology: Topology, dispatch: Dispatcher
) -> Callable[[Floats, Placement], Floats]:
    """Return a function that times each layer of whole steps, and of it the slowest experts.

    It takes the assignments of the steps, ``(T, L, E)``, and a placement, and returns ``(2, T, L)``
    seconds.
    """

    def seconds(load: Floats, placement: Placement) -> Floats:
        layout = Layout(placement=placement, dispatch=dispatch)
        by_layer = [
            _divided(slots.reshape(-1, 1, slots.shape[-1]), topology, machine)
            for slots in layout.blocks(load)
        ]
        return np.concatenate(by_layer, axis=1).reshape(2, *load.shape[:2])

    return seconds


def _seconds(layout: Layout, load: Floats, topology: Topology, machine: Machine) -> Floats:
    """Time steps, and of them the slowest ranks' experts, ``(2, T)``."""
    blocks = [_divided(slots, topology, machine) for slots in layout.blocks(load)]
    return np.concatenate(blocks, axis=1)


def _divided(slot_load: Floats, topology: Topology, machine: Machine) -> Floats:
    parts = machine.parts(slot_load, topology)
    return np.stack([parts.total, parts.experts + parts.rereading + parts.wait])
