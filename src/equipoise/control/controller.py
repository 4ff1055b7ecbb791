"""The controller: when to look at the loads, when to plan, and which layers move in which step.

It is a state machine on rank 0, which makes one ``step`` per forward pass. The resulting order is
broadcast, and every rank, rank 0 included, acts on it::

    order = broadcast(controller.step(report) if rank == 0 else None)
    follower.follow(order)                      # refuses an order out of turn
    match order.action:
        case Action.REHEARSE:                   # rank 0 asks about made-up loads
            if rank == 0: planner.rehearse(controller.question, settings.window)
        case Action.LOOK:                       # all ranks add up their counts; rank 0 asks
            window = recorder.to_trace(group)
            if rank == 0: planner.ask(controller.question, window)
        case Action.MOVE: ...                   # begin moving order.layers to order.slots
        case Action.COMMIT: ...                 # exchange a layer if it has arrived everywhere
        case Action.ABORT: ...                  # drop the question or the transfer under way

The next report says what came of it. The controller does not talk to other processes, read a clock
or draw random numbers, so equal reports give equal orders.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number
from equipoise.control.cadence import layers_by_step
from equipoise.control.findings import Failure, Finding, Question
from equipoise.control.settings import Settings
from equipoise.control.waiting import Wait
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.migration import with_slots
from equipoise.placement import Placement

Ints = NDArray[np.int64]

_LONGEST_BACK_OFF = 64  # update intervals
_REHEARSALS = 2  # the first starts and compiles the planner, the second measures its time
_ANSWER_EVERY = 4  # steps between two checks whether the planner, or a user, has something to say


class State(Enum):
    """The states of the controller. Each leads to the next, and the last to ``OBSERVE``.

    ``PLAN`` and ``MOVE`` lead back to ``OBSERVE`` if nothing is to move or a move fails. ``SETTLE``
    leads to ``MOVE`` if a change is undone.
    """

    WARM_UP = "warm-up"
    OBSERVE = "observe"
    PLAN = "plan"
    MOVE = "move"
    SETTLE = "settle"


class Action(Enum):
    """The action of all ranks after a forward pass."""

    NOTHING = "nothing"
    REHEARSE = "rehearse"
    LOOK = "look"
    MOVE = "move"
    COMMIT = "commit"
    ABORT = "abort"
    SETTLE = "settle"


class Outcome(Enum):
    """The outcome of an attempt to balance."""

    KEPT = "kept"
    UNPROVEN = "unproven"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, eq=False, kw_only=True)
class Order:
    """An order: what every rank does next.

    Parameters
    ----------
    number
        Number of the step, counted from 1 without gaps.
    action, state
        Action of the ranks, and state of the controller from now on.
    version
        Version of the placement that is moved to, or else served: the number of changes of the map.
    layers, slots
        Layers to move, by the model's numbers, and the new content of their slots,
        ``(len(layers), S)``.
    serving
        Checksum of the placement that all ranks serve when they receive the order.
    outcome
        Outcome of the attempt that ended with this order, if one did.
    note
        Sentence for the log; empty if nothing of interest happened.
    quiet_until
        Number of the next order that may ask for an action; orders before it can be skipped. This
        holds if no answer of the planner is reported before that step.
    wait_steps
        Number of steps after which an answer of the planner is overdue.
    """

    number: int
    action: Action
    state: State
    version: int
    serving: str
    layers: tuple[int, ...] = ()
    slots: Ints | None = None
    outcome: Outcome | None = None
    note: str = ""
    quiet_until: int = 0
    wait_steps: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """A report: what has happened since the last step.

    Parameters
    ----------
    answer
        Answer of the planner, or a failure to count the loads that it was to look at.
    moved
        Layers, by the model's numbers, that now serve the slots of the last ``MOVE`` on all ranks.
    failures
        Sentences on why layers did not move as ordered. They still serve their old slots.
    """

    answer: Finding | Failure | None = None
    moved: tuple[int, ...] = ()
    failures: tuple[str, ...] = ()


class Controller:
    """The state machine that makes the orders.

    Parameters
    ----------
    placement
        Placement that is served.
    settings
        Settings that say when to look and plan, and how much to move at a time.
    expert_bytes
        Size of all tensors of one expert in one layer, for ``max_bytes_per_step``.
    rehearse
        Flag to rehearse a plan during the warm-up, which then lasts until the planner has answered.
        It has no effect without a warm-up, or if nothing may ever move.
    on_demand
        Flag to allow ``ask``. All ranks then hear every fourth order while nothing is due, else
        none.

    Raises
    ------
    EquipoiseError
        A ``max_bytes_per_step`` without ``expert_bytes``.
    """

    def __init__(
        self,
        placement: Placement,
        settings: Settings,
        *,
        expert_bytes: int | None = None,
        rehearse: bool = False,
        on_demand: bool = False,
    ) -> None:
        if expert_bytes is not None:
            check_number("expert_bytes", expert_bytes, low=1, high=math.inf)
        elif settings.max_bytes_per_step is not None:
            raise EquipoiseError("max_bytes_per_step needs the bytes of an expert; give both.")
        self._settings = settings
        self._expert_bytes = expert_bytes or 0
        self._serve(placement)
        self._before: Placement | None = None  # placement before the last change, until judged
        self._state = State.WARM_UP
        self._number = 0
        self._version = 0
        self._next_look = settings.warm_up_steps + settings.window
        self._on_demand, self._is_asked = on_demand, False
        self._soonest = self._next_look  # step of the next look, if one is asked for
        self._question: Question | None = None
        self._wait = Wait(settings)
        self._alarm = _Alarm(settings)
        self._move: _Move | None = None
        self._finished = settings.layers_per_step == 0
        rehearse &= settings.warm_up_steps > 0 and not self._finished
        self._rehearsals = _REHEARSALS if rehearse else 0  # number that is left

    @property
    def state(self) -> State:
        """Current state."""
        return self._state

    @property
    def placement(self) -> Placement:
        """Placement that all ranks serve, with the layers that have moved."""
        return self._placement

    @property
    def question(self) -> Question:
        """Question for the planner, after an order to look or to rehearse.

        Raises
        ------
        EquipoiseError
            No open question.
        """
        if self._question is None:
            raise EquipoiseError("There is no question; ask after an order to look.")
        return self._question

    def ask(self) -> None:
        """Look at the loads as soon as a whole window has been counted since the last look.

        Raises
        ------
        EquipoiseError
            A controller that was made without ``on_demand``.
        """
        if not self._on_demand:
            raise EquipoiseError(
                "This controller looks at the loads only when that is due; make it with "
                "on_demand=True to ask for a look."
            )
        self._is_asked = True

    def step(self, report: Report | None = None) -> Order:
        """Make the next order. This is fast: it never plans or waits.

        Raises
        ------
        EquipoiseError
            A report of moved layers that were not ordered to move.
        """
        report = report or Report()
        self._take(report.moved)
        self._number += 1
        at: dict[State, Callable[[Report], Order]] = {
            State.WARM_UP: self._warm_up,
            State.OBSERVE: self._observe,
            State.PLAN: self._plan,
            State.MOVE: self._go_on_moving,
            State.SETTLE: self._settle,
        }
        return at[self._state](report)

    def _warm_up(self, report: Report) -> Order:
        """Wait for the end of the warm-up, and of the planner's rehearsals."""
        note = ""
        if self._question is not None:
            answer = self._answer(report)
            if answer is None:
                return self._order()
            if isinstance(answer, Failure):
                self._rehearsals = 0
                note = f"Rehearsing a plan failed: {answer.text}"
                return self._order(Action.ABORT, outcome=Outcome.FAILED, note=note)
            if not self._rehearsals:
                note = self._wait.explained()
        if self._rehearsals:
            self._rehearsals -= 1
            return self._look(-math.inf, Action.REHEARSE)
        if self._number > self._settings.warm_up_steps:
            self._state = State.OBSERVE
        return self._order(note=note)

    def _observe(self, _report: Report) -> Order:
        if self._number < self._next_look and not self._is_wanted:
            return self._order()
        threshold = math.inf if self._finished else self._alarm.threshold(self._number)
        self._state = State.PLAN
        return self._look(threshold)

    @property
    def _is_wanted(self) -> bool:
        """Whether a look was asked for, and may be ordered in a step that all ranks hear."""
        is_heard = self._number % _ANSWER_EVERY == 0
        return self._is_asked and is_heard and self._number >= self._soonest

    def _plan(self, report: Report) -> Order:
        answer = self._answer(report)
        if answer is None:
            return self._order()
        if isinstance(answer, Failure):
            return self._give_up(Outcome.FAILED, answer.text, action=Action.ABORT)
        self._alarm.see(answer.sure_excess)
        if answer.proposal in (None, self._placement) or answer.predicted is None:
            return self._observe_again(note=_nothing_moves(answer.sure_excess))
        if not answer.predicted.move:
            return self._give_up(Outcome.REFUSED, answer.predicted.text)
        return self._start(answer.proposal, note=answer.predicted.text)

    def _go_on_moving(self, report: Report) -> Order:
        assert self._move is not None
        if report.failures:
            self._move = self._before = None
            return self._give_up(Outcome.FAILED, report.failures[0], action=Action.ABORT)
        if self._move.under_way:
            return self._order(Action.COMMIT)
        if self._move.steps:
            return self._next_layers()
        self._state = State.SETTLE
        self._next_look = self._number + self._settings.settle_steps
        self._move = None
        return self._order(Action.SETTLE)

    def _settle(self, report: Report) -> Order:
        if self._question is not None:
            answer = self._answer(report)
            return self._order() if answer is None else self._judge(answer)
        if self._number < self._next_look:
            return self._order()
        if self._before is None:  # an undone change is not judged
            return self._observe_again()
        return self._look(math.inf)

    def _judge(self, answer: Finding | Failure) -> Order:
        """Judge the last change, and undo it if it made things worse."""
        before, self._before = self._before, None
        assert before is not None
        if isinstance(answer, Failure) or answer.achieved is None:
            text = (
                answer.text
                if isinstance(answer, Failure)
                else "The planner did not compare the map with the one before it."
            )
            return self._give_up(Outcome.FAILED, text, action=Action.ABORT)
        self._finished |= self._settings.once
        self._alarm.see(answer.sure_excess)
        gain = answer.achieved
        note = f"The last move {gain.effect}."
        if gain.gain_low > 0:
            self._alarm.calm()
            return self._observe_again(Outcome.KEPT, note)
        if gain.gain_seconds >= 0:
            return self._give_up(Outcome.UNPROVEN, note)
        self._alarm.back_off(self._number)
        note = f"{note} It is undone."
        return self._start(before, outcome=Outcome.ROLLED_BACK, note=note, keep=False)

    def _look(self, plan_above: float, action: Action = Action.LOOK) -> Order:
        self._is_asked = False
        # A rehearsal in the warm-up brings the first look no closer.
        self._soonest = max(self._soonest, self._number + self._settings.window)
        self._question = Question(
            number=self._number,
            current=self._placement,
            previous=self._before,
            plan_above=plan_above,
        )
        return self._order(action)

    def _answer(self, report: Report) -> Finding | Failure | None:
        """Return the answer to the open question, or a failure if it is late; ignore others."""
        assert self._question is not None
        number, answer = self._question.number, report.answer
        taken = self._number - number
        if answer is None or answer.number != number:
            if taken <= self._wait.steps:
                return None
            answer = Failure(number=number, text=self._wait.give_up())
        elif isinstance(answer, Finding) and not self._rehearsals:  # a rehearsal includes the start
            self._wait.see(taken)
        self._question = None
        return answer

    def _start(
        self,
        target: Placement,
        *,
        outcome: Outcome | None = None,
        note: str = "",
        keep: bool = True,
    ) -> Order:
        """Begin to move to a placement; ``keep`` the old one, to compare it and perhaps return."""
        self._before = self._placement if keep else None
        self._move = _Move.plan(self._placement, target, self._settings.layers_per_step)
        self._version += 1
        self._state = State.MOVE
        return self._next_layers(outcome, note)

    def _next_layers(self, outcome: Outcome | None = None, note: str = "") -> Order:
        """Order the next layers to move, as soon as the limit on bytes allows."""
        move, limit = self._move, self._settings.max_bytes_per_step
        assert move is not None
        move.saved_bytes += limit or 0
        cost = self._expert_bytes * move.slots_that_change(self._placement, move.steps[0])
        if limit is not None and cost > move.saved_bytes:
            return self._order(outcome=outcome, note=note)
        move.saved_bytes -= cost
        rows = move.steps.popleft()
        layers = tuple(self._placement.layer_ids[row] for row in rows)
        move.under_way = set(layers)
        slots = move.target.slots[list(rows)]
        return self._order(Action.MOVE, layers=layers, slots=slots, outcome=outcome, note=note)

    def _take(self, moved: tuple[int, ...]) -> None:
        """Record that these layers have moved."""
        if not moved:
            return
        under_way = self._move.under_way if self._move else set()
        stray = sorted(set(moved) - under_way)
        if stray or self._move is None:
            raise EquipoiseError(f"Layers {format_ids(stray)} were not ordered to move.")
        under_way -= set(moved)
        rows = [self._placement.layer_ids.index(layer) for layer in moved]
        self._serve(_with_rows(self._placement, rows, self._move.target.slots[rows]))

    def _serve(self, placement: Placement) -> None:
        self._placement = placement
        self._serving = placement.checksum  # computed once, because every order contains it

    def _give_up(self, outcome: Outcome, note: str, *, action: Action = Action.NOTHING) -> Order:
        self._alarm.back_off(self._number)
        return self._observe_again(outcome, note, action)

    def _observe_again(
        self, outcome: Outcome | None = None, note: str = "", action: Action = Action.NOTHING
    ) -> Order:
        self._state = State.OBSERVE
        self._next_look = self._number + self._settings.update_interval
        return self._order(action, outcome=outcome, note=note)

    def _order(
        self,
        action: Action = Action.NOTHING,
        *,
        layers: tuple[int, ...] = (),
        slots: Ints | None = None,
        outcome: Outcome | None = None,
        note: str = "",
    ) -> Order:
        return Order(
            number=self._number,
            action=action,
            state=self._state,
            version=self._version,
            serving=self._serving,
            layers=layers,
            slots=slots,
            outcome=outcome,
            note=note,
            quiet_until=self._quiet_until,
            wait_steps=self._wait.usual,
        )

    @property
    def _quiet_until(self) -> int:
        """Return the number of the next order that may ask for an action."""
        if self._question is not None:
            asked = self._question.number
            waited = self._number - asked
            late = self._wait.steps + 1
            return asked + min(waited + _ANSWER_EVERY - waited % _ANSWER_EVERY, late)
        if self._state is State.WARM_UP:
            return self._settings.warm_up_steps + 1
        if self._state is State.OBSERVE and self._on_demand:
            return min(self._next_look, self._number + _ANSWER_EVERY - self._number % _ANSWER_EVERY)
        return self._next_look if self._state in (State.OBSERVE, State.SETTLE) else 0


def _nothing_moves(excess: float) -> str:
    """Return a sentence for the log on a look at the loads after which nothing moves."""
    if excess <= 0:
        return "Nothing moves: chance explains all of the imbalance."
    return f"Nothing moves: chance explains all of the imbalance except {excess:.3f}."


class Follower:
    """A rank's record of the orders: the last one, and the placement that it serves.

    Parameters
    ----------
    placement
        Placement that is served.
    """

    def __init__(self, placement: Placement) -> None:
        self._serve(placement)
        self._number = 0
        self._version = 0
        self._target: dict[int, Ints] = {}

    @property
    def placement(self) -> Placement:
        """Placement that this rank serves."""
        return self._placement

    @property
    def version(self) -> int:
        """Version of the last move that was ordered."""
        return self._version

    def follow(self, order: Order) -> None:
        """Take the next order.

        Raises
        ------
        EquipoiseError
            An order that is not the next, a version that goes back or jumps, or a move while
            another is under way. Nothing is changed then.
        """
        if order.number != self._number + 1:
            raise EquipoiseError(
                f"Order {order.number} came after order {self._number}; expected the next one. "
                "Every rank takes every order once, in turn."
            )
        if order.version - self._version not in (0, 1):
            raise EquipoiseError(
                f"An order of version {order.version} came to a rank at version {self._version}; "
                "expected the same or the next."
            )
        if order.action is Action.MOVE and self._target:
            raise EquipoiseError(
                f"Order {order.number} moves layers before layers "
                f"{format_ids(sorted(self._target))} have moved; report what was committed first."
            )
        self._number, self._version = order.number, order.version
        if order.action is Action.MOVE:
            assert order.slots is not None
            self._target = dict(zip(order.layers, order.slots, strict=True))
        elif order.action is Action.ABORT:
            self._target = {}

    def target(self) -> Placement:
        """Placement that is served once the layers under way have moved."""
        return self._with(tuple(self._target))

    def commit(self, layers: tuple[int, ...]) -> None:
        """Record that these layers serve the ordered slots from now on.

        Raises
        ------
        EquipoiseError
            Layers that were not ordered to move.
        """
        self._serve(self._with(layers))
        for layer in layers:
            del self._target[layer]

    def agrees(self, order: Order) -> bool:
        """Tell whether this rank serves the placement that rank 0 expects."""
        return self._serving == order.serving

    def _serve(self, placement: Placement) -> None:
        self._placement = placement
        self._serving = placement.checksum

    def _with(self, layers: tuple[int, ...]) -> Placement:
        stray = sorted(set(layers) - set(self._target))
        if stray:
            raise EquipoiseError(f"Layers {format_ids(stray)} were not ordered to move.")
        if not layers:
            return self._placement
        rows = [self._placement.layer_ids.index(layer) for layer in layers]
        return _with_rows(self._placement, rows, np.stack([self._target[i] for i in layers]))


class _Alarm:
    """The decision whether an excess is worth a plan, with two thresholds and a back-off.

    After an attempt without success, no plan is made for a time that doubles with every such
    attempt, unless the excess grows by more than the distance between the thresholds.
    """

    def __init__(self, settings: Settings) -> None:
        self._on, self._off = settings.excess_on, settings.excess_off
        self._interval = settings.update_interval
        self._raised = False
        self._last = 0.0
        self._failed = 0
        self._tolerated = -math.inf
        self._quiet_until = 0

    def threshold(self, number: int) -> float:
        """Return the excess from which to plan at this step."""
        level = self._off if self._raised else self._on
        if number >= self._quiet_until:
            return level
        return max(level, self._tolerated + self._on - self._off)

    def see(self, excess: float) -> None:
        """Record the excess."""
        self._last = excess
        self._raised = excess > (self._off if self._raised else self._on)
        if not self._raised:
            self.calm()

    def calm(self) -> None:
        """End the back-off: an attempt has helped, or nothing is wrong."""
        self._failed, self._quiet_until = 0, 0

    def back_off(self, number: int) -> None:
        """Back off after an attempt without success, twice as long as the last time."""
        wait = min(2**self._failed, _LONGEST_BACK_OFF) * self._interval
        # One interval passes before the next look anyway.
        self._quiet_until = number + self._interval + wait
        self._failed += 1
        self._tolerated = self._last


@dataclass(eq=False)
class _Move:
    """A move under way."""

    target: Placement
    steps: deque[tuple[int, ...]]  # rows that are still to be ordered, step by step
    under_way: set[int]  # layers that were ordered but have not moved yet
    saved_bytes: int = 0  # unused part of the limit on bytes so far

    @classmethod
    def plan(cls, old: Placement, target: Placement, layers_per_step: int) -> _Move:
        rows = np.flatnonzero((old.slots != target.slots).any(axis=1)).tolist()
        steps = layers_by_step(len(rows), min(layers_per_step, len(rows)))
        return cls(target, deque(tuple(rows[i] for i in step) for step in steps if step), set())

    def slots_that_change(self, old: Placement, rows: tuple[int, ...]) -> int:
        pick = list(rows)
        return int((old.slots[pick] != self.target.slots[pick]).sum())


def _with_rows(placement: Placement, rows: list[int], slots: Ints) -> Placement:
    changed = placement.slots.copy()
    changed[rows] = slots
    return with_slots(placement, changed)
