from __future__ import annotations

from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from equipoise.control.metrics import Metrics
from equipoise.runtime.serving.request_times import RequestTimes
from equipoise.runtime.serving.requests import Request


class Timed:
    """Request times of a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 10.0
        self.metrics = Metrics()
        self.times = RequestTimes(self.metrics, clock=lambda: self.now)

    def see(self, *numbers: int, after: float, done: bool = False, new_tokens: int = 5) -> None:
        self.now += after
        requests = tuple(Request(number, (1,)) for number in numbers)
        self.times.see(SimpleNamespace(requests=requests, done=done, new_tokens=new_tokens))

    def told(self) -> dict[str, float]:
        return {
            sample.name.removeprefix("equipoise_").replace("_seconds", ""): sample.value
            for family in text_string_to_metric_families(self.metrics.text())
            for sample in family.samples
            if family.name in ("equipoise_ttft_seconds", "equipoise_tpot_seconds")
            and not sample.name.endswith("_bucket")
        }


def test_the_first_token_and_those_after_it():
    timed = Timed()
    timed.times.take([1, 2])
    timed.see(1, 2, after=0.5)
    for step in range(4):
        timed.see(1, 2, after=0.25, done=step == 3)
    assert timed.told() == {"ttft_count": 2, "ttft_sum": 1.0, "tpot_count": 2, "tpot_sum": 0.5}


def test_a_batch_that_begins_again_has_had_its_first_token():
    timed = Timed()
    timed.times.take([1, 2])
    timed.see(1, 2, after=0.5)
    timed.times.forget([2])  # another process serves it from now on
    for step in range(5):
        timed.see(1, after=1.0, done=step == 4)
    assert timed.told() == {"ttft_count": 2, "ttft_sum": 1.0, "tpot_count": 1, "tpot_sum": 1.25}


def test_a_single_token_has_no_time_per_later_one():
    timed = Timed()
    timed.times.take([1])
    timed.see(1, after=0.5, done=True, new_tokens=1)
    assert timed.told()["tpot_count"] == 0


def test_a_number_that_comes_again_is_timed_again():
    timed = Timed()
    for _ in range(2):
        timed.times.take([1])
        timed.see(1, after=0.5, done=True, new_tokens=1)
        timed.times.forget([1])
    assert timed.told()["ttft_sum"] == 1.0
