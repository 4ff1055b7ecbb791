from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from equipoise.control.controller import Action, Controller, Follower, Order, Report, State
from equipoise.control.findings import Failure
from equipoise.control.watchdog import ALARMS, Watchdog
from tests.control.advisors import decision
from tests.control.test_controller import OTHER, SETTINGS, START, finding

PATIENCE = 2 * (SETTINGS.update_interval + SETTINGS.update_interval)  # the longer of the waits


@pytest.fixture(autouse=True)
def _lines_of_every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="equipoise.runtime")


def serve(steps: int, planner: object, transfer: bool = True) -> tuple[Watchdog, list[bool]]:
    """A watchdog next to a controller, and in which steps it says that balancing has stopped."""
    controller, follower, watchdog = (
        Controller(START, SETTINGS),
        Follower(START),
        Watchdog(SETTINGS),
    )
    report, stopped = Report(), []
    for _ in range(steps):
        order = controller.step(report)
        follower.follow(order)
        watchdog.see_order(order, follower)
        stopped.append("balancing_stopped" in watchdog.alarms)
        answer = planner(order) if order.action is Action.LOOK else None
        moved = order.layers if transfer else ()
        follower.commit(moved)
        report = Report(answer=answer, moved=moved)
    return watchdog, stopped


def quiet(order: Order) -> object:
    return finding(order.number, 0.0)


def test_a_healthy_run_is_silent(caplog):
    watchdog, _ = serve(300, quiet)
    assert watchdog.alarms == frozenset()
    assert caplog.records == []


@pytest.mark.parametrize("planner", [
    lambda order: None,
    lambda order: Failure(number=order.number, text="It died."),
])  # fmt: skip
def test_a_dead_planner_is_noticed_once(caplog, planner):
    _, stopped = serve(300, planner)
    assert stopped.index(True) == SETTINGS.warm_up_steps + PATIENCE
    assert all(stopped[stopped.index(True) :])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Balancing has made no progress since step 6 (now 47" in caplog.text


def test_a_transfer_that_hangs_is_noticed():
    def planner(order: Order) -> object:
        return finding(order.number, proposal=OTHER, predicted=decision())

    _, stopped = serve(60, planner, transfer=False)
    assert stopped[-1]
    assert not stopped[30]


def test_a_planner_that_comes_back_ends_the_alarm(caplog):
    def planner(order: Order) -> object:
        return quiet(order) if order.number > 100 else None

    _, stopped = serve(300, planner)
    assert True in stopped
    assert not stopped[-1]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "balancing_stopped: no longer." in caplog.text


def test_maps_that_disagree_are_noticed(caplog):
    controller, follower, watchdog = (
        Controller(START, SETTINGS),
        Follower(OTHER),
        Watchdog(SETTINGS),
    )
    order = controller.step()
    watchdog.see_order(order, follower)
    assert watchdog.alarms == {"maps_disagree"}
    assert f"{OTHER.checksum[:12]}, but rank 0 expects {START.checksum[:12]}" in caplog.text
    watchdog.see_order(replace(order, serving=OTHER.checksum), follower)
    assert watchdog.alarms == frozenset()
    assert order.state is State.WARM_UP


def test_a_recorder_that_counts_nothing_is_noticed(caplog):
    watchdog = Watchdog(SETTINGS)
    watchdog.see_counts(counted=0, served=0)
    assert watchdog.alarms == frozenset()
    watchdog.see_counts(counted=0, served=12)
    assert watchdog.alarms == {"nothing_counted"} < set(ALARMS)
    assert "counted nothing, but 12 tokens were served" in caplog.text
    watchdog.see_counts(counted=24, served=12)
    assert watchdog.alarms == frozenset()
