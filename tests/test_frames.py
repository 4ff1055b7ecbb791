from __future__ import annotations

import sys

import numpy as np
import pytest

import equipoise as eq
from equipoise.errors import EquipoiseError
from equipoise.frames import data_frame

TRACE = eq.Trace([[[6, 2, 0, 0], [1, 1, 1, 1]], [[0, 0, 3, 1], [0, 0, 0, 0]]], layer_ids=(3, 4))
PLACEMENT = eq.Placement([[0, 1, 2, 3]] * 2, num_ranks=2, num_experts=4, layer_ids=(3, 4))


@pytest.fixture(params=["pandas", "polars"])
def library(request, monkeypatch):
    """The one data frame library that seems to be installed; skipped where it is not."""
    pytest.importorskip(request.param)
    other = {"pandas": "polars", "polars": "pandas"}[request.param]
    monkeypatch.setitem(sys.modules, other, None)  # which makes its import fail
    return request.param


def rows(frame) -> list[dict]:
    """A frame's rows, of either library."""
    return frame.to_dict("records") if hasattr(frame, "iloc") else frame.to_dicts()


def test_an_evaluation_has_a_row_for_each_step_and_layer(library):
    frame = eq.evaluate(PLACEMENT, TRACE).to_frame()
    assert type(frame).__module__.startswith(library)
    assert rows(frame) == [
        {"step": 0, "layer": 3, "peak": 8, "mean": 4, "imbalance": 2},
        {"step": 0, "layer": 4, "peak": 2, "mean": 2, "imbalance": 1},
        {"step": 1, "layer": 3, "peak": 4, "mean": 2, "imbalance": 2},
        {"step": 1, "layer": 4, "peak": 0, "mean": 0, "imbalance": 1},
    ]


def test_layers_are_numbered_as_the_trace_has_them_before_balancing_too(library):
    frame = eq.plan.evaluate_without_balancing(TRACE, eq.Topology(2)).to_frame()
    assert [row["layer"] for row in rows(frame)] == [3, 4, 3, 4]
    frame = eq.plan.evaluate_without_balancing(TRACE.counts, eq.Topology(2)).to_frame()
    assert [row["layer"] for row in rows(frame)] == [0, 1, 0, 1]


def test_a_summary_has_a_row_for_each_layer(library):
    summary = eq.summarise(TRACE, num_ranks=2)
    first, second = rows(summary.to_frame())
    assert (first["layer"], second["layer"]) == (3, 4)
    assert (first["assignments"], first["busiest_rank"]) == (12, 0)
    assert first["imbalance"] == summary.layers[0].balance.imbalance
    assert second["floor"] == summary.layers[1].balance.floor


def test_without_ranks_balance_is_missing(library):
    (row, _) = rows(eq.summarise(TRACE).to_frame())
    assert row["expert_imbalance"] == 2
    assert row["imbalance"] is None or np.isnan(row["imbalance"])


def test_without_a_library_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(EquipoiseError, match="pip install pandas"):
        data_frame({"a": [1]})


def test_a_broken_installation_is_not_called_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "pandas.py").write_text("import a_module_that_is_missing")
    monkeypatch.delitem(sys.modules, "pandas", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        data_frame({"a": [1]})
