"""An advisor in a process next to the one that serves.

Serving never waits for it. ``PlanningProcess.ask`` hands a question to a thread, and ``poll`` looks
whether the thread has an answer. The thread talks to the worker process and kills it if it is
silent or late. Whatever the worker does, even if it dies, there is an answer.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, Timer
from typing import Any, TypeVar

import numpy as np

from equipoise.checks import check_number
from equipoise.control.findings import Advisor, Failure, Finding, Question, one_line, said
from equipoise.control.messages import PeerError, decode, encode
from equipoise.control.rehearsal import rehearsal_window
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.trace import Trace

_BEAT_SECONDS = 1.0

_Reply = TypeVar("_Reply", Finding, Failure)


class PlanningProcess:
    """An advisor in a worker process, which starts at the first question and restarts if it dies.

    The worker is a spawned process, so a script that uses it needs the usual
    ``if __name__ == "__main__"``. The worker ends with the process that made it, however that ends.

    Parameters
    ----------
    advisor
        Advisor that answers.
    deadline_seconds
        Time after which a question is given up and the worker is killed; it includes the start.
    silence_seconds
        Time without a sign of life after which a started worker is killed. The worker gives one
        every second.

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
        self._turn = Lock()  # one question at a time, even after one was dropped
        self._worker: _Worker | None = None
        self._closed = False

    def ask(self, question: Question, window: Trace) -> None:
        """Hand in a question without waiting. An earlier question without an answer is dropped."""
        self._hand_in(question, lambda: window)

    def rehearse(self, question: Question, num_steps: int) -> None:
        """Hand in a question about made-up loads of this number of steps, without waiting."""
        self._hand_in(question, partial(rehearsal_window, question.current, num_steps))

    def poll(self) -> Finding | Failure | None:
        """Return the answer to the last question once; ``None`` until there is one."""
        try:
            answer = self._answers.get_nowait()
        except Empty:
            return None
        if answer.number != self._asked:
            return None
        self._asked = None
        return answer

    def drop(self) -> None:
        """Give up an open question, and kill the worker that is working on it."""
        if self._asked is not None and self._worker is not None:
            self._worker.process.kill()  # the thread that waits for it cleans up
            self._worker = None
        self._asked = None

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        self._asked = None
        if self._worker is not None:
            self._worker.process.kill()
            self._worker.process.join()

    def _hand_in(self, question: Question, window: Callable[[], Trace]) -> None:
        if self._closed:
            raise EquipoiseError("The planning process is closed; make another.")
        self.drop()
        self._asked = question.number
        Thread(target=self._consult, args=(question, window), daemon=True).start()

    def _consult(self, question: Question, window: Callable[[], Trace]) -> None:
        """Get the answer to one question, in a thread."""
        with self._turn:
            started = time.monotonic()
            answer: Finding | Failure
            try:
                if self._asked != question.number:
                    return
                answer = _checked(self._reply(question, window()), question)
            except Exception as error:  # any error becomes an answer, and serving continues
                answer = Failure(number=question.number, text=said(error))
            self._answers.put(replace(answer, seconds=time.monotonic() - started))

    def _reply(self, question: Question, window: Trace) -> object:
        """Return the worker's reply, unchecked."""
        started, worker = time.monotonic(), self._living()
        # Killing the worker ends every wait for it, also the wait for room in the pipe.
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
    """The worker process, our end of the pipe, and whether anything has been received."""

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
        _let_others_first(process.pid)  # at once: its imports alone take seconds of a core
        theirs.close()  # otherwise the pipe would stay open if the worker dies
        return cls(process, ours)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _let_others_first(process_id: int | None) -> None:
    """Give a process the lowest priority, so that it uses only the time that others leave."""
    assert process_id is not None, "it has started"
    with suppress(ProcessLookupError):  # it has ended; whoever asks it will be told
        os.sched_setscheduler(process_id, os.SCHED_IDLE, os.sched_param(0))


def _work(connection: Connection[Any, Any], advisor: Advisor) -> None:
    """Answer questions in the worker process until the other end is gone."""
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
    """Send an answer, or the error if it cannot be sent."""
    try:
        connection.send(reply)
    except OSError:
        raise
    except Exception as error:  # pickling failed, so nothing was sent yet
        connection.send(Failure(number=question.number, text=said(error)))


def _beat(connection: Connection[Any, Any], busy: Event, one_at_a_time: Lock) -> None:
    """Give signs of life while there is work; end the process if nobody receives them."""
    while busy.wait():
        time.sleep(_BEAT_SECONDS)
        try:
            with one_at_a_time:
                if busy.is_set():
                    connection.send(None)
        except OSError:
            os._exit(1)


def _checked(reply: object, question: Question) -> Finding | Failure:
    """Return the reply if it answers this question and its placement can be served.

    All objects are made again, because unpickled objects have not passed their checks.
    """
    if not isinstance(reply, Finding | Failure) or reply.number != question.number:
        raise EquipoiseError(f"The planner answered {type(reply).__name__}, not the question.")
    if isinstance(reply, Failure):
        failure = _typed(reply)
        return replace(failure, text=one_line(failure.text))
    finding = _typed(replace(reply, proposal=None))
    if not math.isfinite(finding.sure_excess):
        raise EquipoiseError(f"The planner found an excess of {finding.sure_excess}.")
    if not all(map(math.isfinite, _figures(finding))):
        raise EquipoiseError("The planner returned balances or gains that are not finite numbers.")
    if reply.proposal is None:
        return finding
    if finding.predicted is None:
        raise EquipoiseError("The planner proposed a placement that the gate has not seen.")
    return replace(finding, proposal=_checked_placement(reply.proposal, question.current))


def _typed(reply: _Reply) -> _Reply:
    """Return a copy whose fields all have their declared types."""
    try:
        typed: _Reply = decode(encode(reply), type(reply))
    except (PeerError, TypeError, NotImplementedError, ValueError) as error:
        why = error.__cause__ if isinstance(error, PeerError) else error
        raise EquipoiseError(f"The planner's answer is not a valid finding: {why}") from error
    return typed


def _figures(finding: Finding) -> Iterator[float]:
    """Yield the numbers that are acted on or reported."""
    for balance in finding.balance.values():
        yield from (balance.imbalance, balance.excess, balance.balancedness)
    yield from finding.rank_load
    yield from finding.layer_imbalance.values()
    yield from chain.from_iterable(finding.layer_rank_load.values())
    for decision in (finding.achieved, finding.predicted):
        if decision is not None:
            yield from (decision.gain_seconds, decision.gain_low, decision.gain_high)
            yield decision.gain_assignments


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
