"""A trial of our controller on the unseen steps in order of time, planning and moves included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_whole
from equipoise.control.settings import Settings
from equipoise.errors import EquipoiseError, argument
from equipoise.migration import with_slots
from equipoise.simulate.expert_time import ComputeModel, Layout
from equipoise.simulate.online import Conditions, Replay, controlled, replay
from equipoise.simulate.trial import step_loads
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

LEAST_STEPS = 32
"""Least number of steps to serve; in fewer a controller can hardly look and act."""

_MOST_STEPS = 256  # largest number of steps drawn, to save time
_LOOKS = 16


@dataclass(frozen=True, kw_only=True)
class Online:
    """The cost of planning and moving while our controller serves.

    Parameters
    ----------
    expert_bytes, interference, stall_seconds
        Fields of ``Conditions``.
    plan_seconds
        Seconds that a plan takes, in which the old map serves.
    """

    expert_bytes: int
    interference: float
    stall_seconds: float
    plan_seconds: float

    def __post_init__(self) -> None:
        check_whole("expert_bytes", self.expert_bytes, low=1)
        check_number(argument("interference"), self.interference, low=0, high=1)
        for name in ("stall_seconds", "plan_seconds"):
            check_number(argument(name), getattr(self, name), low=0, high=1e6)


@dataclass(frozen=True, eq=False, kw_only=True)
class InTime:
    """The unseen steps in order of time, and the models that time them.

    Parameters
    ----------
    steps
        Steps that are served, the same number for each recorded row.
    each
        Number of steps for each recorded row.
    models
        Time models: the one that the controller decides by, then those that may be the true one.
    """

    steps: Trace
    each: int
    topology: Topology
    models: tuple[ComputeModel, ...]
    other_seconds: float
    online: Online

    @classmethod
    def of(
        cls,
        held: Trace,
        step_assignments: float | None,
        seed: int,
        *,
        topology: Topology,
        models: tuple[ComputeModel, ...],
        other_seconds: float,
        online: Online,
    ) -> InTime:
        """Make the steps to serve: the recorded steps, or steps of the size asked for.

        Each row is served for about the number of steps that it sums. All together there are enough
        steps for a controller to act in, and few enough to be served quickly.

        Raises
        ------
        EquipoiseError
            Too few steps.
        """
        each = _steps_of_a_row(held, step_assignments)
        load = step_loads(held, step_assignments, seed, each=each)
        if len(load) < max(LEAST_STEPS, 2 * each):
            raise EquipoiseError(
                f"{len(load) // each} unseen steps are too few for a controller to see and act in, "
                f"it takes {LEAST_STEPS} or more; record more steps or leave {argument('online')} "
                f"out. If rows sum many steps, give {argument('step_assignments')}."
            )
        return cls(
            steps=Trace(counts=load.astype(np.int64), layer_ids=held.layer_ids, top_k=held.top_k),
            each=each,
            topology=topology,
            models=models,
            other_seconds=other_seconds,
            online=online,
        )

    @property
    def interval(self) -> int:
        """Number of steps from one look at the loads to the next, and number whose loads count."""
        return max(8, self.steps.num_steps // _LOOKS)

    @property
    def conditions(self) -> Conditions:
        """Return the conditions of serving: the server, and the cost of moving."""
        return Conditions(
            topology=self.topology,
            model=self.models[0],
            expert_bytes=self.online.expert_bytes,
            interference=self.online.interference,
            stall_seconds=self.online.stall_seconds,
            other_seconds=self.other_seconds,
        )

    def static(self, layout: Layout) -> Floats:
        """Compute the seconds of a map that stays, mean over the steps of each row, ``(M, T)``."""
        return self._by_row(self._seconds(layout, slice(None)))

    def controlled(self, start: Layout, seed: int) -> tuple[Floats, int]:
        """Compute the same with our controller, starting from a map, and the slots it moved.

        The controller decides by the first model, whichever is the true one.
        """
        assert start.dispatch is not None
        policy = controlled(
            self.conditions,
            start.dispatch,
            Settings(window=self.interval, update_interval=self.interval, warm_up_steps=0),
            dwell_steps=self.steps.num_steps,
            plan_seconds=self.online.plan_seconds,
            repair={"seed": seed},
            top_k=self.steps.top_k,
        )
        result = replay(self.steps, start, policy, self.conditions)
        return self._by_row(self.timed(result, start)), result.moves

    def timed(self, result: Replay, start: Layout) -> Floats:
        """Return the seconds of a replay's steps by each model, ``(M, steps)``."""
        parts, layout, since = [], start, 0
        for arrival in result.arrivals:
            parts.append(self._seconds(layout, slice(since, arrival.step)))
            slots = layout.placement.slots.copy()
            slots[list(arrival.rows)] = arrival.slots
            layout = replace(layout, placement=with_slots(layout.placement, slots))
            since = arrival.step
        parts.append(self._seconds(layout, slice(since, None)))
        return np.concatenate(parts, axis=1) + result.lost

    def _seconds(self, layout: Layout, steps: slice) -> Floats:
        load = self.steps.counts[steps].astype(np.float64)
        if not len(load):
            return np.zeros((len(self.models), 0))
        return self.other_seconds + layout.step_seconds(load, self.topology, self.models)

    def _by_row(self, seconds: Floats) -> Floats:
        return np.asarray(seconds.reshape(len(seconds), -1, self.each).mean(axis=-1))


def _steps_of_a_row(held: Trace, step_assignments: float | None) -> int:
    """Choose the number of steps to draw from each recorded row."""
    if step_assignments is None:
        return 1
    sizes: Sequence[float] = held.counts.sum(axis=-1).mean(axis=-1)
    loaded = [size for size in sizes if size]
    rows = max(len(loaded), 1)
    summed = round(float(np.mean(loaded or [1])) / step_assignments)
    return max(1, -(-LEAST_STEPS // rows), min(summed, _MOST_STEPS // rows))
