from __future__ import annotations

import sys

import numpy as np
import pytest

import equipoise as eq
from equipoise.errors import EquipoiseError
from equipoise.simulate.routers import lognormal, sample_trace, steady
from tests.test_public_surface import loaded_by

NAMES = ("heat", "layers", "experts", "drift")


@pytest.fixture(scope="module", autouse=True)
def without_a_screen():
    pytest.importorskip("matplotlib.pyplot").switch_backend("agg")


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def summary():
    """Twenty steps of two domains through three layers of 16 experts, on 4 ranks."""
    popularity = lognormal(16, sigma=1.0, num_layers=3, seed=1)
    trace = sample_trace(steady(popularity, num_steps=20), num_tokens=300, top_k=2, seed=2)
    domains = {"domain": np.repeat(["code", "prose"], 10)}
    trace = eq.Trace(trace.counts, layer_ids=(3, 4, 5), top_k=2, labels=domains)
    return eq.summarise(trace, num_ranks=4)


def test_the_heat_map_shows_the_load_of_every_rank(summary):
    axes = summary.plot.heat()
    assert axes.images[0].get_array().tolist() == [list(row) for row in summary.rank_p95]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "4", "5"]


def test_layers_are_drawn_at_their_own_numbers_over_what_chance_gives(summary):
    axes = summary.plot.layers()
    p95, mean = axes.lines
    assert mean.get_xdata().tolist() == p95.get_xdata().tolist() == [3, 4, 5]
    assert mean.get_ydata().tolist() == [x.balance.imbalance for x in summary.layers]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == min(x.balance.floor for x in summary.layers)


def test_experts_go_from_hottest_to_coldest(summary):
    median, steepest, _ = summary.plot.experts().lines
    assert median.get_ydata().tolist() == list(summary.expert_curves.median)
    assert steepest.get_ydata().tolist() == list(summary.expert_curves.steepest)


def test_drift_has_a_bar_for_each_correlation(summary):
    axes = summary.plot.drift()
    shown = dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.patches, strict=True))
    assert list(shown) == ["next window", "within one domain", "between two domains"]
    assert shown["next window"].get_width() == summary.drift.correlation
    assert shown["between two domains"].get_width() == summary.drift.labels["domain"].between


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_goes_where_it_is_asked_to(summary, name):
    pyplot = sys.modules["matplotlib.pyplot"]
    _, axes = pyplot.subplots()
    assert getattr(summary.plot, name)(axes) is axes
    assert len(pyplot.get_fignums()) == 1
    assert axes.has_data()


def test_without_ranks_there_are_experts_only(summary):
    bare = eq.summarise(eq.Trace([[[4, 0], [0, 0]]]))
    assert bare.plot.layers().lines[0].get_ydata().tolist() == [2, 1]
    assert not bare.plot.drift().patches  # a single step
    with pytest.raises(EquipoiseError, match="no ranks"):
        bare.plot.heat()


def test_matplotlib_is_loaded_by_the_first_drawing_only():
    code = "import equipoise as eq; eq.summarise(eq.Trace([[[4, 0], [0, 1]]])).plot"
    assert "matplotlib" not in loaded_by(code)


@pytest.mark.parametrize("name", NAMES)
def test_without_matplotlib_a_sentence_says_what_to_install(summary, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(EquipoiseError, match=r"equipoise\[plot\]"):
        getattr(summary.plot, name)()
    monkeypatch.undo()
    import matplotlib.pyplot  # noqa: F401, for the fixture that closes figures
