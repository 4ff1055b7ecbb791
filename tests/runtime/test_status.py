from __future__ import annotations

import json
import logging

import msgspec
import numpy as np
import pytest
import torch.distributed as dist

from equipoise.runtime.serving.status import Status


@pytest.fixture
def status():
    times = iter(range(100))
    return Status(dist.HashStore(), "one", clock=lambda: next(times))


def said(status):
    return json.loads(status._store.get("status/one"))


def test_adds_up_since_the_last_status(status):
    status.take_load(np.array([3, 1]))
    status.take_load(np.array([2, 2]))
    status.take_step(tokens=4, seconds=0.5)
    status.take_step(tokens=2, seconds=1.5)
    status.publish(rank=1, state="plan")
    first = said(status)
    assert first["rank_load"] == [5, 3]
    assert first["imbalance"] == pytest.approx((1.5 + 1.0) / 2)
    assert (first["tokens"], first["step_seconds"]) == (6, 1.0)
    assert (first["rank"], first["state"], first["name"]) == (1, "plan", "one")
    status.publish()
    second = said(status)
    assert (second["tokens"], second["rank_load"], second["imbalance"]) == (6, [], 1.0)
    assert second["time"] > first["time"]


def test_other_ranks_than_before(status):
    status.take_load(np.array([3, 1, 1, 1]))
    status.forget()
    status.take_load(np.array([0, 0]))  # a layer without load has no imbalance
    status.take_load(np.array([1, 3]))
    status.publish()
    assert said(status)["rank_load"] == [1, 3]
    assert said(status)["imbalance"] == 1.5


def test_tells_the_last_lines_of_the_log(status):
    logger = logging.getLogger("tests.status")
    logger.setLevel(logging.INFO)
    logger.addHandler(status.log)
    for number in range(7):
        logger.info("line %d", number)
    logger.removeHandler(status.log)
    status.publish()
    assert said(status)["log"] == [f"line {number}" for number in range(2, 7)]


def test_is_due_a_few_times_a_second(status):
    assert status.due  # the clock of these tests takes a second a look


def test_nothing_in_it_steers_a_terminal_or_is_half_a_character(status, monkeypatch):
    logger = logging.getLogger("tests.status")
    monkeypatch.setattr(logger, "propagate", False)  # processes of pytest cannot send such text
    logger.addHandler(status.log)
    logger.warning("a\x1b[2Jb\nc \udcff")
    logger.removeHandler(status.log)
    status.publish(domain="\x9bd\ud800")
    text = status._store.get("status/one")
    assert said(status)["log"] == ["a?[2Jb?c ?"]
    assert said(status)["domain"] == "?d?"
    assert msgspec.json.decode(text)["domain"] == "?d?"
