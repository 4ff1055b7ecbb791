from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from equipoise.control.advisor import GatedRepair
from equipoise.control.controller import (
    Action,
    Controller,
    Follower,
    Order,
    Outcome,
    Report,
    State,
)
from equipoise.control.findings import Failure, Finding
from equipoise.control.settings import Settings
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.migration import with_slots
from equipoise.placement import Placement
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.problem import Problem
from equipoise.plan.weigh.gate import Gate
from equipoise.simulate.routers import lognormal, sample_trace, shift_domains, steady, uniform
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.control.advisors import decision

TOPOLOGY = Topology(num_ranks=4)
SETTINGS = Settings(window=8, update_interval=10, wait_steps=5, warm_up_steps=6, excess_on=0.05)
START = Placement([[0, 1, 2, 3, 4, 5, 0, 1]] * 3, num_ranks=4, num_experts=6, layer_ids=(3, 4, 7))
OTHER = with_slots(START, np.array([[2, 1, 0, 3, 4, 5, 0, 1]] * 3))


def finding(number: int, excess: float = 0.5, **more: object) -> Finding:
    return Finding(number=number, balance={}, sure_excess=excess, assignments=100, **more)


def run_until(controller: Controller, action: Action, report: Report | None = None) -> Order:
    """The first order of this kind; the report goes with the first step."""
    order = controller.step(report)
    for _ in range(500):
        if order.action is action:
            return order
        order = controller.step()
    raise AssertionError(f"no {action} in state {controller.state}")


def moving(settings: Settings = SETTINGS, **more: object) -> tuple[Controller, Order]:
    """A controller that has just ordered its first move."""
    controller = Controller(START, settings, **more)
    look = run_until(controller, Action.LOOK)
    answer = finding(look.number, proposal=OTHER, predicted=decision())
    return controller, run_until(controller, Action.MOVE, Report(answer=answer))


def moved_wholly(controller: Controller, order: Order) -> Order:
    """The order to settle, after all layers have moved as soon as they were ordered to."""
    while order.action is not Action.SETTLE:
        order = controller.step(Report(moved=order.layers))
    return order


def test_nothing_happens_before_the_window_is_full_of_steps_after_the_warm_up():
    controller = Controller(START, SETTINGS)
    orders = [controller.step() for _ in range(14)]
    assert [order.state for order in orders[:7]] == [State.WARM_UP] * 6 + [State.OBSERVE]
    assert [order.action for order in orders] == [Action.NOTHING] * 13 + [Action.LOOK]
    assert controller.question.current == START
    assert controller.question.plan_above == SETTINGS.excess_on


def test_a_plan_moves_one_layer_after_the_other_and_settles():
    controller, order = moving()
    for layer in START.layer_ids:
        assert (order.action, order.layers, order.version) == (Action.MOVE, (layer,), 1)
        np.testing.assert_array_equal(order.slots, OTHER.slots[:1])
        assert controller.step().action is Action.COMMIT  # not everywhere yet
        order = controller.step(Report(moved=(layer,)))
    assert (order.action, order.state) == (Action.SETTLE, State.SETTLE)
    assert order.serving == controller.placement.checksum == OTHER.checksum


def test_layers_that_do_not_change_are_passed_over():
    slots = START.slots.copy()
    slots[1] = OTHER.slots[1]
    target = with_slots(START, slots)
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    answer = finding(look.number, proposal=target, predicted=decision())
    order = controller.step(Report(answer=answer))
    assert order.layers == (4,)
    assert controller.step(Report(moved=(4,))).action is Action.SETTLE


def test_several_layers_a_step():
    _, order = moving(replace(SETTINGS, layers_per_step=2))
    assert order.layers == (3, 7)


def test_more_layers_a_step_than_there_are():
    _, order = moving(replace(SETTINGS, layers_per_step=1 << 20))
    assert order.layers == START.layer_ids


def test_a_plan_for_what_is_served_is_none():
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    answer = finding(look.number, proposal=START, predicted=decision())
    order = controller.step(Report(answer=answer))
    assert (order.state, order.outcome, order.version) == (State.OBSERVE, None, 0)
    assert order.note == "Nothing moves: chance explains all of the imbalance except 0.500."


def test_the_budget_of_bytes_holds_on_average():
    # Two slots of a layer change, of 10 bytes each.
    controller, order = moving(replace(SETTINGS, max_bytes_per_step=8), expert_bytes=10)
    first, numbers = order.number - 3, [order.number]
    while order.action is not Action.SETTLE:
        order = controller.step(Report(moved=order.layers))
        if order.action is Action.MOVE:
            numbers.append(order.number)
    assert [20 * (n + 1) <= 8 * (at - first) for n, at in enumerate(numbers)] == [True] * 3
    assert [at - first for at in numbers] == [3, 5, 8]


def test_a_limit_on_bytes_needs_their_size():
    with pytest.raises(EquipoiseError, match="needs the bytes of an expert"):
        Controller(START, replace(SETTINGS, max_bytes_per_step=8))


def test_the_gate_can_refuse():
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    answer = finding(look.number, proposal=OTHER, predicted=decision(move=False))
    order = controller.step(Report(answer=answer))
    assert (order.state, order.outcome, order.version) == (State.OBSERVE, Outcome.REFUSED, 0)
    assert order.note.startswith("Stay: moving 6 slots")


def test_patience_doubles_after_every_refusal_and_ends_when_things_get_worse():
    controller = Controller(START, SETTINGS)
    wanted = []
    report = None
    for _ in range(8):
        look = run_until(controller, Action.LOOK, report)
        plans = controller.question.plan_above < 0.5
        wanted.append(plans)
        answer = finding(look.number, proposal=OTHER if plans else None)
        report = Report(answer=replace(answer, predicted=decision(move=False) if plans else None))
    assert wanted == [True, False, True, False, False, True, False, False]
    look = run_until(controller, Action.LOOK, report)
    worse = 0.5 + SETTINGS.excess_on - SETTINGS.excess_off
    assert controller.question.plan_above == pytest.approx(worse)


def test_an_alarm_falls_later_than_it_is_raised():
    controller = Controller(START, SETTINGS)
    thresholds, report = [], None
    for excess in (0.03, 0.06, 0.03, 0.01, 0.03):
        look = run_until(controller, Action.LOOK, report)
        thresholds.append(controller.question.plan_above)
        report = Report(answer=finding(look.number, excess))
    run_until(controller, Action.LOOK, report)
    thresholds.append(controller.question.plan_above)
    assert thresholds == [0.05, 0.05, 0.02, 0.02, 0.05, 0.05]


def test_a_failed_transfer_leaves_what_has_moved():
    controller, order = moving()
    controller.step(Report(moved=order.layers))
    order = controller.step(Report(failures=("Rank 2 lost its mind.",)))
    assert (order.action, order.outcome, order.state) == (
        Action.ABORT,
        Outcome.FAILED,
        State.OBSERVE,
    )
    assert order.note == "Rank 2 lost its mind."
    expected = np.concatenate([OTHER.slots[:1], START.slots[1:]])
    np.testing.assert_array_equal(controller.placement.slots, expected)
    assert run_until(controller, Action.LOOK).version == 1
    assert controller.question.previous is None


def judged(gain: float, low: float, settings: Settings = SETTINGS) -> tuple[Controller, Order]:
    controller, order = moving(settings)
    end = moved_wholly(controller, order)
    look = run_until(controller, Action.LOOK)
    assert look.number - end.number == settings.settle_steps
    assert controller.question.previous == START
    answer = finding(look.number, 0.01, achieved=decision(gain=gain, low=low))
    return controller, controller.step(Report(answer=answer))


def test_a_change_that_helped_is_kept():
    controller, order = judged(1.0, 0.5)
    assert (order.state, order.outcome) == (State.OBSERVE, Outcome.KEPT)
    run_until(controller, Action.LOOK)
    assert controller.question.plan_above == SETTINGS.excess_on


def test_a_change_that_did_harm_is_taken_back_once():
    controller, order = judged(-1.0, -2.0)
    assert (order.action, order.outcome, order.version) == (Action.MOVE, Outcome.ROLLED_BACK, 2)
    moved_wholly(controller, order)
    assert controller.placement == START
    look = run_until(controller, Action.LOOK)
    assert look.state is State.PLAN  # nobody judges the way back
    assert controller.question.previous is None


def test_a_change_that_may_have_helped_stays_but_calls_for_patience():
    controller, order = judged(0.1, -0.1)
    assert (order.state, order.outcome) == (State.OBSERVE, Outcome.UNPROVEN)
    run_until(controller, Action.LOOK)
    assert controller.question.plan_above > SETTINGS.excess_on - 0.01
    assert controller.placement == OTHER


def test_a_change_that_was_not_judged_stays():
    controller, order = moving()
    moved_wholly(controller, order)
    look = run_until(controller, Action.LOOK)
    order = controller.step(Report(answer=Failure(number=look.number, text="It died.")))
    assert (order.state, order.outcome, order.note) == (State.OBSERVE, Outcome.FAILED, "It died.")
    assert controller.placement == OTHER


def test_once_is_once():
    controller, _ = judged(1.0, 0.5, replace(SETTINGS, once=True))
    run_until(controller, Action.LOOK)
    assert controller.question.plan_above == np.inf


def test_measuring_without_moving(tmp_path):
    (tmp_path / "map").touch()
    controller = Controller(START, replace(SETTINGS, layers_per_step=0, map_path=tmp_path / "map"))
    run_until(controller, Action.LOOK)
    assert controller.question.plan_above == np.inf


def test_a_plan_later_than_the_wait_is_used_until_the_next_look_is_due():
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    for _ in range(SETTINGS.wait_steps, SETTINGS.update_interval + 4):
        assert controller.step().action is Action.NOTHING
    answer = finding(look.number, proposal=OTHER, predicted=decision())
    assert controller.step(Report(answer=answer)).action is Action.MOVE


def test_a_plan_that_does_not_come_is_given_up():
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    order = run_until(controller, Action.ABORT)
    assert order.number - look.number == SETTINGS.update_interval + 1
    assert order.note == "The planner has not answered in 10 steps. Next time it may take 20."
    late = finding(look.number, proposal=OTHER, predicted=decision())
    order = controller.step(Report(answer=late))
    assert (order.action, order.state) == (Action.NOTHING, State.OBSERVE)
    run_until(controller, Action.LOOK)
    assert controller.step(Report(answer=late)).state is State.PLAN  # not an answer to this


def test_while_a_plan_is_awaited_there_may_be_news_every_fourth_step_and_when_it_is_late():
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    until = [controller.step().quiet_until - look.number for _ in range(10)]
    assert until == [4, 4, 4, 8, 8, 8, 8, 11, 11, 11]
    assert controller.step().action is Action.ABORT


def asked_for(**more: object) -> Controller:
    """A controller whose next look is due long after it is asked for."""
    return Controller(START, replace(SETTINGS, update_interval=10_000, **more), on_demand=True)


def test_a_look_that_is_asked_for_comes_in_the_next_step_that_all_ranks_hear():
    controller = asked_for()
    first = run_until(controller, Action.LOOK)
    order = controller.step(Report(answer=finding(first.number, excess=0.0)))
    assert order.state is State.OBSERVE
    for _ in range(30):
        order = controller.step()
        assert order.quiet_until == order.number + 4 - order.number % 4
    controller.ask()
    steps = [controller.step() for _ in range(4)]
    (look,) = [order for order in steps if order.action is Action.LOOK]
    assert look.number % 4 == 0
    assert controller.question.number == look.number


def test_looks_that_are_asked_for_lie_a_window_apart():
    controller = asked_for()
    looks = []
    for _ in range(200):
        controller.ask()
        last = looks[-1] if looks else None
        report = Report(answer=finding(last, excess=0.0)) if last == controller._number else None
        order = controller.step(report)
        if order.action is Action.LOOK:
            looks.append(order.number)
    assert looks[0] >= SETTINGS.warm_up_steps + SETTINGS.window
    assert all(gap >= SETTINGS.window for gap in np.diff(looks))
    assert len(looks) > 5


def test_nobody_asks_a_controller_that_allows_it_not():
    with pytest.raises(EquipoiseError, match="only when that is due"):
        Controller(START, SETTINGS).ask()


SHORT = replace(SETTINGS, window=40, update_interval=40, wait_steps=3)


def rehearse(*steps: int) -> tuple[Controller, list[Order]]:
    """A controller after its warm-up, in which each plan took these numbers of steps."""
    controller = Controller(START, SHORT, rehearse=True)
    orders, asked, taken = [controller.step()], 0, iter(steps)
    while orders[-1].state is State.WARM_UP:
        last, report = orders[-1], None
        if last.action is Action.REHEARSE:
            assert controller.question.plan_above == -np.inf
            asked = last.number
            due = asked + next(taken)
        if last.number + 1 == due:
            answer = finding(asked, proposal=OTHER, predicted=decision())
            report = Report(answer=answer)
        orders.append(controller.step(report))
    return controller, orders


def test_the_planner_starts_and_is_timed_in_the_warm_up_which_counts_for_nothing():
    controller, orders = rehearse(3, 2)
    asked = [order.number for order in orders if order.action is Action.REHEARSE]
    assert asked == [1, 4]
    assert len(orders) == SETTINGS.warm_up_steps + 1
    notes = [order.note for order in orders if order.note]
    assert notes == ["The planner is ready: a plan takes 2 steps."]
    look = run_until(controller, Action.LOOK)
    assert look.number == SETTINGS.warm_up_steps + SHORT.window
    assert controller.placement == START


def test_the_wait_is_what_planning_takes_where_that_is_longer_than_it_was_set():
    controller, orders = rehearse(35, 30)
    notes = [order.note for order in orders if order.note]
    assert notes == [
        "A plan takes 30 steps, longer than the wait of 3 that was set; it is used if it comes "
        "within 60 steps."
    ]
    assert orders[-1].number == 1 + 35 + 30  # the warm-up lasts until it is known
    assert orders[-1].wait_steps == 60
    look = run_until(controller, Action.LOOK)
    for _ in range(59):
        controller.step()
    answer = finding(look.number, proposal=OTHER, predicted=decision())
    assert controller.step(Report(answer=answer)).action is Action.MOVE


def test_warming_up_is_not_longer_for_a_planner_that_does_not_answer_than_it_may_take():
    controller = Controller(START, SETTINGS, rehearse=True)
    order = run_until(controller, Action.ABORT)
    assert order.number == 2 + SETTINGS.update_interval
    assert order.outcome is Outcome.FAILED
    assert order.note.startswith("Rehearsing a plan failed: The planner has not answered in 10 ste")
    assert controller.step().state is State.OBSERVE
    assert run_until(controller, Action.LOOK).number == SETTINGS.warm_up_steps + SETTINGS.window


@pytest.mark.parametrize("change", [{"warm_up_steps": 0}, {"layers_per_step": 0}])
def test_nothing_is_rehearsed_without_a_warm_up_or_where_nothing_moves(change, tmp_path):
    (tmp_path / "map").touch()
    settings = replace(SETTINGS, map_path=tmp_path / "map", **change)
    controller = Controller(START, settings, rehearse=True)
    for _ in range(10):
        assert controller.step().action is not Action.REHEARSE


def test_a_failed_planner_is_asked_again():
    controller = Controller(START, SETTINGS)
    look = run_until(controller, Action.LOOK)
    order = controller.step(Report(answer=Failure(number=look.number, text="No plan.")))
    assert (order.outcome, order.note, order.state) == (Outcome.FAILED, "No plan.", State.OBSERVE)
    again = run_until(controller, Action.LOOK)
    assert again.number - order.number == SETTINGS.update_interval


def test_no_question_no_answer():
    with pytest.raises(EquipoiseError, match="There is no question"):
        Controller(START, SETTINGS).question  # noqa: B018
    controller, _ = moving()
    with pytest.raises(EquipoiseError, match="Layers 4 were not ordered to move"):
        controller.step(Report(moved=(4,)))


def test_a_rehearsal_brings_the_first_look_no_closer():
    controller = Controller(START, SETTINGS, rehearse=True, on_demand=True)
    rehearsal = run_until(controller, Action.REHEARSE)
    controller.ask()
    died = Report(answer=Failure(number=rehearsal.number, text="It died."))
    look = run_until(controller, Action.LOOK, died)
    assert look.number >= SETTINGS.warm_up_steps + SETTINGS.window


def test_a_follower_ends_where_the_controller_does():
    controller = Controller(START, SETTINGS)
    follower, report = Follower(START), Report()
    for _ in range(40):
        order = controller.step(report)
        follower.follow(order)
        assert follower.agrees(order)
        report = Report()
        if order.action is Action.LOOK:
            answer = finding(order.number, proposal=OTHER, predicted=decision())
            report = Report(answer=answer)
        if order.action is Action.MOVE:
            assert (follower.target().slots != follower.placement.slots).any(axis=1).sum() == 1
            follower.commit(order.layers)
            report = Report(moved=order.layers)
    assert follower.placement == controller.placement == OTHER
    assert follower.version == 1


def test_a_follower_refuses_orders_out_of_turn():
    _, move = moving()
    ready = [replace(move, number=n, action=Action.NOTHING, version=0) for n in range(1, 30)]

    def follower() -> Follower:
        follower = Follower(START)
        for order in ready[: move.number - 1]:
            follower.follow(order)
        return follower

    with pytest.raises(EquipoiseError, match=f"Order {move.number} came after order 0"):
        Follower(START).follow(move)
    with pytest.raises(EquipoiseError, match="of version 2 came to a rank at version 0"):
        follower().follow(replace(move, version=2))
    one = follower()
    one.follow(move)
    with pytest.raises(EquipoiseError, match=f"Order {move.number} came after order {move.number}"):
        one.follow(move)
    with pytest.raises(EquipoiseError, match="before layers 3 have moved"):
        one.follow(replace(move, number=move.number + 1))
    with pytest.raises(EquipoiseError, match="Layers 4 were not ordered"):
        one.commit((4,))
    one.follow(replace(move, number=move.number + 1, action=Action.ABORT))
    assert one.target() == one.placement == START


NEXT = {
    State.WARM_UP: {State.OBSERVE},
    State.OBSERVE: {State.PLAN},
    State.PLAN: {State.OBSERVE, State.MOVE},
    State.MOVE: {State.OBSERVE, State.SETTLE},
    State.SETTLE: {State.OBSERVE, State.MOVE},
}


class AnyReports(RuleBasedStateMachine):
    """A controller, a follower, and a world in which anything goes wrong at any time."""

    on_demand = False

    def __init__(self) -> None:
        super().__init__()
        settings = replace(SETTINGS, layers_per_step=2)
        self.controller = Controller(START, settings, rehearse=True, on_demand=self.on_demand)
        self.follower = Follower(START)
        self.under_way: set[int] = set()
        self.asked: int | None = None
        self.quiet_until = 0
        self.step(Report())

    def step(self, report: Report) -> None:
        before = self.controller.state
        order = self.controller.step(report)
        self.follower.follow(order)
        if order.number < self.quiet_until and report.answer is None:
            assert (order.action, order.outcome) == (Action.NOTHING, None)
        self.quiet_until = order.quiet_until if order.action is Action.NOTHING else 0
        assert order.state is self.controller.state
        assert order.state is before or order.state in NEXT[before]
        if order.number <= SETTINGS.warm_up_steps + SETTINGS.window:
            assert order.action in (
                Action.NOTHING, Action.REHEARSE, Action.ABORT, Action.LOOK
            )  # fmt: skip
        if order.action is Action.MOVE:
            self.under_way = set(order.layers)
        if order.action in (Action.LOOK, Action.REHEARSE):
            self.asked = order.number
        if order.action is Action.ABORT:
            self.under_way = set()

    @rule(times=st.integers(1, 12))
    def nothing(self, times: int) -> None:
        for _ in range(times):
            self.step(Report())

    @rule(
        excess=st.floats(-1, 1),
        proposes=st.booleans(),
        move=st.booleans(),
        gain=st.floats(-1, 1),
        late=st.booleans(),
    )
    @precondition(lambda self: self.asked is not None)
    def answer(self, excess: float, proposes: bool, move: bool, gain: float, late: bool) -> None:
        target = OTHER if self.controller.placement == START else START
        self.step(
            Report(
                answer=finding(
                    self.asked - late,
                    excess,
                    achieved=decision(gain=gain, low=gain - 0.2),
                    proposal=target if proposes else None,
                    predicted=decision(move=move) if proposes else None,
                )
            )
        )

    @rule()
    @precondition(lambda self: self.asked is not None)
    def planner_fails(self) -> None:
        self.step(Report(answer=Failure(number=self.asked, text="It died.")))

    @rule(data=st.data())
    @precondition(lambda self: self.under_way)
    def some_layers_move(self, data: st.DataObject) -> None:
        layers = data.draw(st.sets(st.sampled_from(sorted(self.under_way)), min_size=1))
        self.under_way -= layers
        self.follower.commit(tuple(layers))
        self.step(Report(moved=tuple(layers)))

    @rule()
    @precondition(lambda self: self.controller.state is State.MOVE)
    def transfer_fails(self) -> None:
        self.step(Report(failures=("A checksum is wrong.",)))
        assert self.controller.state is State.OBSERVE

    @invariant()
    def ranks_serve_what_rank_0_thinks(self) -> None:
        assert self.follower.placement == self.controller.placement

    @invariant()
    def every_layer_is_old_or_new(self) -> None:
        for row, old, new in zip(
            self.controller.placement.slots, START.slots, OTHER.slots, strict=True
        ):
            assert (row == old).all() or (row == new).all()

    def teardown(self) -> None:
        for _ in range(64 * SETTINGS.update_interval + 2):  # it waits for nothing for ever
            if self.controller.state in (State.OBSERVE, State.MOVE, State.SETTLE):
                break
            self.step(Report())
        assert self.controller.state not in (State.WARM_UP, State.PLAN)


class AnyWishes(AnyReports):
    """The same where somebody asks for looks at any time."""

    on_demand = True

    @rule()
    def ask(self) -> None:
        self.controller.ask()


TestAnyReports = AnyReports.TestCase
TestAnyWishes = AnyWishes.TestCase


@given(st.integers(0, 3))
def test_equal_reports_give_equal_orders(seed):
    def orders() -> list[tuple[object, ...]]:
        rng, controller = np.random.default_rng(seed), Controller(START, SETTINGS)
        made, report = [], None
        for _ in range(60):
            order = controller.step(report)
            made.append((order.number, order.action, order.state, order.serving, order.layers))
            answer = None
            if order.action is Action.LOOK:
                excess = float(rng.random() / 5)
                answer = finding(order.number, excess, proposal=OTHER, predicted=decision())
            report = Report(answer=answer, moved=order.layers)
        return made

    assert orders() == orders()


# --- a synthetic world: our routers, our planner, our gate -----------------------------------

GATE = Gate(
    cost=RankCost(token_seconds=1e-6),
    expert_bytes=1_000_000,
    dwell_steps=400,
    stall_seconds=0.0,
    interference=0.5,
    delay_steps=20,
    dispatch="even",
)
LIVE = Settings(window=32, update_interval=64, wait_steps=20, warm_up_steps=10)


@dataclass
class World:
    """A model that serves a trace, one step after the other, on one process."""

    trace: Trace
    settings: Settings = LIVE
    num_slots: int = 32
    planner_steps: int = 3
    orders: list[Order] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def serve(self) -> Controller:
        advisor = GatedRepair(
            topology=TOPOLOGY, gate=GATE, repair={"proposals": 1 << 14, "num_threads": 1}
        )
        problem = Problem(self.trace, TOPOLOGY, self.num_slots)
        controller = Controller(Contiguous().plan(problem).placement, self.settings)
        due: dict[int, Finding] = {}
        report = Report()
        for step in range(self.trace.num_steps):
            order = controller.step(report)
            self.orders.append(order)
            if order.action is Action.LOOK:
                seen = np.arange(step + 1 - self.settings.window, step + 1)
                answer = advisor(controller.question, self.trace.select(steps=seen))
                due[step + self.planner_steps] = answer
                self.findings.append(answer)
            report = Report(answer=due.get(step), moved=order.layers)
        return controller

    def steps_of(self, action: Action) -> list[int]:
        return [n for n, order in enumerate(self.orders) if order.action is action]


@pytest.mark.parametrize("num_tokens", [64, 512])
def test_chance_alone_never_moves_anything(num_tokens):
    popularity = steady(uniform(32, num_layers=2), num_steps=2000)
    world = World(sample_trace(popularity, num_tokens=num_tokens, top_k=4, seed=1))
    world.serve()
    assert len(world.findings) > 25
    assert [f for f in world.findings if f.sure_excess > LIVE.excess_off] == []
    assert world.steps_of(Action.MOVE) == []
    if num_tokens == 64:  # an alarm on the imbalance itself would never be silent
        assert min(f.balance[""].imbalance for f in world.findings) > 1 + LIVE.excess_on


@pytest.mark.parametrize("num_slots", [32, 40])
def test_a_shift_of_domain_is_answered_and_nothing_happens_while_nothing_changes(num_slots):
    domains = [lognormal(32, sigma=1.0, num_layers=2, seed=seed) for seed in (0, 1)]
    popularity, _ = shift_domains(domains, num_steps=2000, steps_per_domain=1000)
    trace = sample_trace(popularity, num_tokens=256, top_k=4, seed=3)
    world = World(trace, num_slots=num_slots)
    world.serve()
    moves = world.steps_of(Action.MOVE)
    first, after = [m for m in moves if m < 1000], [m for m in moves if m >= 1000]
    assert first
    assert max(first) < 400  # then nothing changes
    assert after
    assert min(after) < 1000 + LIVE.update_interval + LIVE.window
    assert max(after) < 1500
    kept = [o for o in world.orders if o.outcome is Outcome.KEPT]
    assert len(kept) >= 2
    assert world.findings[-1].balance[""].excess < world.findings[0].balance[""].excess / 3


@pytest.mark.parametrize("planner_steps", [LIVE.wait_steps + 5, 5 * LIVE.update_interval])
def test_a_planner_slower_than_the_wait_and_even_the_interval_moves_experts(planner_steps):
    domains = lognormal(32, sigma=1.0, num_layers=2)
    trace = sample_trace(steady(domains, num_steps=2000), num_tokens=256, top_k=4, seed=3)
    world = World(trace, planner_steps=planner_steps)
    world.serve()
    given_up = len(world.steps_of(Action.ABORT))
    assert given_up == (0 if planner_steps < LIVE.update_interval else 3)  # after 64, 128, 256
    assert world.steps_of(Action.MOVE)
    assert world.findings[-1].balance[""].excess < world.findings[0].balance[""].excess / 3


def test_a_planner_that_never_answers_changes_nothing_and_is_asked_ever_more_rarely():
    domains = lognormal(32, sigma=1.0, num_layers=2)
    trace = sample_trace(steady(domains, num_steps=1000), num_tokens=64, top_k=4, seed=3)
    world = World(trace, planner_steps=10_000)
    world.serve()
    assert world.steps_of(Action.MOVE) == []
    waits = np.subtract(world.steps_of(Action.ABORT), world.steps_of(Action.LOOK)[:3])
    assert waits.tolist() == [65, 129, 257]
