"""A safe balancing hook inside an engine: it returns slots to serve, and never raises an error.

An engine calls its hook between two steps of serving, where an exception would end balancing or the
server. So the planner runs behind ``Hook``, which catches its errors, checks its answers against
the engine's state, and abandons plans that are late.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from threading import Thread
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import as_array, as_ids, brief, check_count
from equipoise.errors import EquipoiseError
from equipoise.plan import Answer, Situation, replan

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

Planner = Callable[[Situation], Answer]
"""Function that finds new slots: ``replan``, possibly with some of its options set."""

_GRACE_SECONDS = 5.0
_COMPILING_SECONDS = 300.0  # limit on compiling; far more than needed, to end a hang
_NONE = -1


class PlanStatus(Enum):
    """The fate of a plan.

    ===========  ==================================================================
    ``TAKEN``    Its slots passed every check.
    ``UNFIT``    There is none: the engine's data does not fit together.
    ``FAILED``   There is none: the planner raised an unexpected error.
    ``REFUSED``  The planner's slots must not be served.
    ``LATE``     The planner did not answer in time.
    ===========  ==================================================================
    """

    TAKEN = "taken"
    UNFIT = "unfit"
    FAILED = "failed"
    REFUSED = "refused"
    LATE = "late"


@dataclass(frozen=True, eq=False, kw_only=True)
class Decision:
    """The slots to serve with, and the reason for them.

    Parameters
    ----------
    slots
        Expert ids ``(L, S)``: the plan's if it was taken, else those in force. If these cannot be
        served, a plain layout: experts in order, then the first ones again.  -1 on ranks that are
        not alive.
    moves
        Number of slots whose content changes, on ranks that are alive, all layers together.
    status
        Fate of the plan.
    reason
        Sentence on the fate of the plan.
    seconds
        Time that the decision took.
    """

    slots: Ints
    moves: int
    status: PlanStatus
    reason: str
    seconds: float


class Hook:
    """A wrapper that makes a planner safe to call inside an engine.

    Parameters
    ----------
    planner
        Function that finds new slots.
    grace_seconds
        Time that a planner may take beyond the situation's time budget.  After that it is abandoned
        in its thread, and no other plan starts before it ends.  Without a time budget it may take
        any time.
    """

    def __init__(self, planner: Planner = replan, *, grace_seconds: float = _GRACE_SECONDS) -> None:
        self._planner = planner
        self._grace_seconds = grace_seconds
        self._run: _Run | None = None

    def __call__(self, situation: Situation) -> Decision:
        """Decide on the slots; raise no error, whatever is given and whatever the planner does."""
        begin = time.perf_counter()
        try:
            status, taken = PlanStatus.TAKEN, self._plan(situation)
        except Exception as error:  # a planner can raise anything
            status, fault = _told(error)
            taken = _without_plan(situation)
            taken = taken._replace(reason=f"{fault} {taken.reason}")
        return Decision(
            slots=taken.slots,
            moves=taken.moves,
            status=status,
            reason=taken.reason,
            seconds=time.perf_counter() - begin,
        )

    def _plan(self, situation: Situation) -> _Taken:
        frame = _Frame(situation)
        answer = self._answer(situation)
        slots = frame.checked(answer)
        return _Taken(slots, frame.moves(slots), f"{answer.reason}")

    def _answer(self, situation: Situation) -> Answer:
        if self._run is not None and self._run.is_alive():
            raise _LateError("An earlier plan is still being made.")
        budget = situation.time_budget_seconds
        deadline = None if budget is None else budget + self._grace_seconds
        self._run = _Run(self._planner, situation)
        self._run.start()
        return self._run.answer_within(deadline)


def warm_up(
    hook: Hook, *, num_experts: int, num_slots: int, num_ranks: int, num_nodes: int = 1
) -> Decision:
    """Let a hook plan for made-up loads, so that the first real plan compiles nothing.

    One slot in force is empty first, so that the code that fills it is compiled too.
    """
    slots = np.arange(num_slots)[None] % num_experts
    slots[0, -1] = _NONE
    situation = Situation(
        load=np.arange(1, num_experts + 1)[None],
        num_slots=num_slots,
        num_ranks=num_ranks,
        num_nodes=num_nodes,
        slots=slots,
        time_budget_seconds=_COMPILING_SECONDS,
    )
    filled = hook(situation)
    if filled.status is not PlanStatus.TAKEN:
        return filled
    decision = hook(replace(situation, slots=filled.slots))
    return replace(decision, seconds=filled.seconds + decision.seconds)


class _Taken(NamedTuple):
    """Slots, the number of changes, and the reason."""

    slots: Ints
    moves: int
    reason: str


class _LateError(Exception):
    """The planner has not answered yet."""


class _RefusedError(Exception):
    """The planner's answer must not be served."""


def _told(error: Exception) -> tuple[PlanStatus, str]:
    """Return status and sentence for a planner's error."""
    match error:
        case EquipoiseError():
            return PlanStatus.UNFIT, f"{error}"
        case _LateError():
            return PlanStatus.LATE, f"{error}"
        case _RefusedError():
            return PlanStatus.REFUSED, f"The plan was refused: {error}"
    return PlanStatus.FAILED, f"The planner failed: {brief(error)}."


class _Run(Thread):
    """One run of a planner in a thread, which can be abandoned."""

    def __init__(self, planner: Planner, situation: Situation) -> None:
        super().__init__(name="equipoise-planner", daemon=True)
        self._planner, self._situation = planner, situation
        self._answer: object = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._answer = self._planner(self._situation)
        except Exception as error:
            self._error = error
        except BaseException as error:  # even sys.exit() in a planner must not end the engine
            self._error = RuntimeError(brief(error))

    def answer_within(self, seconds: float | None) -> Answer:
        """Return the planner's answer or raise its error; ``_LateError`` if it takes longer."""
        self.join(seconds)
        if seconds is not None and self.is_alive():
            raise _LateError(f"There was no plan after {seconds:g} seconds.")
        if self._error is not None:
            raise self._error
        if not isinstance(self._answer, Answer):
            raise _RefusedError(f"it is {brief(self._answer)}.")
        return self._answer


class _Frame:
    """The required shape of slots, and the slots to compare them with.

    ``before`` are the slots in force in the shape of the new ones, with -1 where they are unknown,
    or ``None`` if nothing is in force.  ``alive`` marks the slots on ranks that serve, ``(S,)``.
    """

    def __init__(self, situation: Situation) -> None:
        shape = as_array(situation.load, "Loads").shape
        if len(shape) not in (2, 3):
            raise EquipoiseError(f"Loads have shape {shape}; expected (L, E) or (T, L, E).")
        self.num_layers: int = shape[-2]
        self.num_experts: int = shape[-1]
        self.num_slots = check_count("num_slots", situation.num_slots)
        self.max_moves = situation.max_moves
        self.alive = self._alive(situation)
        self.before = self._before(situation)

    def checked(self, answer: Answer) -> Ints:
        """Return a copy of the answer's slots, or refuse slots that must not be served."""
        try:
            slots = as_ids(answer.slots, "Slots").astype(
                np.int64
            )  # a copy, because the planner may still change its own
        except EquipoiseError as error:
            raise _RefusedError(f"{error}") from error
        fault = self.fault(slots) or self._excess(slots)
        if fault is not None:
            raise _RefusedError(fault)
        return slots

    def fault(self, slots: Ints) -> str | None:
        """Say why slots must not be served, or return ``None`` if they may."""
        if slots.shape != (self.num_layers, self.num_slots):
            return f"slots have shape {slots.shape}, not {(self.num_layers, self.num_slots)}."
        if (slots[:, ~self.alive] != _NONE).any():
            return "slots of ranks that are not alive hold experts."
        serving = slots[:, self.alive]
        if ((serving < 0) | (serving >= self.num_experts)).any():
            return f"slots hold ids outside 0 to {self.num_experts - 1}."
        missing = np.argwhere(~self._present(serving))
        if len(missing):
            layer, expert = missing[0].tolist()
            return f"layer {layer} has no slot for expert {expert}."
        return None

    def moves(self, slots: Ints) -> int:
        """Count the slots with changed content on ranks that are alive."""
        if self.before is None:
            return int(self.alive.sum()) * self.num_layers
        return int((slots != self.before)[:, self.alive].sum())

    def without_plan(self) -> _Taken:
        """Return the slots in force if they can be served, else a plain layout."""
        if self.before is not None:
            kept = np.where(self.alive, self.before, _NONE)
            if self.fault(kept) is None:
                return _Taken(kept, 0, "The slots stay as they are.")
        plain = self._plain()
        return _Taken(plain, self.moves(plain), "Experts are laid out in order.")

    def _plain(self) -> Ints:
        slots = np.full((self.num_layers, self.num_slots), _NONE, dtype=np.int64)
        slots[:, self.alive] = np.arange(self.alive.sum()) % max(1, self.num_experts)
        return slots

    def _excess(self, slots: Ints) -> str | None:
        """Say if there are more moves than allowed, apart from those for missing experts."""
        if self.max_moves is None or self.before is None:
            return None
        serving = self.before[:, self.alive]
        needed = (serving < 0).sum() + (~self._present(serving)).sum()
        moves, allowed = self.moves(slots), max(self.max_moves, int(needed))
        return f"{moves} slots change, {allowed} may." if moves > allowed else None

    def _present(self, slots: Ints) -> Bools:
        """Tell which experts have a slot, ``(L, E)``; ids are in ``[-1, E)``."""
        present = np.zeros((len(slots), self.num_experts + 1), dtype=np.bool_)
        np.put_along_axis(present, slots, True, axis=1)  # -1 marks the last column
        return present[:, :-1]

    def _alive(self, situation: Situation) -> Bools:
        num_ranks = check_count("num_ranks", situation.num_ranks)
        if self.num_slots % num_ranks:
            raise EquipoiseError(f"{self.num_slots} slots do not divide over {num_ranks} ranks.")
        if situation.alive is None:
            return np.ones(self.num_slots, dtype=np.bool_)
        alive = as_array(situation.alive, "alive")
        if alive.shape != (num_ranks,):
            raise EquipoiseError(f"alive has shape {alive.shape}; expected ({num_ranks},).")
        return np.repeat(alive != 0, self.num_slots // num_ranks)

    def _before(self, situation: Situation) -> Ints | None:
        if situation.slots is None:
            return None
        slots = as_ids(situation.slots, "The slots in force")
        if slots.ndim != 2 or len(slots) != self.num_layers:
            raise EquipoiseError(
                f"The slots in force have shape {slots.shape}; expected {self.num_layers} layers."
            )
        if ((slots < _NONE) | (slots >= self.num_experts)).any():
            raise EquipoiseError(
                f"The slots in force hold ids outside -1 to {self.num_experts - 1}."
            )
        before = np.full((self.num_layers, self.num_slots), _NONE, dtype=np.int64)
        common = min(self.num_slots, slots.shape[1])
        before[:, :common] = slots[:, :common]
        return before


def _without_plan(situation: Situation) -> _Taken:
    """Return the slots to serve with if there is no plan."""
    for known in (situation, replace(situation, slots=None)):  # the slots may be unreadable
        with suppress(Exception):
            return _Frame(known).without_plan()
    with suppress(Exception):  # the loads are unreadable, so there is no layout
        slots = np.asarray(situation.slots, dtype=np.int64)
        return _Taken(slots, 0, "The slots stay as they came.")
    return _Taken(np.empty((0, 0), dtype=np.int64), 0, "There are no slots.")
