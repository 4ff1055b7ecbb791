"""Serving in time: steps are served one after the other while a policy has experts moved.

    policy = controlled(conditions, "minmax", Settings(window=100, update_interval=200), ...)
    result = replay(steps, Layout(placement=plan, dispatch=judge), policy, conditions)
    result.seconds, result.imbalance, result.moves

Each step is served with the map in force. Then the policy receives the loads of that step and may
have layers moved. While the policy plans, the old map serves. Transfers take time and slow steps
down; a layer serves its new row from the step after its experts have arrived. A policy only knows
steps that were served, never later ones. Equal arguments give equal results, and no clock is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.checks import check_count, check_number, check_type, check_whole
from equipoise.control.advisor import GatedRepair
from equipoise.control.cadence import layers_by_step
from equipoise.control.controller import Action, Controller, Report
from equipoise.control.findings import Advisor, Failure, Finding, said
from equipoise.control.settings import Settings
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError
from equipoise.migration import diff, with_slots
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.plan.result import Planner
from equipoise.plan.weigh.gate import Gate
from equipoise.simulate.expert_time import ComputeModel, Layout
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Planned = TypeVar("Planned")

_LONGEST = 1e6  # seconds


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The server, and the cost of moving experts on it.

    Parameters
    ----------
    topology
        Ranks; their links determine how long transfers take.
    model
        Time model of a step, of the experts alone or of the whole step.
    expert_bytes
        Bytes of all tensors of one expert in one layer, scales included.
    interference
        Serving seconds lost for each second of transfers, 0 to 1; see ``Gate``.
    stall_seconds
        Seconds for which serving stops at each change of the map.
    other_seconds
        Seconds of a step in addition to those that the model counts.
    """

    topology: Topology
    model: ComputeModel
    expert_bytes: int
    interference: float
    stall_seconds: float = 0.0
    other_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_type("topology", self.topology, Topology)
        check_whole("expert_bytes", self.expert_bytes)
        check_number("interference", self.interference, low=0, high=1)
        for name in ("stall_seconds", "other_seconds"):
            check_number(name, getattr(self, name), low=0, high=_LONGEST)


@dataclass(frozen=True, eq=False, kw_only=True)
class Served:
    """A step that was served.

    Parameters
    ----------
    counts
        Assignments of each expert in the step, ``(L, E)``.
    imbalance
        Imbalance of the step, mean over layers with load.
    now
        Seconds from the start of serving to the end of the step.
    arrived
        Rows whose experts arrived during the step; the next step is served with them.
    """

    counts: NDArray[np.integer]
    imbalance: float
    now: float
    arrived: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Move:
    """Rows of the map to change next, together.

    Parameters
    ----------
    rows, slots
        Rows, and the new experts of their slots, ``(len(rows), S)``.
    begins
        Flag that a change of the map begins with these rows.
    background
        Flag that serving continues meanwhile; otherwise it waits.
    """

    rows: tuple[int, ...]
    slots: Ints
    begins: bool
    background: bool


class Decider(Protocol):
    """A policy at work."""

    def after(self, step: Served, /) -> Move | None:
        """Return the rows to move after this step; ``None`` while other rows are being moved."""
        ...


class Policy(Protocol):
    """A rule that decides when the map changes, and to what."""

    def start(self, placement: Placement, conditions: Conditions, /) -> Decider:
        """Start the policy with this placement."""
        ...


@dataclass(frozen=True)
class Stay:
    """The policy of a map that never changes."""

    def start(self, _placement: Placement, _conditions: Conditions, /) -> Decider:
        """Start a decider that moves nothing."""
        return self

    def after(self, _step: Served, /) -> None:
        """Move nothing."""


@dataclass(frozen=True, kw_only=True)
class Replan:
    """The policy of engines: make a new map from the sum of the last steps, and move to it.

    Parameters
    ----------
    interval
        Number of steps from one plan to the next, or from the end of a change if that is later.
    window
        Number of latest steps whose loads are summed.
    above
        Mean imbalance of the window from which a plan is made; ``None`` for a plan at every
        interval.
    planner
        Planner of the new map.
    plan_seconds
        Seconds that a plan takes; the old map serves meanwhile.
    layers_per_step
        Number of layers that move together; ``None`` for all.
    background
        Flag that serving continues while experts move; otherwise it waits.
    """

    interval: int
    window: int
    above: float | None = None
    planner: Planner = field(default_factory=Greedy)
    plan_seconds: float = 0.0
    layers_per_step: int | None = 1
    background: bool = True

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        check_count("window", self.window)
        if self.above is not None:
            check_number("above", self.above, low=1, high=_LONGEST)
        if self.layers_per_step is not None:
            check_count("layers_per_step", self.layers_per_step)
        check_number("plan_seconds", self.plan_seconds, low=0, high=_LONGEST)

    def start(self, placement: Placement, conditions: Conditions) -> Decider:
        """Start with the first plan due after one interval."""
        return _Replanner(self, placement, conditions.topology)


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """The controller that also runs live, with an advisor.

    Parameters
    ----------
    settings
        Settings that decide when it looks at the loads, and how much it moves at a time.
        ``wait_steps`` counts steps as in live serving: a plan that takes longer is given up.
    advisor
        Advisor that answers the controller's questions.
    plan_seconds
        Seconds that a plan takes; a look at the loads without a plan takes none.
    """

    settings: Settings
    advisor: Advisor
    plan_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_type("settings", self.settings, Settings)
        check_number("plan_seconds", self.plan_seconds, low=0, high=_LONGEST)

    def start(self, placement: Placement, conditions: Conditions) -> Decider:
        """Start a controller that serves this placement."""
        return _ControllerAtWork(self, placement, conditions.expert_bytes)


def controlled(
    conditions: Conditions,
    dispatch: str | Dispatcher,
    settings: Settings,
    *,
    dwell_steps: float,
    delay_steps: float = 0.0,
    plan_seconds: float = 0.0,
    confidence: float = 0.95,
    repair: Mapping[str, Any] | None = None,
    top_k: int | None = None,
) -> Controlled:
    """Make our controller with ``GatedRepair``, whose gate uses these conditions.

    Parameters
    ----------
    dwell_steps, delay_steps, confidence
        Fields of ``Gate``.
    repair
        Limits on a plan: fields of ``Repair`` by name.
    top_k
        Number of choices per token, for the noise floor; ``None`` if unknown.
    """
    gate = Gate(
        cost=conditions.model.planning_cost,
        expert_bytes=conditions.expert_bytes,
        dwell_steps=dwell_steps,
        stall_seconds=conditions.stall_seconds,
        interference=conditions.interference if settings.background else 1.0,
        delay_steps=delay_steps,
        dispatch=dispatch,
        confidence=confidence,
    )
    advisor = GatedRepair(topology=conditions.topology, gate=gate, repair=repair or {}, top_k=top_k)
    return Controlled(settings=settings, advisor=advisor, plan_seconds=plan_seconds)


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrival:
    """Rows of the map that took effect.

    Parameters
    ----------
    step
        First step served with the rows.
    rows, slots
        Rows, and the new experts of their slots, ``(len(rows), S)``.
    moves
        Number of slots whose content changed.
    moved_bytes
        Bytes that were sent between ranks.
    """

    step: int
    rows: tuple[int, ...]
    slots: Ints
    moves: int
    moved_bytes: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Replay:
    """The steps as they were served.

    Parameters
    ----------
    seconds
        Seconds of each step, moves and stalls included, ``(T,)``.
    lost
        Part of ``seconds`` that moves and stalls took, ``(T,)``.
    imbalance
        Imbalance of each step, mean over layers with load, ``(T,)``.
    arrivals
        Changes of the map that took effect, with their steps.
    changes
        Steps before which a change of the map began.
    placement
        Map in force at the end.
    """

    seconds: Floats
    lost: Floats
    imbalance: Floats
    arrivals: tuple[Arrival, ...]
    changes: tuple[int, ...]
    placement: Placement

    @property
    def moves(self) -> int:
        """Number of slots whose content changed, all arrivals together."""
        return sum(arrival.moves for arrival in self.arrivals)

    @property
    def moved_bytes(self) -> int:
        """Bytes that were sent between ranks."""
        return sum(arrival.moved_bytes for arrival in self.arrivals)


def replay(steps: Trace, start: Layout, policy: Policy, conditions: Conditions) -> Replay:
    """Serve steps in order, starting from a layout, and let a policy move experts.

    Parameters
    ----------
    steps
        Assignments of each step, in order of time. Each row must be a single step: a sum of several
        steps would count as one large step.

    Raises
    ------
    EquipoiseError
        A layout of other layers, experts or ranks, and whatever the policy's planner refuses.
    """
    _check_fits(steps, start, conditions.topology)
    decider = policy.start(start.placement, conditions)
    layout, transfer = start, None
    seconds, lost, balance = np.zeros((3, steps.num_steps))
    arrivals, changes, now = [], [], 0.0
    for t, counts in enumerate(steps.counts):
        seconds[t], balance[t] = _serve(layout, counts, conditions)
        arrived: tuple[int, ...] = ()
        if transfer is not None:
            lost[t] = transfer.go_on(seconds[t])
            seconds[t] += lost[t]
            if transfer.done:
                arrivals.append(transfer.arrival(t + 1))
                arrived, layout = transfer.move.rows, replace(layout, placement=transfer.target)
                transfer = None
        now += seconds[t]
        move = decider.after(Served(counts=counts, imbalance=balance[t], now=now, arrived=arrived))
        if move is not None:
            assert transfer is None, "a policy moves rows while others are under way"
            transfer = _Transfer(move, layout.placement, conditions)
            if move.begins:
                changes.append(t + 1)
    return Replay(
        seconds=seconds,
        lost=lost,
        imbalance=balance,
        arrivals=tuple(arrivals),
        changes=tuple(changes),
        placement=layout.placement,
    )


def online_seconds(
    steps: Trace, start: Layout, policy: Controlled, conditions: Conditions
) -> Floats:
    """Return the seconds of each step with our controller at work, moves included, ``(T,)``."""
    return replay(steps, start, policy, conditions).seconds


def _serve(
    layout: Layout, counts_LE: NDArray[np.integer], conditions: Conditions
) -> tuple[float, float]:
    """Compute the seconds of a step without moves, and its imbalance."""
    slots = layout.slot_loads(counts_LE[None].astype(np.float64))
    topology = conditions.topology
    seconds = float(conditions.model.step_seconds(slots, topology)[0])
    loads = slots.reshape(-1, topology.num_ranks, slots.shape[-1] // topology.num_ranks)
    loads = loads.sum(axis=-1)
    loaded = loads.any(axis=-1)
    balance = float(imbalance(loads[loaded]).mean()) if loaded.any() else 1.0
    return conditions.other_seconds + seconds, balance


class _Transfer:
    """A transfer of rows under way."""

    def __init__(self, move: Move, placement: Placement, conditions: Conditions) -> None:
        self.move = move
        rows = list(move.rows)
        slots = placement.slots.copy()
        slots[rows] = move.slots
        self.target = with_slots(placement, slots)
        self._migration = diff(placement.rows(rows), self.target.rows(rows), conditions.topology)
        self._bytes = conditions.expert_bytes
        self._left = self._migration.seconds(conditions.expert_bytes)
        self._stall = conditions.stall_seconds if move.begins else 0.0
        self._interference = conditions.interference if move.background else 1.0

    @property
    def done(self) -> bool:
        """Whether all rows have arrived."""
        return self._left <= 0

    def go_on(self, seconds: float) -> float:
        """Continue during a step of this length; return the seconds that this adds to it."""
        stall, self._stall = self._stall, 0.0
        share = self._interference
        # Transfers go on in the time they add to the step as well.
        progress = self._left if share >= 1 else min(self._left, seconds / (1 - share))
        self._left -= progress
        return stall + share * progress

    def arrival(self, step: int) -> Arrival:
        """Return the rows that have arrived, in force from this step on."""
        return Arrival(
            step=step,
            rows=self.move.rows,
            slots=self.move.slots,
            moves=self._migration.moves,
            moved_bytes=self._migration.bytes(self._bytes),
        )


class _Pending(Generic[Planned]):
    """A planner's answer, which becomes available after the planning time."""

    def __init__(self, plan_seconds: float) -> None:
        self._seconds = plan_seconds
        self._answer: Planned | None = None
        self._ready = 0.0

    def put(self, answer: Planned, now: float, *, at_once: bool = False) -> None:
        """Keep the answer to the present question."""
        self._answer, self._ready = answer, now if at_once else now + self._seconds

    def drop(self) -> None:
        """Discard the answer."""
        self._answer = None

    @property
    def waits(self) -> bool:
        """Whether there is an answer that was not taken yet."""
        return self._answer is not None

    def take(self, now: float) -> Planned | None:
        """Return the answer once, if its time has come."""
        if self._answer is None or now < self._ready:
            return None
        answer, self._answer = self._answer, None
        return answer


class _Replanner:
    """``Replan`` at work."""

    def __init__(self, policy: Replan, placement: Placement, topology: Topology) -> None:
        self._policy, self._topology = policy, topology
        self._placement = placement
        self._recent: deque[Served] = deque(maxlen=policy.window)
        self._pending: _Pending[Placement] = _Pending(policy.plan_seconds)
        self._moves: deque[Move] = deque()
        self._waited = 0  # steps since the last plan or change

    def after(self, step: Served) -> Move | None:
        """Return the next rows of a change, or those of a new plan if it is time for one."""
        self._recent.append(step)
        if self._moves:
            return self._next() if step.arrived else None
        if not self._pending.waits:
            self._waited += 1
            if self._waited < self._policy.interval or not self._is_wanted:
                return None
            self._pending.put(self._plan(), step.now)
        target = self._pending.take(step.now)
        return None if target is None else self._begin(target)

    @property
    def _is_wanted(self) -> bool:
        above = self._policy.above
        return above is None or float(np.mean([s.imbalance for s in self._recent])) > above

    def _plan(self) -> Placement:
        summed = np.sum([step.counts for step in self._recent], axis=0)
        problem = Problem(
            summed,
            self._topology,
            self._placement.num_slots,
            layer_ids=self._placement.layer_ids,
        )
        return self._policy.planner.plan(problem).placement

    def _begin(self, target: Placement) -> Move | None:
        self._waited = 0
        rows = np.flatnonzero((target.slots != self._placement.slots).any(axis=1)).tolist()
        self._placement = target
        self._moves.extend(
            Move(
                rows=group,
                slots=target.slots[list(group)],
                begins=not i,
                background=self._policy.background,
            )
            for i, group in enumerate(_groups(rows, self._policy.layers_per_step))
        )
        return self._moves[0] if self._moves else None

    def _next(self) -> Move | None:
        """Return the rows after those that have just arrived."""
        self._moves.popleft()
        self._waited = 0
        return self._moves[0] if self._moves else None


class _ControllerAtWork:
    """``Controlled`` at work: the counterpart of the runtime's ``Balancer``."""

    def __init__(self, policy: Controlled, placement: Placement, expert_bytes: int) -> None:
        self._policy, self._settings = policy, policy.settings
        self._layer_ids = placement.layer_ids
        self._controller = Controller(placement, policy.settings, expert_bytes=max(expert_bytes, 1))
        self._recent: deque[NDArray[np.integer]] = deque(maxlen=policy.settings.window)
        self._pending: _Pending[Finding | Failure] = _Pending(policy.plan_seconds)
        self._version = 0

    def after(self, step: Served) -> Move | None:
        """Return the rows that the controller orders to move."""
        self._recent.append(step.counts)
        moved = tuple(self._layer_ids[row] for row in step.arrived)
        order = self._controller.step(Report(answer=self._pending.take(step.now), moved=moved))
        begins, self._version = order.version > self._version, order.version
        match order.action:
            case Action.LOOK:
                self._look(step.now)
            case Action.ABORT:
                self._pending.drop()
            case Action.MOVE:
                assert order.slots is not None
                return Move(
                    rows=tuple(self._layer_ids.index(layer) for layer in order.layers),
                    slots=order.slots,
                    begins=begins,
                    background=self._settings.background,
                )
        return None

    def _look(self, now: float) -> None:
        question = self._controller.question
        window = Trace(counts=np.stack(self._recent), layer_ids=self._layer_ids)
        try:
            answer: Finding | Failure = self._policy.advisor(question, window)
        except EquipoiseError as error:
            answer = Failure(number=question.number, text=said(error))
        planned = isinstance(answer, Finding) and answer.proposal is not None
        self._pending.put(answer, now, at_once=not planned)


def _groups(rows: list[int], size: int | None) -> Iterable[tuple[int, ...]]:
    """Group the rows that move together, in TensorRT-LLM's order."""
    if not rows:
        return []
    steps = layers_by_step(len(rows), min(size or len(rows), len(rows)))
    return [tuple(rows[i] for i in step) for step in steps if step]


def _check_fits(steps: Trace, start: Layout, topology: Topology) -> None:
    check_type("steps", steps, Trace)
    placement = start.placement
    have = (placement.layer_ids, placement.num_ranks)
    if have != (steps.layer_ids, topology.num_ranks) or placement.num_experts < steps.num_experts:
        raise EquipoiseError(
            f"The map has {placement.num_layers} layers of {placement.num_experts} experts on "
            f"{placement.num_ranks} ranks, the steps {steps.num_layers} layers of "
            f"{steps.num_experts} experts for {topology.num_ranks} ranks; give a map of the same."
        )
