from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.control.controller import Action, Controller, Outcome, Report, State
from equipoise.control.findings import Balance, Failure, Finding, Question
from equipoise.control.process import PlanningProcess, _checked, _Worker
from equipoise.control.rehearsal import rehearsal_window
from equipoise.control.settings import Settings
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.trace import Trace
from tests.control.advisors import decision
from tests.control.test_advisor import ADVISOR, WINDOW, question
from tests.control.test_controller import OTHER, START


@dataclass(frozen=True)
class Scripted:
    """An advisor that does what the number of the question says."""

    def __call__(self, asked: Question, window: Trace) -> Finding:
        proposal: object = OTHER
        match asked.number % 100:
            case 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case 2:
                raise EquipoiseError("There is nothing to plan.")
            case 3:
                raise RuntimeError("a bug")
            case 4:
                os.kill(os.getpid(), signal.SIGSTOP)
            case 5:
                time.sleep(60)
            case 6:
                return "a plan"  # type: ignore[return-value]
            case 7:  # a placement that no check has seen
                proposal = SimpleNamespace(slots=np.zeros_like(START.slots))
            case 8:
                proposal = SimpleNamespace(slots=START.slots[:, :4])
            case 9:
                proposal = SimpleNamespace(slots="none")
            case 10:
                asked = replace(asked, number=asked.number + 1)
            case 14:
                return lambda: None  # type: ignore[return-value]  # which no pipe carries
        return Finding(
            number=asked.number,
            balance={"": Balance(imbalance=1.5, excess=0.4, balancedness=0.7)},
            sure_excess=np.nan if asked.number % 100 == 12 else 0.3,
            assignments=int(window.counts.sum()),
            proposal=proposal,  # type: ignore[arg-type]
            predicted=None if asked.number % 100 == 13 else decision(),
        )


@dataclass(frozen=True)
class Priority:
    """An advisor that says how it is scheduled."""

    def __call__(self, asked: Question, _window: Trace) -> Failure:
        return Failure(number=asked.number, text=f"policy {os.sched_getscheduler(0)}")


def test_the_worker_gets_what_others_leave() -> None:
    planner = PlanningProcess(Priority())
    try:
        assert ask(planner, 0).text == f"policy {os.SCHED_IDLE}"
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    finally:
        planner.close()


@pytest.fixture(scope="module")
def planner() -> Iterator[PlanningProcess]:
    planner = PlanningProcess(Scripted(), silence_seconds=20)
    yield planner
    planner.close()


def wait(planner: PlanningProcess, seconds: float = 300) -> Finding | Failure:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = planner.poll()
        if answer is not None:
            return answer
        time.sleep(0.01)
    raise AssertionError("no answer")


def ask(planner: PlanningProcess, number: int, window: Trace = WINDOW) -> Finding | Failure:
    planner.ask(question(number), window)
    answer = wait(planner)
    assert answer.number == number
    assert answer.seconds > 0
    assert planner.poll() is None
    return answer


def test_an_answer_comes_with_a_checked_placement(planner):
    answer = ask(planner, 0)
    assert isinstance(answer.proposal, Placement)
    assert answer.proposal == OTHER
    assert answer.assignments == WINDOW.counts.sum()


def test_it_rehearses_on_loads_of_the_size_that_a_look_gives(planner):
    planner.rehearse(question(0), 7)
    answer = wait(planner)
    expected = rehearsal_window(question(0).current, 7)
    assert answer.assignments == expected.counts.sum()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (2, "There is nothing to plan."),
        (3, "RuntimeError('a bug')"),
        (6, "The planner answered str, not the question."),
        (7, "Layer 3: expert 1 has no slot"),
        (8, "proposed slots of shape (3, 4); expected (3, 8)"),
        (9, "proposed slots of shape ()"),
        (10, "The planner answered Finding, not the question."),
        (12, "The planner found an excess of nan."),
        (13, "a placement that the gate has not seen"),
        (14, "pickle"),
    ],
)
def test_errors_and_garbage_are_failures(planner, number, text):
    answer = ask(planner, number)
    assert isinstance(answer, Failure)
    assert text in answer.text


GOOD = Finding(
    number=0, balance={"": Balance(imbalance=1.5, excess=0.4, balancedness=0.7)}, sure_excess=0.3,
    assignments=100, achieved=decision(), proposal=OTHER, predicted=decision(),
)  # fmt: skip


def as_of_numpy(finding: Finding) -> Finding:
    """The same in numpy's numbers, which are fine."""
    balance = {"": Balance(imbalance=np.float64(1.5), excess=np.float32(0.5), balancedness=1)}
    return replace(finding, balance=balance, assignments=np.int64(100), sure_excess=np.float32(0.5))


@pytest.mark.parametrize("finding", [GOOD, as_of_numpy(GOOD), replace(GOOD, proposal=None)])
def test_a_finding_of_the_right_types_is_taken(finding):
    taken = _checked(finding, question(0))
    assert taken.proposal == finding.proposal
    assert taken.balance[""].imbalance == 1.5
    assert type(taken.assignments) is int
    assert taken.predicted == decision()


@pytest.mark.parametrize(
    "wrong",
    [
        {"balance": None},
        {"balance": {"": "x"}},
        {"balance": [1.5]},
        {"balance": {"": Balance(imbalance=None, excess=0.4, balancedness=0.7)}},
        {"balance": {"": Balance(imbalance=np.inf, excess=0.4, balancedness=0.7)}},
        {"balance": {7: Balance(imbalance=1.5, excess=0.4, balancedness=0.7)}},
        {"sure_excess": "0.5"},
        {"sure_excess": None},
        {"sure_excess": np.array([0.5])},
        {"sure_excess": np.inf},
        {"assignments": None},
        {"assignments": 1.5},
        {"achieved": "yes"},
        {"achieved": True},
        {"achieved": replace(decision(), gain_seconds=np.nan)},
        {"predicted": "yes"},
        {"predicted": replace(decision(), move="yes")},
        {"predicted": replace(decision(), gain_low=np.nan, gain_seconds=np.nan)},
        {"predicted": replace(decision(), moves="many")},
        {"predicted": None},
        {"seconds": "long"},
        {"proposal": [[1, 2]]},
        {"proposal": "a map"},
        {"proposal": SimpleNamespace(slots=START.slots * 1.0)},
        {"proposal": SimpleNamespace(slots=np.zeros((5, 10**6), np.int64))},
        {"proposal": SimpleNamespace(slots=START.slots - 1)},
        {"proposal": SimpleNamespace(slots=START.slots.astype(object))},
        {"number": 1},
    ],
    ids=str,
)
def test_a_finding_of_others_is_a_failed_plan(wrong):
    with pytest.raises(EquipoiseError) as told:
        _checked(replace(GOOD, **wrong), question(0))
    assert "planner" in str(told.value) or "Layer" in str(told.value)


def test_so_is_a_failure_without_words():
    with pytest.raises(EquipoiseError, match="not a valid finding"):
        _checked(Failure(number=0, text=None), question(0))


def test_a_worker_that_dies_is_replaced(planner):
    answer = ask(planner, 1)
    assert isinstance(answer, Failure)
    assert answer.text == "The planner died."
    assert isinstance(ask(planner, 100), Finding)


def test_a_worker_killed_between_questions_is_replaced(planner):
    ask(planner, 200)
    victim = planner._worker.process
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert isinstance(ask(planner, 300), Finding)
    assert planner._worker.process.pid != victim.pid


def test_a_slow_worker_is_given_up_and_never_waited_for():
    planner = PlanningProcess(Scripted(), deadline_seconds=0.5)
    try:
        answer = ask(planner, 5)
        assert answer.text == "The planner was stopped after 0.5 s."
    finally:
        planner.close()


def test_a_frozen_worker_is_noticed_with_more_on_its_way_than_the_pipe_holds(planner):
    ask(planner, 400)
    worker = planner._worker
    os.kill(worker.process.pid, signal.SIGSTOP)
    large = replace(WINDOW, counts=np.tile(WINDOW.counts, (400, 1, 1)), step_ids=None, labels={})
    assert large.counts.nbytes > 1 << 20
    planner.ask(question(500), large)
    assert worker.process.is_alive()  # whoever waits for it sees it killed
    assert planner.poll() is None
    planner.ask(question(600), WINDOW)  # drops it, the worker is killed
    assert wait(planner).number == 600
    assert not worker.process.is_alive()


def test_silence_is_a_failure():
    planner = PlanningProcess(Scripted(), silence_seconds=1.5)
    try:
        answer = ask(planner, 4)
        assert answer.text == "The planner gave no sign of life for 1.5 s."
    finally:
        planner.close()


def test_closed_is_closed(planner):
    other = PlanningProcess(Scripted())
    other.close()
    with pytest.raises(EquipoiseError, match="closed"):
        other.ask(question(), WINDOW)
    with pytest.raises(EquipoiseError, match="deadline_seconds is 0; expected"):
        PlanningProcess(Scripted(), deadline_seconds=0)


def test_serving_goes_on_while_the_planner_is_killed_and_started_again():
    settings = Settings(
        window=32, update_interval=32, wait_steps=10_000, warm_up_steps=0, excess_on=0.05
    )
    controller, planner = Controller(START, settings), PlanningProcess(ADVISOR)
    failed, waited, moved, settled = "", [0], (), False
    try:
        for _ in range(10_000):
            order = controller.step(Report(answer=planner.poll(), moved=moved))
            if order.action is Action.LOOK:
                planner.ask(controller.question, WINDOW)
                waited.append(0)
            waited[-1] += order.state is State.PLAN
            if order.state is State.PLAN and not failed and planner._worker is not None:
                planner._worker.process.kill()
            failed = order.note if order.outcome is Outcome.FAILED else failed
            moved = order.layers
            settled = order.action is Action.SETTLE
            if settled:
                break
            time.sleep(0.005)
    finally:
        planner.close()
    assert failed == "The planner died."
    assert settled
    assert controller.placement == ADVISOR(question(plan_above=0.05), WINDOW).proposal
    assert min(waited[1:]) > 1  # steps without an answer: it is not there when asking returns


SERVER = """
from equipoise.control.process import PlanningProcess
from tests.control.test_process import WINDOW, Scripted, ask, question
if __name__ == "__main__":
    planner = PlanningProcess(Scripted())
    ask(planner, 0)
    planner.ask(question({number}), WINDOW)
    print(planner._worker.process.pid, flush=True)
    input()
"""


def test_a_worker_whose_server_is_gone_before_it_has_started_ends_quietly():
    worker = _Worker.start(Scripted())
    worker.connection.send((question(100), WINDOW))
    worker.connection.close()
    worker.process.join(60)
    assert worker.process.exitcode == 0


@pytest.mark.long
@pytest.mark.parametrize("number", [5, 100], ids=["busy", "idle"])
def test_the_worker_does_not_outlive_a_killed_server(number, tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER.format(number=number))
    root = Path(__file__).parents[2]
    server = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        time.sleep(1)
        server.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and is_alive(worker):
        time.sleep(0.1)
    assert not is_alive(worker)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that only waits to be noticed does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"
