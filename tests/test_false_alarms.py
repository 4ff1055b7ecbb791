"""What chance does is called chance, and what is planted is noticed: 256 tokens, 32 ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.control.advisor import GatedRepair
from equipoise.control.findings import Question
from equipoise.control.settings import Settings
from equipoise.cost import RankCost
from equipoise.plan import Contiguous, Gate, Problem
from equipoise.report.summary import summarise
from equipoise.simulate.routers import lognormal, sample_trace, steady, uniform

TOPOLOGY = eq.Topology(32)
SHORT = Path(__file__).parent / "cases" / "short_recordings"
SHIFT, STEPS = 512, 640
WINDOW = 64
NOTICED_WITHIN = 8
"""Steps after a shift; docs/results/field.md says so."""


def routed(popularity: np.ndarray, num_steps: int, seed: int) -> eq.Trace:
    steps = steady(popularity, num_steps=num_steps)
    return sample_trace(steps, num_tokens=256, top_k=8, seed=seed)


@pytest.fixture(scope="module")
def fair() -> eq.Trace:
    return routed(uniform(256, num_layers=1), SHIFT, seed=1)


@pytest.fixture(scope="module")
def shifted(fair) -> eq.Trace:
    """Fair up to a step, then some experts twice as popular as others."""
    after = routed(lognormal(256, sigma=0.7, num_layers=1, seed=3), STEPS - SHIFT, seed=2)
    return eq.Trace(counts=np.concatenate([fair.counts, after.counts]), top_k=8)


def unbalanced_steps(trace: eq.Trace, steps: slice) -> float:
    """Share of the steps that the report calls more unbalanced than chance allows."""
    part = eq.Trace(counts=trace.counts[steps], top_k=8)
    return summarise(part, num_ranks=32).balance.beyond_chance


def sure_excess(trace: eq.Trace, end: int) -> float:
    """What the controller goes by, of the window that ends there."""
    window = eq.Trace(counts=trace.counts[end - WINDOW : end], top_k=8)
    placement = Contiguous().plan(Problem(window, TOPOLOGY, 256)).placement
    gate = Gate(
        cost=RankCost(token_seconds=1e-6), expert_bytes=0, dwell_steps=1000, stall_seconds=0.0,
        interference=0.0, delay_steps=0, dispatch="even",
    )  # fmt: skip
    advisor = GatedRepair(topology=TOPOLOGY, gate=gate, top_k=8)
    question = Question(number=1, current=placement, previous=None, plan_above=np.inf)
    return advisor(question, window).sure_excess


def test_of_a_fair_router_fewer_than_one_step_in_a_hundred_is_called_unbalanced(fair):
    assert unbalanced_steps(fair, slice(None)) < 0.01
    gamma = fair.counts.reshape(SHIFT, 32, 8).sum(axis=2)
    assert (gamma.max(axis=1) / gamma.mean(axis=1) > 1.15).mean() > 0.9  # what a plain limit does


def test_of_a_fair_router_no_look_of_the_controller_raises_its_alarm(fair):
    looks = [sure_excess(fair, end) for end in range(WINDOW, SHIFT + 1, 8)]
    assert max(looks) < Settings().excess_on


def test_a_shift_is_seen_in_single_steps(shifted):
    assert unbalanced_steps(shifted, slice(SHIFT, None)) > 0.8


def test_the_controller_notices_a_shift_within_the_steps_that_the_page_states(shifted):
    noticed = [sure_excess(shifted, SHIFT + n) > Settings().excess_on for n in range(0, 65, 4)]
    assert not noticed[0]
    assert noticed[NOTICED_WITHIN // 4 :] == [True] * len(noticed[NOTICED_WITHIN // 4 :])


@pytest.mark.parametrize("name", ["s1_10", "s4_10"])
@pytest.mark.parametrize("command", ["budget", "forecast"])
def test_nothing_is_recommended_from_ten_steps(command, name, capsys):
    options = ["--rank-cost", "h100-deepep-ep8"] if command == "forecast" else []
    path = str(SHORT / f"{name}.npz")
    assert main([command, path, "--ranks", "8", "--planner", "greedy", *options]) == 0
    out = capsys.readouterr().out
    said = "No verdict" if command == "budget" else "insufficient evidence"
    assert said in out
    assert "recommend:" not in out
