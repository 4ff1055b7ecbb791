"""The parts of the coverage benchmark that could make its number wrong."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.forecast_coverage import PLACES, Setting, cases, decoding
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
        first=first,
        later=later,
        ranks=8,
        cost="h100-deepep-ep8",
        step_assignments=None,
    )
    found = list(cases(setting, hold_out=0.4))
    options = [(0, "even"), *((n, d) for n in (8, 16) for d in ("even", "minmax"))]
    assert [(c.redundant, c.dispatch, c.planned_again) for c in found] == [
        (*option, planned_again) for option in options for planned_again in (False, True)
    ]
    for case in found:
        width = case.high - case.low
        assert case.low - width < case.measured < case.high + width
    for planned_again in (False, True):
        assert sum(c.is_inside for c in found if c.planned_again == planned_again) >= 3
