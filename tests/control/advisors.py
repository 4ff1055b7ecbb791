"""Advisors that let things happen which real loads would rarely ask for."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.control.findings import Balance, Finding
from equipoise.migration import with_slots
from equipoise.placement import Placement
from equipoise.plan.weigh.gate import Decision


def decision(move: bool = True, gain: float = 1.0, low: float = 0.5) -> Decision:
    return Decision(
        move=move, gain_seconds=gain, gain_low=low, gain_high=2 * gain, gain_assignments=1.0,
        moves=6, moved_bytes=6, move_seconds=0.1, pay_seconds=0.1, break_even_steps=1.0,
        sure_after_steps=1.0, dwell_steps=100.0, confidence=0.95,
    )  # fmt: skip


@dataclass(frozen=True)
class Restless:
    """An advisor that always wants experts elsewhere, and always finds that it was worth it.

    It takes its share of the cores: runs are short, and may have other runs next to them.
    """

    seed: int
    fault: str = "none"

    def __call__(self, question: Any, window: Any) -> Any:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        rng = np.random.default_rng([self.seed, question.number])
        if self.fault == "slow" and rng.random() < 0.5:
            time.sleep(1000)
        if self.fault == "garbage" and rng.random() < 0.7:
            return self._garbage(question, rng)
        return self._finding(question, _shuffled(question.current, rng))

    def _finding(self, question: Any, proposal: Any) -> Finding:
        return Finding(
            number=question.number,
            balance={"": Balance(imbalance=1.5, excess=0.5, balancedness=0.7)},
            sure_excess=0.5,
            assignments=1000,
            achieved=decision() if question.previous is not None else None,
            proposal=proposal,
            predicted=decision(),
        )

    def _garbage(self, question: Any, rng: np.random.Generator) -> Any:
        if rng.random() < 0.3:
            return "garbage"
        broken = _shuffled(question.current, rng)
        slots = broken.slots.copy()
        slots[slots == 0] = 1  # nobody has expert 0
        object.__setattr__(broken, "slots", slots)
        return self._finding(question, broken)


def _shuffled(current: Placement, rng: np.random.Generator) -> Placement:
    """The same slots in another order."""
    return with_slots(current, np.stack([rng.permutation(row) for row in current.slots]))
