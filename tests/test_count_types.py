"""Counts mean the same in whatever integers: files keep them in few bytes, without a sign."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import equipoise as eq
from equipoise.control.advisor import plain_advisor
from equipoise.control.findings import Question
from equipoise.control.settings import Settings
from equipoise.cost import RankCost
from equipoise.dispatch import dispatcher
from equipoise.noise import trace_noise_floor
from equipoise.plan import Contiguous, Greedy, Problem, Repair, Robust, evaluate
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.forecast import forecast
from equipoise.simulate.online_trial import Online
from equipoise.simulate.routers import lognormal, sample_trace, steady

TOPOLOGY = eq.Topology(num_ranks=4)
SIGNED = sample_trace(
    steady(lognormal(8, sigma=1.0, num_layers=2), num_steps=48), num_tokens=96, top_k=2, seed=3
)
START = Contiguous().plan(Problem(SIGNED, TOPOLOGY, 12)).placement


@pytest.fixture(params=[np.uint8, np.uint16, np.uint32, np.uint64, np.int16])
def unsigned(request):
    counts = SIGNED.counts.astype(request.param)
    assert (counts == SIGNED.counts).all()
    return replace(SIGNED, counts=counts)


@pytest.mark.parametrize("dispatch", ["even", "minmax", "fewest", "nearest"])
def test_a_look_of_the_controller(unsigned, dispatch):
    advisor = plain_advisor(dispatcher(dispatch, TOPOLOGY), Settings(), TOPOLOGY, 12)
    question = Question(number=1, current=START, previous=None, plan_above=0.01)
    expected, found = advisor(question, SIGNED), advisor(question, unsigned)
    assert found.balance == expected.balance
    assert found.sure_excess == expected.sure_excess
    assert found.proposal == expected.proposal


@pytest.mark.parametrize("dispatch", ["even", "minmax", "fewest"])
def test_imbalance_and_its_floor(unsigned, dispatch):
    expected, found = (
        evaluate(START, trace, dispatch=dispatch).imbalance for trace in (SIGNED, unsigned)
    )
    assert (found == expected).all()
    expected, found = (trace_noise_floor(trace, 4).mean for trace in (SIGNED, unsigned))
    assert (found == expected).all()


@pytest.mark.parametrize(
    "planner",
    [
        Greedy(),
        Robust(proposals=1 << 10),
        Robust(dispatch="minmax", proposals=1 << 10),
        Repair(current=START, proposals=1 << 10),
    ],
    ids=["greedy", "robust", "robust minmax", "repair"],
)
def test_plans(unsigned, planner):
    expected, found = (
        planner.plan(Problem(trace, TOPOLOGY, 12)).placement for trace in (SIGNED, unsigned)
    )
    assert found == expected


def test_a_forecast_with_our_controller(unsigned):
    expected, found = (
        forecast(
            trace,
            TOPOLOGY,
            UncertainCost(name="ours", planning_cost=RankCost(token_seconds=1e-6), error=0.1),
            planner=lambda dispatch: Greedy(),
            redundant=[4],
            hold_out=0.7,
            online=Online(expert_bytes=1000, interference=0.0, stall_seconds=0.0, plan_seconds=0.0),
        )
        for trace in (SIGNED, unsigned)
    )
    assert found.online is not None
    assert found.verdict == expected.verdict
