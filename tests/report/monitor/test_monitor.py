from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from equipoise.report.monitor.events import events
from equipoise.report.monitor.look import Counts, Gain, Loads, Look, look_at_loads
from equipoise.report.monitor.monitor import Monitor
from equipoise.report.monitor.rates import rates

SERVED = Look(
    time=0.0, num_ranks=2, map_version=0, imbalance={"all": 1.4}, noise_floor={"all": 1.1},
    rank_load={0: 0.6, 1: 1.4}, layer_imbalance={3: 1.2, 4: 1.6},
)  # fmt: skip


def served(time: float, **said: Any) -> Look:
    """A look at a serving group that makes 10 steps and 400 tokens a second."""
    counts = Counts(steps=10 * time, step_seconds=0.3 * time, tokens=400 * time)
    return replace(SERVED, **{"time": time, "counts": counts} | said)


def recorded(step: int, hot: int = 0) -> Look:
    """A look at two layers of four experts on two ranks; ``hot`` of the second is busy."""
    load_LE = np.full((2, 4), 10)
    load_LE[1, hot] = 50
    load_LR = load_LE.reshape(2, 2, 2).sum(axis=2).astype(float)
    loads = Loads(layer_ids=(3, 4), load_LE=load_LE, load_LR=load_LR)
    return look_at_loads(loads, time=float(step), step=step, noise_floor=1.05)


def test_rates_are_those_of_the_last_ten_seconds():
    monitor = Monitor("group")
    monitor.take([served(0.0), served(100.0), served(110.0)])
    assert monitor.as_dict()["tokens_per_second"] == 400.0
    assert monitor.as_dict()["step_seconds"] == pytest.approx(0.03)


def test_counters_that_begin_again_are_no_rate():
    monitor = Monitor("group")
    monitor.take([served(100.0), served(102.0, counts=Counts(steps=1.0, tokens=4.0))])
    assert monitor.as_dict()["tokens_per_second"] is None
    assert [e.text for e in monitor.events] == ["the system was started again: it counts from 0"]


def test_ranks_are_sorted_by_load_and_by_number():
    monitor = Monitor("group")
    monitor.take([served(0.0)])
    assert [bar.name for bar in monitor.view(0.0).ranks] == ["rank 1", "rank 0"]
    monitor.press("s")
    assert [bar.name for bar in monitor.view(0.0).ranks] == ["rank 0", "rank 1"]


def test_a_layer_is_drilled_into_the_worst_first():
    monitor = Monitor("file")
    monitor.take([recorded(1), recorded(2)])
    monitor.press("d")
    view = monitor.view(2.0)
    assert view.curve_title == "Imbalance of layer 4 1.50"
    assert [m.imbalance for m in view.curve] == [1.5, 1.5]
    assert {expert.layer for expert in view.experts} == {4}
    assert [bar.value for bar in view.ranks] == [1.5, 0.5]
    monitor.press("j")
    assert monitor.view(2.0).curve_title == "Imbalance of layer 3 1.00"
    monitor.press("k")
    monitor.press("d")
    assert monitor.view(2.0).curve_title == "Imbalance 1.25, chance gives 1.05"


def test_without_layers_there_is_nothing_to_drill_into():
    monitor = Monitor("group")
    monitor.take([served(0.0, layer_imbalance={})])
    monitor.press("d")
    assert monitor.view(0.0).notice == "This source does not report single layers."


def test_paused_the_picture_stays_and_nothing_is_lost():
    monitor = Monitor("group")
    monitor.take([served(0.0)])
    monitor.press("p")
    monitor.take([served(2.0, map_version=1)])
    paused = monitor.view(2.0)
    assert (len(paused.curve), paused.facts[0], paused.events) == (1, "PAUSED", ())
    monitor.press("p")
    assert [e.text for e in monitor.view(2.0).events] == ["map 0 -> 1"]


def test_a_trend_compares_the_last_looks_with_those_before():
    monitor = Monitor("file")
    monitor.take([recorded(step, hot=0 if step < 8 else 2) for step in range(16)])
    first = monitor.view(16.0).experts[0]
    assert (first.layer, first.expert) == (4, 2)
    assert first.trend == pytest.approx(5.0)


def test_a_failure_is_shown_until_the_next_look():
    monitor = Monitor("group")
    monitor.take([served(0.0)])
    monitor.fail("it does not answer.")
    assert monitor.view(0.0).troubles == ("it does not answer.",)
    monitor.take([served(2.0)])
    assert monitor.view(0.0).troubles == ()


def test_the_summary_has_a_row_for_each_map():
    monitor = Monitor("group")
    monitor.take([served(0.0), served(2.0), served(4.0, map_version=1, imbalance={"all": 1.1})])
    first, second = monitor.summary()
    assert (first.map_version, first.seconds, first.looks, first.imbalance) == (0, 4.0, 2, 1.4)
    assert (second.map_version, second.imbalance, second.tokens_per_second) == (1, 1.1, None)


def test_events_are_sentences_in_units_that_people_read():
    before = served(0.0)
    after = replace(
        before, num_ranks=1, map_version=1, recovery_seconds=1.25, achieved_gain=Gain(12.0, 81e-6),
        predicted_gain=Gain(14.0, 95e-6), alarms=frozenset({"maps_disagree"}),
        counts=Counts(moved_slots=12, moved_bytes=8.1e6, rebalances={"kept": 1.0, "failed": 1.0},
                      failures=1.0, failed_requests=3.0),
    )  # fmt: skip
    assert list(events(before, after)) == [
        "ranks: 2 -> 1; 1.2 s without serving",
        "map 0 -> 1",
        "moved 12 slots, 8.1 MB",
        "kept: saves 81 us a step (predicted: 95 us)",
        "an attempt to balance failed; serving goes on",
        "3 requests could not be served",
        "1 failures of planners, transfers or maps",
        "alarm maps_disagree began",
    ]


def test_a_gain_whose_time_nobody_knows_is_told_in_assignments():
    before = served(0.0)
    after = replace(
        before,
        achieved_gain=Gain(12.25),
        predicted_gain=Gain(13.5),
        counts=Counts(rebalances={"kept": 1.0}),
    )
    assert list(events(before, after)) == [
        "kept: saves the busiest ranks 12 assignments a step (predicted: 14)"
    ]


def test_a_process_that_falls_silent_is_an_event():
    before, after = served(0.0), served(1.0, silent={"host:1": "it does not answer."})
    assert list(events(before, after)) == ["host:1: it does not answer."]
    assert next(iter(events(after, before))) == "host:1 answers again"


def test_two_looks_at_one_time_have_no_rate():
    assert rates(served(1.0), served(1.0)).tokens_per_second is None
