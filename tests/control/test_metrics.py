from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from equipoise.control.controller import Action, Controller, Outcome, Report, State
from equipoise.control.findings import Balance, Failure
from equipoise.control.metric_families import (
    BRIDGED,
    DESCRIPTIONS,
    DETAILS,
    MOST_CELLS,
    MOST_DETAILS,
)
from equipoise.control.metrics import FRESH_SECONDS, STATUSES, Metrics
from equipoise.control.watchdog import ALARMS
from tests.control.advisors import decision
from tests.control.test_controller import SETTINGS, START, finding

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
DECODE = Balance(imbalance=1.5, excess=0.25, balancedness=0.7)
ALL = Balance(imbalance=1.25, excess=0.125, balancedness=0.75)


class Clock:
    def __init__(self, now: float = 1e6) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def full(clock: Clock | None = None, **named) -> Metrics:
    """Of a rank to which everything has happened."""
    clock = clock or Clock()
    metrics = Metrics(clock=clock, **named)
    metrics.take_info(version="0.1.0", model="balance-5m", dispatch="minmax", planner="GatedRepair")
    metrics.take_settings(SETTINGS)
    metrics.take_ranks(3, 1.5, wanted=4, process="p1", rank=2, epoch=7)
    for seconds, stall in ((0.5, 0.0), (0.25, 0.125), (0.25, 0.0)):
        clock.now += 1
        metrics.take_step(seconds, tokens=6, stall_seconds=stall)
    balance = {"": ALL, "prefill": ALL, "decode": DECODE, "draft": ALL}
    answer = finding(1, predicted=decision(gain=2e-3), achieved=decision(gain=1e-3))
    answer = replace(
        answer,
        balance=balance,
        seconds=4.0,
        rank_load=(0.75, 1.25),
        layer_imbalance={3: 1.25},
        layer_rank_load={3: (0.75, 1.25)},
    )
    metrics.take_answer(answer)
    metrics.take_move(5, 44)
    metrics.take_first_token(0.5)
    metrics.take_later_tokens(0.03)
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
    read = samples(full())
    buckets = {name for name in read if "_bucket/" in name}
    assert len(buckets) == 4 * 16
    assert {name: value for name, value in read.items() if name not in buckets} == {
        "equipoise_info/minmax/balance-5m/GatedRepair/0.1.0": 1.0,
        "equipoise_rank/p1": 2.0,
        "equipoise_epoch": 7.0,
        "equipoise_ranks": 3.0,
        "equipoise_ranks_wanted": 4.0,
        "equipoise_recovery_seconds": 1.5,
        "equipoise_state": 0.0,
        "equipoise_map_version": 0.0,
        "equipoise_last_step_timestamp_seconds": 1e6 + 3,
        "equipoise_last_look_timestamp_seconds": 1e6 + 3,
        "equipoise_last_move_timestamp_seconds": 1e6 + 3,
        "equipoise_look_interval_seconds": max(SETTINGS.update_interval, SETTINGS.settle_steps),
        "equipoise_imbalance/prefill": 1.25,
        "equipoise_imbalance/decode": 1.5,
        "equipoise_noise_floor/prefill": 1.125,
        "equipoise_noise_floor/decode": 1.25,
        "equipoise_excess/prefill": 0.125,
        "equipoise_excess/decode": 0.25,
        "equipoise_balancedness": 0.75,
        "equipoise_expert_load_balance_ratio": 1.25,
        "equipoise_predicted_gain_assignments": 1.0,
        "equipoise_achieved_gain_assignments": 1.0,
        "equipoise_predicted_gain_seconds": 2e-3,
        "equipoise_achieved_gain_seconds": 1e-3,
        "equipoise_planner_seconds": 4.0,
        "equipoise_alarm/balancing_stopped": 0.0,
        "equipoise_alarm/nothing_counted": 0.0,
        "equipoise_alarm/maps_disagree": 1.0,
        "equipoise_alarm/map_not_kept": 0.0,
        "equipoise_alarm/answers_not_written": 0.0,
        "equipoise_requests_total/answered": 2.0,
        "equipoise_requests_total/failed": 1.0,
        "equipoise_step_seconds_count": 3.0,
        "equipoise_step_seconds_sum": 1.0,
        "equipoise_stall_seconds_count": 3.0,
        "equipoise_stall_seconds_sum": 0.125,
        "equipoise_ttft_seconds_count": 1.0,
        "equipoise_ttft_seconds_sum": 0.5,
        "equipoise_tpot_seconds_count": 1.0,
        "equipoise_tpot_seconds_sum": 0.03,
        "equipoise_ttft_p99": 0.5,
        "equipoise_tpot_avg": 0.03,
        "equipoise_utilisation": 0.25,
        "equipoise_tokens_total": 18.0,
        "equipoise_moved_slots_total": 5.0,
        "equipoise_moved_bytes_total": 44.0,
        "equipoise_failures_total": 0.0,
        "equipoise_rebalances_total/kept": 0.0,
        "equipoise_rebalances_total/unproven": 0.0,
        "equipoise_rebalances_total/rolled_back": 0.0,
        "equipoise_rebalances_total/refused": 0.0,
        "equipoise_rebalances_total/failed": 0.0,
    }


def test_about_thirty_metrics():
    by_default = [f.name for f in full().collect() if not f.name.endswith("gain_seconds")]
    assert len(by_default) <= 34


def test_a_gate_that_knows_no_times_exports_no_seconds():
    metrics = Metrics()
    untimed = replace(decision(), moved_bytes=0, pay_seconds=0.0, gain_assignments=12.5)
    metrics.take_answer(finding(1, predicted=untimed))
    text = metrics.text()
    assert "equipoise_predicted_gain_assignments 12.5" in text
    assert "gain_seconds" not in text


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
    assert "equipoise_last_look_timestamp_seconds" not in read


def test_a_rank_that_knows_no_loads_has_no_series_of_them():
    read = samples(Metrics())
    assert not any("imbalance" in name or "gain" in name or "look" in name for name in read)
    assert "equipoise_step_seconds_count" in read


def test_loads_without_phases_are_told_as_a_whole():
    metrics = Metrics()
    metrics.take_answer(replace(finding(1), balance={"": ALL}))
    assert samples(metrics)["equipoise_imbalance/all"] == 1.25


# --- nothing goes stale ------------------------------------------------------------------------


def names_after(seconds: float) -> set[str]:
    clock = Clock()
    metrics = full(clock, with_details=True)
    clock.now += seconds
    return {re.sub(r"/.*", "", name) for name in samples(metrics)}


def test_what_a_look_has_shown_is_not_told_for_ever():
    shown = {
        f"equipoise_{name}"
        for name in (
            "imbalance", "excess", "noise_floor", "balancedness", "expert_load_balance_ratio",
            "rank_load", "layer_imbalance", "layer_rank_load", "ttft_p99", "tpot_avg",
        )
    }  # fmt: skip
    fresh, old = names_after(FRESH_SECONDS), names_after(FRESH_SECONDS + 1)
    assert fresh - old == shown
    assert {"equipoise_last_look_timestamp_seconds", "equipoise_look_interval_seconds"} <= old


def test_a_look_is_told_for_three_intervals_where_these_are_long():
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.take_settings(SETTINGS)
    for _ in range(2):
        clock.now += 1000
        metrics.take_step(1.0)
    metrics.take_answer(replace(finding(1), balance={"": ALL}))
    clock.now += 3000 * max(SETTINGS.update_interval, SETTINGS.settle_steps)
    assert "equipoise_balancedness" in samples(metrics)
    clock.now += 1
    assert "equipoise_balancedness" not in samples(metrics)


def test_what_rank_0_knew_of_other_ranks_is_forgotten_when_they_change():
    metrics = full(with_details=True)
    metrics.take_ranks(2, 3.0, wanted=4, process="p1", rank=1)
    assert not [name for name in samples(metrics) if re.search("look|imbal|gain|planner_s", name)]


def test_a_rank_that_hangs_is_utilised_less_and_less():
    clock = Clock()
    metrics = full(clock)
    before = samples(metrics)["equipoise_utilisation"]
    clock.now += 98
    assert samples(metrics)["equipoise_utilisation"] == pytest.approx(before / 50)


def test_only_passes_with_tokens_of_this_rank_utilise_it():
    clock = Clock()
    metrics = Metrics(clock=clock)
    for tokens in (0, 8, 0, 0, 8):
        clock.now += 1
        metrics.take_step(0.5, tokens=tokens)
    assert samples(metrics)["equipoise_utilisation"] == 0.25


def test_the_99th_of_a_hundred():
    metrics = Metrics()
    for milliseconds in range(1, 101):
        metrics.take_first_token(milliseconds / 1000)
    assert samples(metrics)["equipoise_ttft_p99"] == 0.099


# --- what comes from outside -------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers():
    metrics = Metrics()
    metrics.take_step(np.float32(0.5))
    assert samples(metrics)["equipoise_step_seconds_sum"] == 0.5


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('a"} 1\nfake_metric 2\n# ', 'a"} 1?fake_metric 2?# '),
        ("back\\slash", "back\\slash"),
        ("\x1b[31mred \udc80", "?[31mred ?"),
        ("x" * 1000, "x" * 100),
    ],
)
def test_names_cannot_break_out_of_their_labels(name, shown):
    metrics = full()
    metrics.take_info(model=name)
    metrics.take_ranks(1, 0.0, wanted=1, process=name, rank=0)
    families = {f.name: f for f in text_string_to_metric_families(metrics.text())}
    assert "fake_metric" not in families
    assert families["equipoise_info"].samples[0].labels["model"] == shown
    assert families["equipoise_rank"].samples[0].labels == {"process": shown}


def test_details_are_opt_in_and_bounded():
    def shown(**named) -> dict[str, float]:
        read = samples(full(**named))
        return {name: value for name, value in read.items() if re.search("rank_load|layer", name)}

    assert not shown()
    assert shown(with_details=True) == {
        "equipoise_rank_load/0": 0.75,
        "equipoise_rank_load/1": 1.25,
        "equipoise_layer_imbalance/3": 1.25,
        "equipoise_layer_rank_load/3/0": 0.75,
        "equipoise_layer_rank_load/3/1": 1.25,
    }
    metrics = Metrics(with_details=True)
    many = dict.fromkeys(range(1000), 1.0)
    cells = dict.fromkeys(range(100), (1.0,) * 48)
    metrics.take_answer(
        replace(finding(1), rank_load=tuple(many), layer_imbalance=many, layer_rank_load=cells)
    )
    read = [name for name in samples(metrics) if re.search("rank_load|layer", name)]
    of_cells = [name for name in read if "layer_rank_load" in name]
    assert len(read) - len(of_cells) == 2 * MOST_DETAILS
    assert len(of_cells) == MOST_CELLS // 48 * 48


# --- how it is told ----------------------------------------------------------------------------


def test_it_registers_beside_others():
    registry = CollectorRegistry()
    registry.register(full())
    assert registry.get_sample_value("equipoise_balancedness") == 0.75


def test_every_metric_is_documented():
    page = PAGE.read_text(encoding="utf-8")
    families = list(full(with_details=True).collect())
    named = {family.name.removeprefix("equipoise_") for family in families}
    assert named - {"equipoise"} == {*DESCRIPTIONS, *DETAILS} - {"info"}
    told = re.findall(r"^\| `equipoise_(\w+?)(?:_total)?` \| (\w+) \|", page, flags=re.MULTILINE)
    bridged = [pair for pair in told if pair[0] in BRIDGED]
    assert len(bridged) == len(BRIDGED)
    assert sorted(set(told) - set(bridged)) == sorted(
        ("info" if f.type == "info" else f.name.removeprefix("equipoise_"),
         "gauge" if f.type == "info" else f.type)
        for f in families
    )  # fmt: skip


def test_every_label_is_documented():
    page = PAGE.read_text(encoding="utf-8")
    labels = [*ALARMS, *STATUSES, *(o.value for o in Outcome), *(s.value for s in State)]
    assert [label for label in labels if f"`{label}`" not in page] == []
