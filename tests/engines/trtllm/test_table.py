"""The engine's report, against its goldens, pandas' own layout and torch's own arithmetic."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from equipoise.engines.trtllm.table import TrtllmTable, trtllm_table
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.trace import Trace

SOURCE = np.array(
    [
        [[[5, 1, 0, 2], [1, 3, 3, 1]], [[3, 3, 1, 1], [0, 4, 4, 0]]],
        [[[4, 2, 1, 1], [2, 2, 2, 2]], [[6, 0, 2, 0], [1, 3, 0, 4]]],
    ]
)  # (iterations 10 and 11, ranks, layers 3 and 4, experts)
TRACE = Trace(
    counts=SOURCE.sum(axis=1), source_counts=SOURCE, layer_ids=(3, 4), step_ids=np.array([10, 11])
)
PLANNED = Placement(
    [[0, 1, 0, 2, 0, 3], [3, 0, 1, 2, 1, 2]], num_ranks=3, num_experts=4, layer_ids=(3, 4)
)

GOLDEN = """\
Load statistics:
         mean       std  imbalance-ratio
3         8.0  5.656854             0.50
4         8.0  0.000000             0.00
average   8.0  2.828427             0.25"""

GOLDEN_PER_EXPERT = """\
Load statistics:
         mean       std  imbalance-ratio
3         4.0  3.513202           1.2500
4         4.0  2.644922           0.6250
average   4.0  3.079062           0.9375"""

GOLDEN_PROJECTED = """\
Load statistics:
             mean       std  imbalance-ratio
3        5.333333  1.263763         0.218750
4        5.333333  3.031089         0.500000
average  5.333333  2.147426         0.359375"""


def test_golden_report() -> None:
    assert str(trtllm_table(TRACE)) == GOLDEN


def test_golden_report_per_expert() -> None:
    assert str(trtllm_table(TRACE, per_expert=True)) == GOLDEN_PER_EXPERT


def test_golden_projection() -> None:
    assert str(trtllm_table(TRACE, placement=PLANNED)) == GOLDEN_PROJECTED


def test_projection_takes_the_rows_of_the_traced_layers() -> None:
    one_layer = TRACE.select(layers=[4])
    row = trtllm_table(one_layer, placement=PLANNED).values[0]
    assert np.array_equal(row, trtllm_table(TRACE, placement=PLANNED).values[1])


# --- arithmetic: torch does what the engine's script does, on small and on long inputs


def engine_statistics(loads_TX: torch.Tensor) -> list[float]:
    loads = loads_TX.float()
    mean = loads.mean(dim=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the deviation of one rank
        std = loads.std(dim=-1)
    ratio = loads.max(dim=-1).values / mean - 1
    return [x.mean().item() for x in (mean, std, ratio)]


def engine_values(
    trace: Trace, num_ranks: int, slots: NDArray[np.int64] | None, per_expert: bool
) -> NDArray[np.float64]:
    rows = []
    for layer in range(trace.num_layers):
        loads = torch.from_numpy(trace.counts[:, layer].astype(np.int64))
        if slots is not None:
            held = torch.from_numpy(slots[layer].copy())
            loads = (loads / held.bincount(minlength=trace.num_experts))[:, held]
        if not per_expert:
            loads = loads.reshape(len(loads), num_ranks, -1).sum(dim=-1)
        rows.append(engine_statistics(loads))
    return np.array(rows)


@given(
    num_steps=st.sampled_from([1, 2, 3, 7, 8, 9, 31, 100, 511, 513, 1100]),
    num_ranks=st.sampled_from([1, 2, 3, 7, 8, 9, 16, 36, 72]),
    per_rank=st.sampled_from([1, 2, 7, 8, 9, 17]),
    extra=st.integers(0, 3),
    scale=st.sampled_from([1, 100, 30_000, 10_000_000]),
    empty=st.booleans(),
    per_expert=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_bit_agrees_with_torch(
    num_steps: int,
    num_ranks: int,
    per_rank: int,
    extra: int,
    scale: int,
    empty: bool,
    per_expert: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    num_experts = num_ranks * per_rank
    counts = rng.integers(0, scale + 1, (num_steps, 2, num_experts))
    if empty:
        counts[rng.integers(num_steps), 0] = 0
    trace = Trace(counts=counts)
    redundant = rng.integers(0, num_experts, (2, num_ranks * extra))
    slots = np.concatenate([np.tile(np.arange(num_experts), (2, 1)), redundant], axis=1)
    slots = rng.permuted(slots, axis=1)
    placement = Placement(slots, num_ranks=num_ranks, num_experts=num_experts)

    plain = trtllm_table(trace, num_ranks=None if per_expert else num_ranks, per_expert=per_expert)
    np.testing.assert_array_equal(plain.values, engine_values(trace, num_ranks, None, per_expert))
    projected = trtllm_table(trace, placement=placement, per_expert=per_expert)
    np.testing.assert_array_equal(
        projected.values, engine_values(trace, num_ranks, slots, per_expert)
    )


def test_the_order_of_addition_matters() -> None:
    """The test above can fail: numpy's own sum gives other digits."""
    values = np.random.default_rng(0).random(1000, dtype=np.float32)
    assert values.sum() != torch.from_numpy(values).sum().item()


# --- layout: pandas itself prints the same values


def engine_text(table: TrtllmTable) -> str:
    columns = ("mean", "std", "imbalance-ratio")
    rows = {
        layer: dict(zip(columns, row.tolist(), strict=True))
        for layer, row in zip(table.layer_ids, table.values, strict=True)
    }
    frame = pd.DataFrame(rows)
    frame["average"] = frame.mean(axis=1)
    return f"Load statistics:\n{frame.T}"


numbers = st.one_of(
    st.floats(0, 1e4, width=32),
    st.integers(0, 5000).map(float),
    st.sampled_from([0.0, 0.5, 0.25, 1e-7, 9e-7, 1e-6, 999_999.5, 1e6, 1.5e6, 123_456_789.0, 3e12]),
    st.just(float("nan")),
)


@given(
    num_layers=st.one_of(st.integers(1, 12), st.sampled_from([58, 59, 60, 61, 75, 130])),
    first=st.sampled_from([0, 3, 95, 998]),
    data=st.data(),
)
def test_layout_agrees_with_pandas(num_layers: int, first: int, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float64, (num_layers, 3), elements=numbers))
    table = TrtllmTable(tuple(range(first, first + num_layers)), values)
    assert str(table) == engine_text(table)


@pytest.mark.parametrize("value", [0.0, np.nan, 1e-7, 1e6, 2e6, 0.1 + 0.2, 12345.6789])
def test_columns_of_one_value_agree_with_pandas(value: float) -> None:
    table = TrtllmTable((0, 1), np.full((2, 3), value))
    assert str(table) == engine_text(table)


def test_iterations_without_tokens_are_nan_and_left_out_of_the_average() -> None:
    counts = np.array([[[4, 0], [2, 2]], [[0, 0], [1, 3]]])
    table = trtllm_table(Trace(counts=counts), num_ranks=2)
    assert np.isnan(table.values[0, 2])
    assert table.average[2] == table.values[1, 2] == 0.25
    assert "NaN" in str(table)


# --- what cannot be answered


def test_unknown_ranks_are_asked_for() -> None:
    with pytest.raises(EquipoiseError, match="give num_ranks"):
        trtllm_table(Trace(counts=TRACE.counts))


@pytest.mark.parametrize("num_ranks", [0, -1, 3, 8])
def test_ranks_must_divide_the_experts(num_ranks: int) -> None:
    with pytest.raises(EquipoiseError, match="4 experts do not divide"):
        trtllm_table(TRACE, num_ranks=num_ranks)


def test_ranks_beside_a_placement_must_agree() -> None:
    with pytest.raises(EquipoiseError, match="2 ranks were asked for, but the placement has 3"):
        trtllm_table(TRACE, num_ranks=2, placement=PLANNED)


def test_ranks_mean_nothing_per_expert() -> None:
    with pytest.raises(EquipoiseError, match="need no num_ranks"):
        trtllm_table(TRACE, num_ranks=2, per_expert=True)


def test_placement_of_another_model_is_refused() -> None:
    other = Placement([[0, 1, 2]], num_ranks=3, num_experts=3)
    with pytest.raises(EquipoiseError, match="3 experts and the trace 4"):
        trtllm_table(TRACE, placement=other)


def test_placement_without_a_traced_layer_is_refused() -> None:
    one = Placement([[0, 1, 2, 3]], num_ranks=2, num_experts=4, layer_ids=(3,))
    with pytest.raises(EquipoiseError, match="no layer 4"):
        trtllm_table(TRACE, placement=one)
