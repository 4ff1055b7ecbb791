"""Planners that fail at two calls after the warm-up, on all ranks or one, and else plan well."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.engines._shared.start_map import StartOptions
from equipoise.engines.ascend import runner_v1
from equipoise.plan import Answer, Outcome, Situation

WARM_UP, LAST = 2, 4


def raising(situation: Situation) -> Answer:
    raise RuntimeError("no luck today")


def hanging(situation: Situation) -> Answer:
    time.sleep(3600)
    raise AssertionError


def rubbish(situation: Situation) -> Answer:
    slots = np.zeros(np.shape(situation.slots), dtype=np.int64)
    return Answer(slots=slots, moves=0, outcome=Outcome.REPAIRED, reason="All is well.")


@dataclass
class Failing:
    """Picklable, so that it comes along to a planning process."""

    fault: str
    calls: list[Any] = field(default_factory=list)

    def __call__(self, situation: Situation) -> Answer:
        self.calls.append(situation)
        if WARM_UP < len(self.calls) <= LAST:
            return globals()[self.fault](situation)
        return runner_v1.plan(situation, gate=StartOptions().gate)


def install(name: str, rank: int) -> None:
    """Plan by ``raising``, ``hanging`` or ``rubbish``; ``one_raising``: on the first rank only."""
    runner_v1.LIMIT_SECONDS = 3.0
    fault = name.removeprefix("one_")
    if fault == name or rank == 0:
        runner_v1.install(StartOptions(), Failing(fault))
