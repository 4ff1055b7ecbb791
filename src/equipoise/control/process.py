"""Looking at loads, and planning, in a process beside the one that serves.

Nothing here lets serving wait: ``PlanningProcess.ask`` hands a question to a thread, ``poll`` looks
whether that has put an answer down. The thread talks to the worker process, and kills it where it
is silent or late. Whatever the worker does, dying included, is an answer.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, Timer
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import check_number
from equipoise.control.messages import PeerError, decode, encode
from equipoise.dispatch import Dispatcher, Shares, dispatcher
from equipoise.errors import EquipoiseError
from equipoise.migration import diff
from equipoise.noise import ALARM_STDS, TraceNoiseFloor, trace_noise_floor
from equipoise.placement import Placement
from equipoise.plan.evaluate import evaluate
from equipoise.plan.planners.repair import Repair
from equipoise.plan.problem import Problem
from equipoise.plan.weigh.gate import Decision, Gate
from equipoise.topology import Topology
from equipoise.trace import Trace

_BEAT_SECONDS = 1.0
_PLAN_SHARE = 0.8  # of the window; the gate judges by the rest
_MOST_CHARACTERS = 300  # of an error that is told
_PLAN_WINDOWS = 16  # that the planner looks at; steps one by one are mostly noise


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """What the controller wants to know of the loads.

    Parameters
    ----------
    number
        Of the order that asks.
    current
        The placement that is served.
    previous
        The one served before, to be compared; ``None``: no comparison.
    plan_above
        Excess from which a plan is wanted; infinite: none.
    """

    number: int
    current: Placement
    previous: Placement | None
    plan_above: float


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How well a placement serves some steps, means over steps and layers with load.

    Parameters
    ----------
    imbalance
        Peak over mean of the ranks.
    excess
        The same above the noise floor.
    balancedness
        Mean over peak.
    """

    imbalance: float
    excess: float
    balancedness: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """What a look at the loads has shown.

    Parameters
    ----------
    number
        Of the question.
    balance
        Of all steps, by phase, and ``""`` for all together.
    sure_excess
        Excess that both halves of the window show, less what chance may have added.
    assignments
        In the window.
    achieved
        What the current placement gains on the previous one, where that was asked.
    proposal, predicted
        A placement to move to, and whether the gate would; ``None`` if no plan was wanted.
    seconds
        It took, as the process that asked has seen it.
    """

    number: int
    balance: Mapping[str, Balance]
    sure_excess: float
    assignments: int
    achieved: Decision | None = None
    proposal: Placement | None = None
    predicted: Decision | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no finding, in a sentence."""

    number: int
    text: str
    seconds: float = 0.0


_Reply = TypeVar("_Reply", Finding, Failure)


class Advisor(Protocol):
    """Answers questions. Has to be picklable: it travels to the worker process."""

    def __call__(self, question: Question, window: Trace) -> Finding:
        """Look at the loads and, if they are out of balance, plan. Errors become failures."""
        ...


@dataclass(frozen=True, kw_only=True)
class GatedRepair:
    """The advisor to use: plans with ``Repair`` on the earlier steps, asks ``Gate`` on the later.

    Parameters
    ----------
    topology
        The devices.
    gate
        What a move costs and how long its gain lasts; names the dispatcher.
    repair
        Limits on a plan: fields of ``Repair`` by name, such as ``max_moves``.
    least_assignments
        An expert has to have on average in the layer with fewest, or no plan is made.
    top_k
        ``K``, for the noise floor; ``None``: unknown, which puts it a little too high.
    """

    topology: Topology
    gate: Gate
    repair: Mapping[str, Any] = field(default_factory=dict)
    least_assignments: float = 16.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_number("least_assignments", self.least_assignments, low=0, high=math.inf)
        taken = {"current", "dispatch"} & set(self.repair)
        unknown = set(self.repair) - set(Repair.__dataclass_fields__)
        if taken or unknown:
            raise EquipoiseError(
                f"repair has {', '.join(sorted(taken | unknown))}; expected fields of Repair other "
                "than current and dispatch, which are known."
            )

    def __call__(self, question: Question, window: Trace) -> Finding:
        """Measure; compare with the previous placement if asked; plan if the excess is enough."""
        window = replace(window, top_k=self.top_k or window.top_k)
        imbalance, above, margin = self._measure(window, question.current)
        finding = Finding(
            number=question.number,
            balance=_by_phase(window, imbalance, above),
            sure_excess=_sure_excess(above, margin),
            assignments=int(window.counts.sum(dtype=np.int64)),
            achieved=self._achieved(question, window),
        )
        least = window.total.sum(axis=1).min() / window.num_experts
        if finding.sure_excess <= question.plan_above or least < self.least_assignments:
            return finding
        return self._plan(finding, question.current, window)

    def _measure(
        self, window: Trace, placement: Placement
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Imbalance, that above the floor, and the floor's standard deviation, ``(T, L)``.

        NaN where a layer had no load.
        """
        known = dispatcher(self.gate.dispatch, self.topology)
        if known.shares is Shares.FOLLOWING:
            floor = _floor_of_split(window, placement, known)
        else:
            floor = trace_noise_floor(window, placement.num_ranks)
        loaded = window.counts.any(axis=2)
        imbalance = np.where(loaded, evaluate(placement, window, dispatch=known).imbalance, np.nan)
        return imbalance, imbalance - floor.mean, np.where(loaded, floor.std, np.nan)

    def _achieved(self, question: Question, window: Trace) -> Decision | None:
        if question.previous is None:
            return None
        return self.gate.decide(diff(question.previous, question.current, self.topology), window)

    def _plan(self, finding: Finding, current: Placement, window: Trace) -> Finding:
        fit, held = replace(window, labels={}).split(_PLAN_SHARE)
        fit = fit.windows(-(-fit.num_steps // _PLAN_WINDOWS))
        repair = Repair(current=current, dispatch=self.gate.dispatch, **self.repair)
        plan = repair.plan(Problem(fit, self.topology, current.num_slots))
        predicted = self.gate.decide(diff(current, plan.placement, self.topology), held)
        return replace(finding, proposal=plan.placement, predicted=predicted)


class PlanningProcess:
    """An advisor in a worker process, which is started when first asked and again if it dies.

    The worker is a spawned process: a script that makes one needs the usual
    ``if __name__ == "__main__"``. It ends with the process that made it, however that ends.

    Parameters
    ----------
    advisor
        Who answers.
    deadline_seconds
        After which a question is given up and the worker killed, its start included.
    silence_seconds
        The same for a worker that has started and gives no sign of life, one of which a second
        is expected of it.

    Raises
    ------
    EquipoiseError
        Times that are not positive.
    """

    def __init__(
        self, advisor: Advisor, *, deadline_seconds: float = 600.0, silence_seconds: float = 30.0
    ) -> None:
        for name, value in (("deadline", deadline_seconds), ("silence", silence_seconds)):
            check_number(f"{name}_seconds", value, low=1e-3, high=math.inf)
        self._advisor = advisor
        self._deadline, self._silence = deadline_seconds, silence_seconds
        self._answers: SimpleQueue[Finding | Failure] = SimpleQueue()
        self._asked: int | None = None
        self._turn = Lock()  # one question at a time, also after one was dropped
        self._worker: _Worker | None = None
        self._closed = False

    def ask(self, question: Question, window: Trace) -> None:
        """Hand in a question; does not wait. One that was not answered yet is dropped."""
        if self._closed:
            raise EquipoiseError("The planning process is closed; make another.")
        self.drop()
        self._asked = question.number
        Thread(target=self._consult, args=(question, window), daemon=True).start()

    def poll(self) -> Finding | Failure | None:
        """The answer to the last question, once; ``None`` as long as there is none."""
        try:
            answer = self._answers.get_nowait()
        except Empty:
            return None
        if answer.number != self._asked:
            return None
        self._asked = None
        return answer

    def drop(self) -> None:
        """Give up a question that was not answered yet, and the worker that is at it."""
        if self._asked is not None and self._worker is not None:
            self._worker.process.kill()  # the thread that waits for it tidies up
            self._worker = None
        self._asked = None

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        self._asked = None
        if self._worker is not None:
            self._worker.process.kill()
            self._worker.process.join()

    def _consult(self, question: Question, window: Trace) -> None:
        """The thread: one question, one answer."""
        with self._turn:
            started = time.monotonic()
            answer: Finding | Failure
            try:
                if self._asked != question.number:
                    return
                answer = _checked(self._reply(question, window), question)
            except Exception as error:  # whatever it is, serving goes on and is told
                answer = Failure(number=question.number, text=said(error))
            self._answers.put(replace(answer, seconds=time.monotonic() - started))

    def _reply(self, question: Question, window: Trace) -> object:
        """What the worker answers, unchecked."""
        started, worker = time.monotonic(), self._living()
        # Killing the worker ends every wait for it, that for room in the pipe too.
        timer = Timer(self._deadline, worker.process.kill)
        timer.daemon = True
        timer.start()
        healthy = False
        try:
            worker.connection.send((question, window))
            while worker.connection.poll(self._silence if worker.started else None):
                reply = worker.connection.recv()
                worker.started = True
                if reply is not None:
                    healthy = isinstance(reply, Finding | Failure)
                    return reply
            raise EquipoiseError(f"The planner gave no sign of life for {self._silence:g} s.")
        except (EOFError, OSError) as error:
            late = time.monotonic() - started >= self._deadline
            why = f"was stopped after {self._deadline:g} s" if late else "died"
            raise EquipoiseError(f"The planner {why}.") from error
        finally:
            timer.cancel()
            if not healthy:
                worker.end()

    def _living(self) -> _Worker:
        if self._worker is None or not self._worker.process.is_alive():
            if self._worker is not None:
                self._worker.end()
            self._worker = _Worker.start(self._advisor)
        if self._closed:
            self._worker.end()
        return self._worker


@dataclass(eq=False)
class _Worker:
    """The process, our end of the pipe to it, and whether anything has come through."""

    process: BaseProcess
    connection: Connection[Any, Any]
    started: bool = False

    @classmethod
    def start(cls, advisor: Advisor) -> _Worker:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=_work, args=(theirs, advisor), name="equipoise-planner", daemon=True
        )
        process.start()
        theirs.close()  # or the death of the worker would not close the pipe
        return cls(process, ours)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection[Any, Any], advisor: Advisor) -> None:
    """The worker process: answer until the other end is gone."""
    # The processes that serve come first: it gets what they leave, on a machine without idle cores
    # while they wait for each other.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that serves
    busy, one_at_a_time = Event(), Lock()
    Thread(target=_beat, args=(connection, busy, one_at_a_time), daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            question, window = connection.recv()
            connection.send(None)
            busy.set()
            reply: object
            try:
                reply = advisor(question, window)
            except Exception as error:  # a planner's error is an answer
                reply = Failure(number=question.number, text=said(error))
            with one_at_a_time:
                busy.clear()
                _send(connection, reply, question)


def _send(connection: Connection[Any, Any], reply: object, question: Question) -> None:
    """Send an answer, or say that it cannot be sent."""
    try:
        connection.send(reply)
    except OSError:
        raise
    except Exception as error:  # of pickling, before anything was sent
        connection.send(Failure(number=question.number, text=said(error)))


def _beat(connection: Connection[Any, Any], busy: Event, one_at_a_time: Lock) -> None:
    """Signs of life while there is work; with nobody to see them, end the process."""
    while busy.wait():
        time.sleep(_BEAT_SECONDS)
        try:
            with one_at_a_time:
                if busy.is_set():
                    connection.send(None)
        except OSError:
            os._exit(1)


def said(error: Exception) -> str:
    """An error in a line; one that is not meant for users with its type."""
    return _line(str(error) if isinstance(error, EquipoiseError | OSError) else repr(error))


def _line(text: str) -> str:
    return " ".join(text.split())[:_MOST_CHARACTERS]


def _checked(reply: object, question: Question) -> Finding | Failure:
    """The reply, if it is one to this question and its placement can be served.

    All of it is made again: what arrives through a pipe has not passed its checks.
    """
    if not isinstance(reply, Finding | Failure) or reply.number != question.number:
        raise EquipoiseError(f"The planner answered {type(reply).__name__}, not the question.")
    if isinstance(reply, Failure):
        failure = _typed(reply)
        return replace(failure, text=_line(failure.text))
    finding = _typed(replace(reply, proposal=None))
    if not math.isfinite(finding.sure_excess):
        raise EquipoiseError(f"The planner found an excess of {finding.sure_excess}.")
    if not all(map(math.isfinite, _figures(finding))):
        raise EquipoiseError("The planner found balances or gains that are no finite numbers.")
    if reply.proposal is None:
        return finding
    if finding.predicted is None:
        raise EquipoiseError("The planner proposed a placement that the gate has not seen.")
    return replace(finding, proposal=_checked_placement(reply.proposal, question.current))


def _typed(reply: _Reply) -> _Reply:
    """The same with every field of the type that it is declared with."""
    try:
        typed: _Reply = decode(encode(reply), type(reply))
    except (PeerError, TypeError, NotImplementedError, ValueError) as error:
        why = error.__cause__ if isinstance(error, PeerError) else error
        raise EquipoiseError(f"The planner answered what is no finding: {why}") from error
    return typed


def _figures(finding: Finding) -> Iterator[float]:
    """What is acted upon, or told."""
    for balance in finding.balance.values():
        yield from (balance.imbalance, balance.excess, balance.balancedness)
    for decision in (finding.achieved, finding.predicted):
        if decision is not None:
            yield from (decision.gain_seconds, decision.gain_low, decision.gain_high)


def _checked_placement(proposal: object, like: Placement) -> Placement:
    slots = np.asarray(getattr(proposal, "slots", proposal))
    if slots.shape != like.slots.shape:
        raise EquipoiseError(
            f"The planner proposed slots of shape {slots.shape}; expected {like.slots.shape}."
        )
    if not np.issubdtype(slots.dtype, np.integer):
        raise EquipoiseError(f"The planner proposed slots of type {slots.dtype}, not integers.")
    return Placement(
        slots,
        num_ranks=like.num_ranks,
        num_experts=like.num_experts,
        layer_ids=like.layer_ids,
    )


def _floor_of_split(window: Trace, placement: Placement, split: Dispatcher) -> TraceNoiseFloor:
    """What chance alone does to batches that are split each for itself, which evens out much of it.

    Batches of the sizes in the window, drawn from its mean load, are worse balanced than that mean
    load by chance only. Drawn with a fixed seed.
    """
    total_LE = window.total
    share_LE = total_LE / np.maximum(total_LE.sum(axis=1, keepdims=True), 1)
    drawn = np.random.default_rng(0).multinomial(window.counts.sum(axis=2), share_LE)
    mean = evaluate(placement, total_LE[None], dispatch=split).imbalance
    chance = evaluate(placement, drawn, dispatch=split).imbalance - mean
    # Twice the variance: what was drawn has its own chance, beside that of what was served.
    std = np.broadcast_to(math.sqrt(2) * chance.std(axis=0), chance.shape)
    return TraceNoiseFloor(1 + chance, std)


def _by_phase(
    window: Trace, imbalance: NDArray[np.float64], above: NDArray[np.float64]
) -> dict[str, Balance]:
    phase = window.labels.get("phase", np.full(window.num_steps, ""))
    parts = {"": np.ones(window.num_steps, dtype=bool)} | {
        str(name): phase == name for name in np.unique(phase)
    }
    loaded = ~np.isnan(imbalance)
    return {
        name: Balance(
            imbalance=float(np.nanmean(imbalance[part])),
            excess=float(np.nanmean(above[part])),
            balancedness=float(np.nanmean(1 / imbalance[part])),
        )
        for name, part in parts.items()
        if loaded[part].any()
    }


def _sure_excess(above: NDArray[np.float64], margin: NDArray[np.float64]) -> float:
    """The least excess of both halves, less ``ALARM_STDS`` of what chance does to their means.

    0 where a half has no load.
    """
    halves = []
    for part in (slice(None, len(above) // 2), slice(len(above) // 2, None)):
        cells, stds = above[part], margin[part]
        count = np.isfinite(cells).sum()
        if not count:
            return 0.0
        halves.append(np.nanmean(cells) - ALARM_STDS * np.sqrt(np.nansum(stds**2)) / count)
    return float(min(halves))
