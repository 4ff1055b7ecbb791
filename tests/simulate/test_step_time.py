from __future__ import annotations

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import evaluate
from equipoise.simulate.arrivals import evenly
from equipoise.simulate.batching import Pool
from equipoise.simulate.requests import Requests
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.simulate.serving import serve
from equipoise.simulate.step_time import (
    Change,
    ImbalanceSeries,
    LinearStepTime,
    MoeStepTime,
    ScheduledStepTime,
    TabulatedStepTime,
)

NOTHING = np.zeros(2, np.int64)
SEQUENCES = np.array([10, 30])


def test_linear_takes_the_slowest_rank():
    model = LinearStepTime(
        fixed_seconds=1, token_seconds=2, sequence_seconds=3, context_token_seconds=0.5
    )
    prefill, sequences, context = np.array([7, 0]), np.array([1, 2]), np.array([10, 40])
    assert model.seconds(0, prefill, sequences, context) == 1 + max(14 + 5 + 5, 10 + 20)
    assert model.seconds(9, NOTHING, NOTHING, NOTHING) == 1


def test_experts_take_the_mean_rank_times_the_imbalance_of_the_step():
    model = MoeStepTime(
        rest=LinearStepTime(fixed_seconds=1, sequence_seconds=0.5),
        expert_token_seconds=0.25,
        expert_fixed_seconds=2,
        imbalance=ImbalanceSeries(by_tokens=[[1.0, 2.0], [3.0, 3.0]]),
    )
    seconds = [model.seconds(step, NOTHING, SEQUENCES, NOTHING) for step in range(3)]
    balanced = 2 + 0.25 * 20
    assert seconds == [16 + 1.5 * balanced, 16 + 3 * balanced, 16 + 1.5 * balanced]


def test_a_batch_takes_the_series_of_the_nearest_size_by_ratio():
    series = ImbalanceSeries(by_tokens={100: [[1.1]], 10: [[2.0]]})
    assert [series.at(0, tokens) for tokens in (1, 31, 32, 9999)] == [2.0, 2.0, 1.1, 1.1]


def test_drawn_steps_have_the_mean_of_the_recorded_and_repeat_by_seed():
    rows = 1 + np.random.default_rng(0).gamma(2, 0.1, (500, 4))
    drawn = ImbalanceSeries(by_tokens=rows, seed=3)
    values = np.array([drawn.at(step, 1) for step in range(65_536)])
    assert values.mean() == pytest.approx(rows.mean(), abs=0.002)
    assert set(values) == set(rows.mean(axis=1))
    same = ImbalanceSeries(by_tokens=rows, seed=3)
    assert [same.at(step, 1) for step in range(99)] == values[:99].tolist()
    other = ImbalanceSeries(by_tokens=rows, seed=4)
    assert [other.at(step, 1) for step in range(99)] != values[:99].tolist()


def test_a_measured_placement_gives_its_steps_their_time():
    trace = sample_trace(
        steady(lognormal(16, num_layers=3), num_steps=5), num_tokens=200, top_k=2, seed=1
    )
    placement = Placement([range(16)] * 3, num_ranks=4, num_experts=16)
    measured = evaluate(placement, trace).imbalance
    model = MoeStepTime(
        rest=LinearStepTime(fixed_seconds=0),
        expert_token_seconds=1,
        imbalance=ImbalanceSeries(by_tokens=measured),
    )
    sequences = np.full(4, 50)
    nothing = np.zeros(4, np.int64)
    seconds = [model.seconds(step, nothing, sequences, nothing) for step in range(5)]
    assert seconds == pytest.approx(50 * measured.mean(axis=1))


@pytest.mark.parametrize(
    "by_tokens",
    [
        [],
        {},
        [[]],
        [1.5, 1.2],
        [[0.9]],
        [[np.nan]],
        [[np.inf]],
        [[1e308, 1e308]],
        [["a"]],
        {0: [[1.0]]},
        None,
    ],
)
def test_what_is_no_imbalance_is_refused(by_tokens):
    with pytest.raises(EquipoiseError):
        ImbalanceSeries(by_tokens=by_tokens)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "1", 1e7])
def test_what_is_no_time_is_refused(seconds):
    with pytest.raises(EquipoiseError, match="token_seconds"):
        LinearStepTime(fixed_seconds=0, token_seconds=seconds)


ROWS = {10: [1.0, 2.0], 30: [2.0, 6.0]}


def test_a_tabulated_time_is_on_the_line_between_sizes_and_rows_follow_each_other():
    model = TabulatedStepTime(by_tokens=ROWS, rest=LinearStepTime(fixed_seconds=0.5))
    at = [[model.at(step, tokens) for tokens in (1, 10, 15, 30)] for step in range(3)]
    assert at == [[1, 1, 1.25, 2], [2, 2, 3, 6], [1, 1, 1.25, 2]]
    prefill, sequences = np.array([5, 0]), np.array([7, 3])
    assert model.seconds(1, prefill, sequences, NOTHING) == 0.5 + 3
    with pytest.raises(EquipoiseError, match="31 tokens and the table of step times ends at 30"):
        model.at(0, 31)


@pytest.mark.parametrize(
    "by_tokens",
    [{}, {0: [1.0]}, {1: []}, {1: [[1.0]]}, {1: [-1.0]}, {1: [np.nan]}, {1: [1.0], 2: [1.0, 2.0]}],
)
def test_tables_that_are_none_are_refused(by_tokens):
    with pytest.raises(EquipoiseError):
        TabulatedStepTime(by_tokens=by_tokens, rest=LinearStepTime(fixed_seconds=0))


def fixed(seconds: float) -> LinearStepTime:
    return LinearStepTime(fixed_seconds=seconds)


def test_a_schedule_changes_at_its_steps_and_is_slower_while_experts_move():
    model = ScheduledStepTime(
        first=fixed(4),
        changes=[
            Change(step=3, step_time=fixed(2), moving_steps=2, slow_down=1.5, stall_seconds=7),
            Change(step=5, step_time=fixed(1)),
        ],
    )
    seconds = [model.seconds(step, NOTHING, SEQUENCES, NOTHING) for step in range(7)]
    assert seconds == [4, 6, 6, 2 + 7, 2, 1, 1]
    assert ScheduledStepTime(first=fixed(4), changes=()).seconds(9, *[NOTHING] * 3) == 4


def test_schedules_that_overlap_are_refused():
    for first, second in ((5, 5), (5, 3)):
        with pytest.raises(EquipoiseError):
            ScheduledStepTime(
                first=fixed(1),
                changes=[Change(step=step, step_time=fixed(1)) for step in (first, second)],
            )
    moving = Change(step=6, step_time=fixed(1), moving_steps=3)
    with pytest.raises(EquipoiseError, match="moves begin at"):
        ScheduledStepTime(first=fixed(1), changes=[Change(step=4, step_time=fixed(1)), moving])
    for wrong in ({"step": 0}, {"moving_steps": 9}, {"slow_down": 0.5}, {"stall_seconds": -1}):
        with pytest.raises(EquipoiseError):
            Change(**{"step": 5, "step_time": fixed(1)} | wrong)


def test_a_rebalance_shows_in_the_times_of_users():
    """Steps get shorter for good; requests on the way feel the moves and the stall."""
    move = {"moving_steps": 100, "slow_down": 1.5, "stall_seconds": 0.5}
    schedule = ScheduledStepTime(
        first=fixed(0.02), changes=[Change(step=500, step_time=fixed(0.015), **move)]
    )
    pool = Pool(step_time=schedule, max_sequences=32, max_tokens=256, kv_tokens=100_000)
    requests = Requests(
        arrival_seconds=evenly(300, requests_per_second=10), prompt_tokens=20, output_tokens=21
    )
    result = serve(requests, pool)
    tpot, changed = result.tpot, result.pools["serving"].timeline.steps.start[500]
    arrival = requests.arrival_seconds
    before, after = tpot[arrival < changed - 4], tpot[arrival > changed + 1]
    assert before == pytest.approx(0.02)
    assert after == pytest.approx(0.015)
    on_the_way = tpot[(arrival > changed - 2.5) & (arrival < changed - 1)]
    assert on_the_way == pytest.approx(0.03)
    assert result.tpot.max() > 0.03 + 0.4 / 20
    assert result.ttft.max() > 0.4
