"""The verdict at the end of a report: that of a forecast, or that there is no evidence."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
from equipoise.report import advice
from equipoise.report.advice import advise
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.forecast import forecast
from equipoise.simulate.routers import lognormal, sample_trace, steady


def skewed(num_tokens: int, num_steps: int) -> eq.Trace:
    popularity = lognormal(16, num_layers=2, seed=0)
    return sample_trace(steady(popularity, num_steps=num_steps), num_tokens=num_tokens, top_k=2)


def greedy(dispatch: str) -> eq.Greedy:
    return eq.Greedy()


@pytest.mark.parametrize(("tokens", "kind"), [(64, "not now"), (20_000, "recommend")])
def test_it_is_the_verdict_of_a_forecast(tokens, kind):
    trace = skewed(tokens, 40)
    found = advise(trace, 8)
    assert list(found.verdicts) == ["h100-deepep-ep8", "gb200-cutlass-ep8"]
    for name, verdict in found.verdicts.items():
        model = UncertainCost.published(name)
        expected = forecast(trace, eq.Topology(8), model, planner=greedy).verdict
        assert verdict == expected
    assert found.verdicts["h100-deepep-ep8"].kind == kind
    assert "the planner greedy on all of it" in found.basis


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_few_windows_are_no_evidence(steps):
    kinds = {verdict.kind for verdict in advise(skewed(20_000, steps), 8).verdicts.values()}
    assert kinds == {"insufficient evidence"}


def test_a_domain_of_a_single_step_is_no_evidence():
    counts = skewed(20_000, 40).counts
    domain = np.array(["a"] * 39 + ["b"])
    found = advise(eq.Trace(counts=counts, labels={"domain": domain}), 8)
    assert {verdict.kind for verdict in found.verdicts.values()} == {"insufficient evidence"}


def test_a_long_trace_is_judged_by_evenly_spaced_steps_and_layers(monkeypatch):
    trace = skewed(20_000, 80)
    monkeypatch.setattr(advice, "_MOST_STEPS", 40)
    monkeypatch.setattr(advice, "_FEWEST_LAYERS", 1)
    monkeypatch.setattr(advice, "_MOST_CELLS", 40 * 16)
    found = advise(trace, 8)
    assert "on 1 layers and 40 steps" in found.basis
    part = trace.select(layers=[trace.layer_ids[-1]], steps=np.arange(1, 80, 2))
    model = UncertainCost.published("h100-deepep-ep8")
    expected = forecast(part, eq.Topology(8), model, planner=greedy).verdict
    assert found.verdicts["h100-deepep-ep8"] == expected


def test_ranks_without_published_costs_are_told_what_takes_them():
    found = advise(skewed(100, 10), 6)
    assert not found.verdicts
    assert "no published constants are for 6 ranks" in found.basis


def test_gains_are_counted_from_the_map_in_force():
    trace = skewed(20_000, 40)
    current = eq.Greedy().plan(eq.Problem(trace, eq.Topology(8), 24)).placement
    found = advise(trace, 8, current)
    assert "the map in force" in found.verdicts["h100-deepep-ep8"].text
    other = eq.Placement(current.slots[:1], num_ranks=8, num_experts=16)
    assert "no balancing" in advise(trace, 8, other).verdicts["h100-deepep-ep8"].text
