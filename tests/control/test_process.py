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
from equipoise.control.process import (
    Balance,
    Failure,
    Finding,
    GatedRepair,
    PlanningProcess,
    Question,
    _checked,
    _Worker,
)
from equipoise.control.settings import Settings
from equipoise.errors import EquipoiseError
from equipoise.noise import trace_noise_floor
from equipoise.placement import Placement
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.problem import Problem
from equipoise.simulate.routers import lognormal, sample_trace, steady, uniform
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.control.test_controller import GATE, OTHER, START
from tests.runtime.advisors import decision

TOPOLOGY = Topology(num_ranks=4)
ADVISOR = GatedRepair(topology=TOPOLOGY, gate=GATE, repair={"proposals": 1 << 13, "num_threads": 1})
SKEWED = sample_trace(
    steady(lognormal(6, sigma=1.0, num_layers=3), num_steps=32), num_tokens=64, top_k=2, seed=1
)
WINDOW = replace(SKEWED, layer_ids=START.layer_ids)


def question(number: int = 1, **more: object) -> Question:
    values = {"current": START, "previous": None, "plan_above": np.inf} | more
    return Question(number=number, **values)


# --- looking at the loads --------------------------------------------------------------------


def test_a_skewed_window_is_measured_and_planned_for():
    answer = ADVISOR(question(plan_above=0.05), WINDOW)
    assert answer.assignments == 32 * 3 * 64 * 2
    assert answer.sure_excess < answer.balance[""].excess < answer.balance[""].imbalance - 1
    assert answer.predicted.move
    assert answer.predicted.gain_low > 0
    better = ADVISOR(question(current=answer.proposal), WINDOW)
    assert better.proposal is None
    assert better.balance[""].imbalance < answer.balance[""].imbalance


def test_no_plan_below_the_threshold_or_from_too_few_assignments():
    excess = ADVISOR(question(), WINDOW).sure_excess
    assert ADVISOR(question(plan_above=excess), WINDOW).proposal is None
    starved = replace(ADVISOR, least_assignments=32 * 64 * 2 / 6 + 1)
    assert starved(question(plan_above=0.05), WINDOW).proposal is None


def test_a_change_is_compared_with_what_was_before():
    better = ADVISOR(question(plan_above=0.05), WINDOW).proposal
    forth = ADVISOR(question(current=better, previous=START), WINDOW).achieved
    back = ADVISOR(question(current=START, previous=better), WINDOW).achieved
    assert forth.gain_low > 0 > back.gain_high
    assert forth.gain_seconds == pytest.approx(-back.gain_seconds)


def test_balance_by_phase():
    phase = np.where(np.arange(32) % 4 == 0, "prefill", "decode")
    answer = ADVISOR(question(), replace(WINDOW, labels={"phase": phase}))
    alone = ADVISOR(question(), WINDOW.select(steps=phase == "prefill"))
    assert set(answer.balance) == {"", "prefill", "decode"}
    assert answer.balance["prefill"] == alone.balance[""]
    total, by = answer.balance[""], [answer.balance[name] for name in ("prefill", "decode")]
    assert total.imbalance == pytest.approx((by[0].imbalance + 3 * by[1].imbalance) / 4)
    assert 0 < total.balancedness < 1


@pytest.mark.parametrize("dispatch", ["even", "minmax"])
def test_a_window_without_load_is_no_alarm(dispatch):
    silent = replace(WINDOW, counts=np.zeros_like(WINDOW.counts))
    advisor = replace(ADVISOR, gate=replace(GATE, dispatch=dispatch))
    answer = advisor(question(plan_above=0.05), silent)
    assert (answer.balance, answer.sure_excess, answer.assignments) == ({}, 0.0, 0)


@pytest.mark.parametrize("num_tokens", [16, 256])
def test_a_fair_router_raises_an_alarm_on_fewer_than_one_look_in_a_hundred(num_tokens):
    trace = sample_trace(
        steady(uniform(32, num_layers=1), num_steps=3200), num_tokens=num_tokens, top_k=4, seed=5
    )
    placement = Contiguous().plan(Problem(trace, TOPOLOGY, 32)).placement
    looks = [trace.select(steps=np.arange(s, s + 16)) for s in range(0, 3200, 16)]
    alarms = [ADVISOR(question(current=placement), look).sure_excess > 0 for look in looks]
    assert np.mean(alarms) < 0.01


# Ranks 1 to 3 can help each other, and rank 0 can help them; nobody can help rank 0.
ONE_ALONE = Placement(
    [[*range(8), 8, 16, 24, 9, *range(8, 16), 16, 24, 17, 25, *range(16, 24), 8, 24, 10, 26,
      *range(24, 32), 9, 18, 11, 19]],
    num_ranks=4, num_experts=32,
)  # fmt: skip
EVENING = replace(ADVISOR, gate=replace(GATE, dispatch="minmax"))


def looks_of(popularity: np.ndarray, length: int = 16) -> list[Trace]:
    trace = sample_trace(steady(popularity, num_steps=3200), num_tokens=64, top_k=4, seed=5)
    return [trace.select(steps=np.arange(s, s + length)) for s in range(0, 3200, length)]


def test_under_the_min_max_split_a_fair_router_raises_no_alarm_either():
    found = [EVENING(question(current=ONE_ALONE), look) for look in looks_of(uniform(32))]
    assert np.mean([one.sure_excess > 0.01 for one in found]) < 0.01
    assert abs(np.mean([one.balance[""].excess for one in found])) < 0.01


def test_an_excess_that_an_even_split_would_hide_in_chance_is_seen_under_the_min_max_split():
    hotter = uniform(32) * np.where(np.arange(32) < 8, 1.12, 1 - 0.12 / 3)
    for look in looks_of(hotter, 200):
        found = EVENING(question(current=ONE_ALONE), look)
        assert found.balance[""].imbalance < trace_noise_floor(look, 4).mean.mean() + 0.05
        assert 0.02 < found.sure_excess < found.balance[""].excess < 0.2


def test_limits_on_plans_reach_the_planner():
    some = replace(ADVISOR, repair={"proposals": 1 << 13, "max_moves": 2})
    answer = some(question(plan_above=0.05), WINDOW)
    assert 0 < (answer.proposal.slots != START.slots).sum() <= 2
    with pytest.raises(EquipoiseError, match="repair has dispatch, nonsense; expected fields"):
        replace(ADVISOR, repair={"nonsense": 1, "dispatch": "even"})


# --- the worker process ----------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def planner() -> Iterator[PlanningProcess]:
    planner = PlanningProcess(Scripted(), silence_seconds=20)
    yield planner
    planner.close()


def wait(planner: PlanningProcess, seconds: float = 60) -> Finding | Failure:
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
    with pytest.raises(EquipoiseError, match="what is no finding"):
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
