from __future__ import annotations

import numpy as np
import pytest

from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem, evaluate
from equipoise.topology import Topology
from equipoise.trace import Trace

PAIR = Placement([[0, 1], [1, 0]], num_ranks=2, num_experts=2, layer_ids=(3, 5))


def test_every_step_and_layer():
    result = evaluate(PAIR, [[[30, 10], [5, 5]], [[0, 0], [1, 3]]])
    assert result.peak.tolist() == [[30, 5], [0, 3]]
    assert result.mean.tolist() == [[20, 5], [0, 2]]
    assert result.imbalance.tolist() == [[1.5, 1.0], [1.0, 1.5]]
    # The empty step of layer 3 is left out.
    assert result.mean_imbalance == pytest.approx(4 / 3)
    assert result.worst_imbalance == 1.5
    assert result.p95_imbalance == 1.5
    assert result.relative_step_time == pytest.approx(38 / 27)


def test_quantile_interpolates():
    load = np.stack([np.linspace(1, 2, 21), 2 - np.linspace(1, 2, 21)], axis=-1)[:, None]
    one = Placement([[0, 1]], num_ranks=2, num_experts=2)
    assert evaluate(one, load).p95_imbalance == pytest.approx(1.95)


def test_copies_share_equally_also_on_one_rank():
    placement = Placement([[0, 0, 1, 2]], num_ranks=2, num_experts=3)
    assert evaluate(placement, [[8, 4, 2]]).peak.tolist() == [[8.0]]


def test_nothing_routed_reads_as_balanced():
    result = evaluate(PAIR, np.zeros((1, 2, 2)))
    assert result.mean_imbalance == result.worst_imbalance == result.relative_step_time == 1.0


def test_planned_peaks_are_what_evaluation_finds():
    load = np.random.default_rng(0).lognormal(0, 1, (5, 64))
    plan = Greedy().plan(Problem(load, Topology(8), 80))
    assert evaluate(plan.placement, load).peak[0] == pytest.approx(plan.peak)


def test_trace_of_other_layers_is_refused():
    trace = Trace(counts=np.ones((1, 2, 2), np.int64), layer_ids=(3, 4))
    with pytest.raises(EquipoiseError, match=r"trace has layers 3-4, the placement 3, 5"):
        evaluate(PAIR, trace)
    same = Trace(counts=np.ones((1, 2, 2), np.int64), layer_ids=(3, 5))
    assert evaluate(PAIR, same).mean_imbalance == 1.0


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([[1, 2]], r"ending in \(2, 2\)"),
        ([[1, np.nan], [1, 1]], "is nan"),
        ([[1, -1], [1, 1]], "is -1.0"),
    ],
)
def test_bad_loads_are_refused(load, message):
    with pytest.raises(EquipoiseError, match=message):
        evaluate(PAIR, load)


def test_unknown_dispatcher_is_refused():
    with pytest.raises(EquipoiseError, match="no dispatcher 'fastest'; use one of even, minmax"):
        evaluate(PAIR, np.ones((2, 2)), dispatch="fastest")


def test_minmax_dispatch_is_scored_by_its_own_split():
    load = np.random.default_rng(1).lognormal(0, 1, (3, 4, 32))
    placement = Greedy().plan(Problem(load, Topology(4), 40)).placement
    even, best = (evaluate(placement, load, dispatch=d) for d in ("even", "minmax"))
    assert (best.peak <= even.peak * (1 + 1e-12)).all()
    assert best.mean_imbalance < even.mean_imbalance
    for step in range(3):
        assert best.peak[step] == pytest.approx(MinMax().split(load[step], placement).peak)
