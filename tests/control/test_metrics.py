from __future__ import annotations

import re
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from equipoise.control.controller import Action, Controller, Outcome, Report, State
from equipoise.control.findings import Balance, Failure
from equipoise.control.metrics import DESCRIPTIONS, STATUSES, Metrics
from equipoise.control.watchdog import ALARMS
from equipoise.errors import EquipoiseError
from tests.control.advisors import decision
from tests.control.test_controller import SETTINGS, START, finding

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
DECODE = Balance(imbalance=1.5, excess=0.3, balancedness=0.7)
ALL = Balance(imbalance=1.4, excess=0.2, balancedness=0.75)


def full() -> Metrics:
    metrics = Metrics()
    balance = {"": ALL, "prefill": ALL, "decode": DECODE, "draft": ALL}
    answer = finding(1, predicted=decision(gain=2e-3), achieved=decision(gain=1e-3))
    metrics.take_answer(replace(answer, balance=balance, seconds=4.0))
    metrics.take_step(0.5)
    metrics.take_step(0.25, stall_seconds=0.125)
    metrics.take_bytes(44)
    metrics.take_ranks(3, 1.5)
    for status in ("answered", "failed", "answered"):
        metrics.take_answered(status)
    metrics.take_alarms(frozenset({"maps_disagree"}))
    return metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """As a scraper reads them."""
    return {
        sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def test_what_a_scraper_reads():
    assert samples(full()) == {
        "equipoise_imbalance/prefill": 1.4,
        "equipoise_imbalance/decode": 1.5,
        "equipoise_excess/prefill": 0.2,
        "equipoise_excess/decode": 0.3,
        "equipoise_balancedness": 0.75,
        "equipoise_predicted_gain_seconds": 2e-3,
        "equipoise_achieved_gain_seconds": 1e-3,
        "equipoise_planner_seconds": 4.0,
        "equipoise_state": 0.0,
        "equipoise_ranks": 3.0,
        "equipoise_recovery_seconds": 1.5,
        "equipoise_alarm/balancing_stopped": 0.0,
        "equipoise_alarm/nothing_counted": 0.0,
        "equipoise_alarm/maps_disagree": 1.0,
        "equipoise_alarm/map_not_kept": 0.0,
        "equipoise_alarm/answers_not_written": 0.0,
        "equipoise_requests_total/answered": 2.0,
        "equipoise_requests_total/failed": 1.0,
        "equipoise_step_seconds_count": 2.0,
        "equipoise_step_seconds_sum": 0.75,
        "equipoise_moved_bytes_total": 44.0,
        "equipoise_stall_seconds_total": 0.125,
        "equipoise_failures_total": 0.0,
        "equipoise_rebalances_total/kept": 0.0,
        "equipoise_rebalances_total/unproven": 0.0,
        "equipoise_rebalances_total/rolled_back": 0.0,
        "equipoise_rebalances_total/refused": 0.0,
        "equipoise_rebalances_total/failed": 0.0,
    }


def test_about_twenty_series():
    assert len(samples(full())) <= 28


def test_orders_are_counted():
    controller, metrics = Controller(START, SETTINGS), Metrics()
    report = None
    for _ in range(16):
        order = controller.step(report)
        metrics.take_order(order)
        report = None
        if order.action is Action.LOOK:
            answer = Failure(number=order.number, text="It died.", seconds=2.5)
            metrics.take_answer(answer)
            report = Report(answer=answer)
    read = samples(metrics)
    assert read["equipoise_state"] == list(State).index(State.OBSERVE)
    assert read["equipoise_rebalances_total/failed"] == read["equipoise_failures_total"] == 1
    assert read["equipoise_planner_seconds"] == 2.5


def test_a_rank_that_knows_no_loads_has_no_series_of_them():
    read = samples(Metrics())
    assert not any("imbalance" in name or "gain" in name for name in read)
    assert "equipoise_step_seconds_count" in read


def test_loads_without_phases_are_told_as_a_whole():
    metrics = Metrics()
    metrics.take_answer(replace(finding(1), balance={"": ALL}))
    assert samples(metrics)["equipoise_imbalance/all"] == 1.4


def test_numbers_of_numpy_are_numbers():
    metrics = Metrics()
    metrics.take_step(np.float32(0.5))
    assert samples(metrics)["equipoise_step_seconds_sum"] == 0.5


def test_it_registers_beside_others():
    registry = CollectorRegistry()
    registry.register(full())
    assert registry.get_sample_value("equipoise_balancedness") == 0.75


def test_every_metric_is_documented():
    page = PAGE.read_text(encoding="utf-8")
    names = {family.name for family in full().collect()}
    assert names == {f"equipoise_{name}" for name in DESCRIPTIONS}
    told = set(re.findall(r"^\| `(equipoise_\w+)", page, flags=re.MULTILINE))
    exported = {re.sub(r"/.*", "", name) for name in samples(full())}
    assert told == {re.sub(r"_(count|sum)$", "", name) for name in exported}


def test_every_label_is_documented():
    page = PAGE.read_text(encoding="utf-8")
    labels = [*ALARMS, *STATUSES, *(o.value for o in Outcome), *(s.value for s in State)]
    assert [label for label in labels if f"`{label}`" not in page] == []


def test_answers_prometheus_over_http():
    port = full().listen(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        assert "equipoise_ranks 3.0" in page.read().decode()
    with pytest.raises(EquipoiseError, match=f"Port {port} of '127.0.0.1' cannot answer"):
        full().listen(port)


@pytest.mark.parametrize(("where", "reachable"), [({}, False), ({"host": "0.0.0.0"}, True)])
def test_answers_other_machines_only_if_told_to(where, reachable):
    port = full().listen(0, **where)
    # Every address in 127/8 is this machine's: one that nobody listens at refuses.
    with socket.socket() as caller:
        assert (caller.connect_ex(("127.0.0.2", port)) == 0) is reachable


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_an_address_that_is_none_is_refused(host):
    with pytest.raises(EquipoiseError, match="cannot answer Prometheus"):
        full().listen(0, host)
