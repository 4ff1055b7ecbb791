from __future__ import annotations

import numpy as np
import pytest

from equipoise.report.page.ageing import by_lag, correlations, figures, plan_age, windows_of
from equipoise.trace import Trace


def trace(turns_at: int, steps: int = 12) -> Trace:
    """Traffic whose hot experts change once."""
    rng = np.random.default_rng(1)
    share = rng.dirichlet(np.full(16, 0.3), size=(2, 2))
    picked = (np.arange(steps) >= turns_at).astype(int)
    counts = np.stack([[rng.multinomial(20_000, p) for p in share[kind]] for kind in picked])
    return Trace(counts=counts, top_k=2, labels={"domain": picked.astype(str)})


def test_correlations_are_those_of_numpy() -> None:
    recorded = trace(6)
    expected = np.mean([np.corrcoef(recorded.counts[:, layer]) for layer in range(2)], axis=0)
    np.testing.assert_allclose(correlations(recorded), expected, atol=1e-9)


def test_pairs_are_counted_by_how_far_apart_they_are() -> None:
    matrix = np.arange(9.0).reshape(3, 3)
    assert by_lag(matrix, np.ones((3, 3), bool)) == [4.0, 3.0, 2.0]
    picked = np.eye(3, dtype=bool)
    assert by_lag(matrix, picked) == [4.0, None, None]


@pytest.mark.parametrize("turns_at", [4, 8])
def test_a_plan_loses_its_gain_where_the_hot_experts_change(turns_at: int) -> None:
    steady = plan_age(trace(99), 4, 20)
    turned = plan_age(trace(turns_at), 4, 20)
    assert steady is not None
    assert turned is not None
    assert steady.half is None
    assert turned.half is not None
    assert steady.gains[1] is not None
    assert steady.gains[1] > 0.1


def test_long_recordings_are_compared_in_windows() -> None:
    assert windows_of(trace(100, steps=200), 1).num_steps <= 64
    assert windows_of(trace(6), 3).num_steps == 4


def test_figures_need_two_windows_and_ranks() -> None:
    names = [figure.name for figure in figures(trace(6), 1, 4, 20)]
    assert names == ["lag", "between-domain", "age"]
    assert [x.name for x in figures(trace(99), 1, None, 20)] == ["lag"]
    assert figures(trace(99, steps=1), 1, 4, 20) == []
