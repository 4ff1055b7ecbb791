"""Priors: what is drawn from one has its statistics, and what is no prior is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from equipoise.errors import EquipoiseError, FormatError
from equipoise.simulate.prior import ASSUMED, assumed_trace, fit_prior
from equipoise.simulate.profiles import RoutingPrior, Spread, names, prior

PLANTED = RoutingPrior(
    name="planted", phase="decode", num_layers=40, num_experts=256, top_k=4, window_tokens=4000,
    skew=Spread(0.7, 0.1), drift=Spread(0.3, 0.05), layer_correlation=Spread(0.4, 0.0),
    source="made for a test",
)  # fmt: skip


def refitted(known: RoutingPrior, num_windows: int = 12) -> RoutingPrior:
    trace = assumed_trace(known, step_tokens=known.window_tokens, num_steps=num_windows, seed=1)
    return fit_prior(trace, name=known.name, phase=known.phase, source=known.source)


def test_what_is_drawn_has_what_was_fitted():
    found = refitted(PLANTED)
    assert found.skew.mean == pytest.approx(0.7, abs=0.05)
    assert found.drift.mean == pytest.approx(0.3, abs=0.04)
    assert found.layer_correlation.mean == pytest.approx(0.4, abs=0.05)
    assert found.skew.spread == pytest.approx(0.1, abs=0.05)
    sizes = [getattr(found, n) for n in ("num_layers", "num_experts", "top_k", "window_tokens")]
    assert sizes == [40, 256, 4, 4000]


def test_chance_is_no_drift():
    still = replace(PLANTED, drift=Spread(0.0, 0.0), window_tokens=200)
    assert refitted(still, 30).drift.mean < 0.06


@pytest.mark.parametrize("name", names("prior"))
def test_those_that_ship_draw_what_they_say(name):
    known = prior(name)
    assert "fitted to" in known.source
    assert any(licence in known.source for licence in ("MIT", "Apache-2.0"))
    found = refitted(known)
    # Few experts in a layer say little of their deviation: each layer is one draw.
    assert found.skew.mean == pytest.approx(known.skew.mean, abs=0.12)
    assert found.drift.mean == pytest.approx(known.drift.mean, abs=0.1)


def test_steps_of_a_window_have_its_popularity_and_say_that_they_are_assumed():
    trace = assumed_trace(PLANTED, step_tokens=400, num_steps=20, num_layers=3)
    assert trace.counts.shape == (20, 3, 256)
    assert (trace.counts.sum(axis=-1) == 1600).all()
    assert trace.provenance.notes[0].startswith(f"{ASSUMED}: drawn from the prior planted")
    share = trace.counts.reshape(2, 10, 3, 256).sum(axis=1)
    across = np.corrcoef(share[0, 0], share[1, 0])[0, 1]
    halves = trace.counts[:5].sum(axis=0), trace.counts[5:10].sum(axis=0)
    assert across < np.corrcoef(halves[0][0], halves[1][0])[0, 1]
    again = assumed_trace(PLANTED, step_tokens=400, num_steps=20, num_layers=3)
    np.testing.assert_array_equal(again.counts, trace.counts)


def test_what_cannot_be_fitted_or_drawn_is_refused():
    good = assumed_trace(PLANTED, step_tokens=100, num_steps=4, num_layers=2)
    no_load = good.counts.copy()
    no_load[1, 1] = 0
    for windows, said in (
        (replace(good, top_k=None), "top_k"),
        (good.select(steps=[0]), "two windows"),
        (good.select(layers=[0]), "two layers"),
        (replace(good, counts=no_load), "without load"),
    ):
        with pytest.raises(EquipoiseError, match=said):
            fit_prior(windows, name="x", phase="", source="y")
    with pytest.raises(EquipoiseError, match="fewer steps or layers"):
        assumed_trace(PLANTED, step_tokens=1, num_steps=1 << 15, num_layers=1 << 10)


def test_a_file_is_read_again_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(PLANTED.to_json())
    assert prior(path) == PLANTED
    good = {"format": "equipoise prior 1", **asdict(PLANTED)}
    for change in (
        {"skew": 3}, {"skew": {"mean": 0.5}}, {"drift": {"mean": -1, "spread": 0}},
        {"num_experts": 2}, {"num_layers": 2.5}, {"source": 7}, {"more": 1}, {"format": "x"},
        {"layer_correlation": {"mean": 2, "spread": 0}}, {"skew": {"mean": "x", "spread": 0}},
    ):  # fmt: skip
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(FormatError):
            prior(path)
    with pytest.raises(EquipoiseError, match="no prior profile 'none'"):
        prior("none")
