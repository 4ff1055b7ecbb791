from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch.distributed as dist

from equipoise.control.status import Status, status_key
from equipoise.errors import EquipoiseError
from equipoise.runtime.serving.publisher import Publisher

FACTS = {
    "rank": 0, "members": ("one", "two"), "epoch": 1, "step": 7, "domain": "docs", "state": "plan",
    "version": 2, "moved_slots": 3, "moved_bytes": 4,
}  # fmt: skip


@pytest.fixture
def publisher():
    times = iter(range(100))
    return Publisher(dist.HashStore(), "one", clock=lambda: next(times))


def said(publisher, **facts):
    """What is read after something was published."""
    publisher.publish(**FACTS | facts)
    return Status.decode(publisher._store.get(status_key("one")))


def test_adds_up_since_the_last_status(publisher):
    publisher.take_load(np.array([3, 1]))
    publisher.take_load(np.array([2, 2]))
    publisher.take_step(tokens=4, seconds=0.5)
    publisher.take_step(tokens=2, seconds=1.5)
    first = said(publisher, rank=1)
    assert first.rank_load == (5, 3)
    assert first.imbalance == pytest.approx((1.5 + 1.0) / 2)
    assert (first.tokens, first.step_seconds) == (6, 1.0)
    assert (first.rank, first.state, first.name) == (1, "plan", "one")
    second = said(publisher)
    assert (second.tokens, second.rank_load, second.imbalance) == (6, (), 1.0)
    assert second.time > first.time


def test_other_ranks_than_before(publisher):
    publisher.take_load(np.array([3, 1, 1, 1]))
    publisher.forget()
    publisher.take_load(np.array([0, 0]))  # a layer without load has no imbalance
    publisher.take_load(np.array([1, 3]))
    status = said(publisher)
    assert status.rank_load == (1, 3)
    assert status.imbalance == 1.5


def test_tells_the_last_lines_of_the_log(publisher):
    logger = logging.getLogger("tests.status")
    logger.setLevel(logging.INFO)
    logger.addHandler(publisher.log)
    for number in range(7):
        logger.info("line %d", number)
    logger.removeHandler(publisher.log)
    assert said(publisher).log == tuple(f"line {number}" for number in range(2, 7))


def test_is_due_a_few_times_a_second(publisher):
    assert publisher.due  # the clock of these tests takes a second a look


def test_nothing_in_it_steers_a_terminal_or_is_half_a_character(publisher, monkeypatch):
    logger = logging.getLogger("tests.status")
    monkeypatch.setattr(logger, "propagate", False)  # processes of pytest cannot send such text
    logger.addHandler(publisher.log)
    logger.warning("a\x1b[2Jb\nc \udcff")
    logger.removeHandler(publisher.log)
    status = said(publisher, domain="\x9bd\ud800")
    assert status.log == ("a?[2Jb?c ?",)
    assert status.domain == "?d?"


def test_what_is_published_can_be_read_by_others(publisher):
    said(publisher, alarms=("nothing_counted",))
    text = json.loads(publisher._store.get("status/one"))
    assert (text["name"], text["members"], text["log"]) == ("one", ["one", "two"], [])
    assert text["alarms"] == ["nothing_counted"]
    assert set(text) == set(Status.__struct_fields__)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "one", "rank": "first"}'])
def test_what_is_no_status_is_told(text):
    with pytest.raises(EquipoiseError, match="an invalid status"):
        Status.decode(text)
