"""The parts of the coverage benchmark that could make its number wrong."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from benchmarks.quality.forecast_coverage import (
    PLACES,
    Case,
    Setting,
    cases,
    dealt,
    decoding,
    least_and_most,
    print_apart,
    some_layers,
)
from benchmarks.quality.protocols import Tokens
from equipoise.simulate.routers import lognormal, sample_trace, steady


def test_every_decoding_step_has_its_places_taken_by_tokens_in_order():
    lengths = np.array([5, 3, 4, 6, 5, 7, 3, 4, 9, 8, 2, 6])
    number = np.concatenate([100 * s + np.arange(n) for s, n in enumerate(lengths)])
    ids = np.stack([number % 251, number % 241], axis=1)[:, None].astype(np.uint8)
    tokens = Tokens(ids, lengths, np.array(["x"] * 12), num_experts=256)
    trace = decoding(tokens, np.arange(12))
    assert trace.counts.sum(axis=-1).ravel().tolist() == [2 * PLACES] * trace.num_steps
    assert trace.tokens is not None
    taken = trace.tokens.ids.tolist()
    assert len({str(t) for t in taken}) == len(taken)
    first = trace.tokens.of_step(0).tolist()
    assert first == [tokens.sequence(s)[0].tolist() for s in range(PLACES)]


def test_on_steady_traffic_nearly_all_cases_are_inside():
    popularity = lognormal(32, num_layers=2, seed=3)
    trace = sample_trace(steady(popularity, num_steps=60), num_tokens=2000, top_k=2, seed=4)
    first, later = trace.split(at=0.6)
    setting = Setting(
        study="steady",
        cut=0,
        layers=[0, 1],
        ranks=8,
        cost="h100-deepep-ep8",
        step_assignments=None,
        hold_out=0.4,
        dispatch=["even", "minmax"],
    )
    found = list(cases(setting, first, later))
    options = [(0, "even"), *((n, d) for n in (8, 16) for d in ("even", "minmax"))]
    assert [(c.redundant, c.dispatch, c.planned_again) for c in found] == [
        (*option, planned_again) for option in options for planned_again in (False, True)
    ]
    for case in found:
        width = case.high - case.low
        assert case.low - width < case.measured < case.high + width
        assert case.is_inside == (abs(case.deviation) <= ndtri(0.9))
    for planned_again in (False, True):
        assert sum(c.is_inside for c in found if c.planned_again == planned_again) >= 3


def test_every_layer_is_in_one_set():
    for num_layers, size in ((26, 6), (75, 6), (24, 6), (26, 1000), (3, 6)):
        sets = dealt(num_layers, size)
        assert sorted(row for rows in sets for row in rows) == list(range(num_layers))
        assert min(map(len, sets)) >= min(size, num_layers)
    assert dealt(26, 1000) == [list(range(26))]
    popularity = lognormal(8, num_layers=5, seed=3)
    trace = sample_trace(steady(popularity, num_steps=4), num_tokens=20, top_k=2, seed=4)
    part = some_layers(trace, dealt(5, 2)[1])
    assert part.layer_ids == (1, 3)
    assert np.array_equal(part.counts, trace.counts[:, [1, 3]])


def test_shares_are_told_of_those_that_belong_together():
    cases = [(0, True), (0, False), (1, True), (1, True), (2, True), (2, False), (2, False)]
    assert least_and_most(cases) == "33% to 100%"


def test_plans_are_as_far_apart_as_their_measured_changes(capsys):
    told = {
        "study": "x", "cut": 0, "first_layer": 0, "ranks": 8, "cost": "c", "redundant": 8,
        "step_assignments": 4096, "dispatch": "even", "gain": 0.1,
    }  # fmt: skip
    one = Case(**told, planned_again=False, low=0.1, high=0.1, measured=0.1)
    again = Case(
        **told,
        planned_again=True,
        low=0.1 - ndtri(0.9) / 100,
        high=0.1 + ndtri(0.9) / 100,
        measured=0.13,
    )
    print_apart([one, again])
    assert capsys.readouterr().out.splitlines()[-1] == "| x | 4,096 | even | 3.00% | 1.00% |"
