"""Against queueing theory where that is exact, and against the step time where nobody waits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.simulate.arrivals import evenly, lognormal_tokens, poisson
from equipoise.simulate.batching import Pool
from equipoise.simulate.requests import Requests
from equipoise.simulate.serving import (
    HandOver,
    Slo,
    kv_tokens,
    serve,
    serve_disaggregated,
)
from equipoise.simulate.step_time import LinearStepTime

LINEAR = LinearStepTime(
    fixed_seconds=0.01,
    token_seconds=1e-4,
    sequence_seconds=1e-3,
    context_token_seconds=1e-6,
)


def one_server(step_seconds: float = 1.0) -> Pool:
    """A batch of one: every request is one step."""
    return Pool(
        step_time=LinearStepTime(fixed_seconds=step_seconds),
        max_sequences=1,
        max_tokens=1,
        kv_tokens=1,
    )


def single_steps(arrival) -> Requests:
    return Requests(arrival_seconds=arrival, prompt_tokens=1, output_tokens=1)


def mean_and_error(values, num_blocks=50):
    """The mean, and its standard error from the means of consecutive blocks."""
    means = np.array([block.mean() for block in np.array_split(values, num_blocks)])
    return values.mean(), means.std(ddof=1) / np.sqrt(num_blocks)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mean_wait_of_a_single_server_is_pollaczek_khinchine(load):
    result = serve(single_steps(poisson(200_000, requests_per_second=load, seed=5)), one_server())
    wait, error = mean_and_error(result.ttft - 1.0)
    assert wait == pytest.approx(load / (2 * (1 - load)), abs=4 * error)
    assert 4 * error < 0.15 * wait
    assert result.pools["serving"].busy_share == pytest.approx(load, rel=0.02)


def test_mean_wait_with_services_of_different_length_is_pollaczek_khinchine():
    n, rate = 60_000, 0.1
    output = np.random.default_rng(1).integers(1, 10, n)  # a request takes that number of steps
    pool = replace(one_server(), kv_tokens=10)
    requests = Requests(
        arrival_seconds=poisson(n, requests_per_second=rate, seed=2),
        prompt_tokens=1,
        output_tokens=output,
    )
    wait, error = mean_and_error(serve(requests, pool).ttft - 1.0)
    expected = rate * np.mean(output**2.0) / (2 * (1 - rate * output.mean()))
    assert wait == pytest.approx(expected, abs=4 * error)
    assert 4 * error < 0.15 * wait


def mixed_requests(n=4000, rate=18.0, seed=1) -> Requests:
    return Requests(
        arrival_seconds=poisson(n, requests_per_second=rate, seed=seed),
        prompt_tokens=lognormal_tokens(n, median=80, sigma=0.7, highest=900, seed=seed + 1),
        output_tokens=lognormal_tokens(n, median=40, sigma=0.7, highest=400, seed=seed + 2),
    )


def mixed_pool(**changes) -> Pool:
    limits = {"num_ranks": 2, "max_sequences": 8, "max_tokens": 128, "kv_tokens": 3000}
    return Pool(step_time=LINEAR, **limits | changes)


def test_littles_law_holds_for_the_queue_and_for_the_whole():
    requests = mixed_requests()
    result = serve(requests, mixed_pool())
    use = result.pools["serving"]
    when = requests.arrival_seconds[0] + np.random.default_rng(0).random(20_000) * result.seconds
    rate = len(requests) / result.seconds
    arrival, admitted = requests.arrival_seconds, use.timeline.admitted

    def there(begin, end):
        began = np.searchsorted(np.sort(begin), when, side="right")
        return (began - np.searchsorted(np.sort(end), when, side="right")).mean()

    stay = (result.finished - arrival).mean()
    assert there(arrival, result.finished) == pytest.approx(rate * stay, rel=0.03)
    assert use.mean_queue > 1
    assert there(arrival, admitted) == pytest.approx(use.mean_queue, rel=0.05)
    running = use.sequence_share * 2 * 8
    assert there(admitted, result.finished) == pytest.approx(running, rel=0.03)


def test_evenly_spaced_requests_do_not_wait_until_the_rate_is_too_high():
    requests = single_steps(evenly(1000, requests_per_second=0.5))
    result = serve(requests, one_server())
    assert (result.ttft == 1.0).all()
    assert result.pools["serving"].longest_queue == 0
    assert result.pools["serving"].busy_share == pytest.approx(0.5, abs=0.001)
    late = serve(single_steps(evenly(100, requests_per_second=2)), one_server())
    assert late.ttft.tolist() == [1 + 0.5 * i for i in range(100)]
    assert late.pools["serving"].longest_queue == 50


def test_a_request_alone_takes_what_its_steps_take():
    requests = Requests(arrival_seconds=[3.0], prompt_tokens=300, output_tokens=5)
    pool = mixed_pool(num_ranks=1)
    result = serve(requests, pool)
    chunks = [(128, 0), (128, 128), (44, 256)]
    one, none = np.array([1]), np.array([0])
    ttft = sum(LINEAR.seconds(0, np.array([c]), none, np.array([x])) for c, x in chunks)
    later = sum(LINEAR.seconds(0, none, one, np.array([300 + i])) for i in range(4))
    assert result.ttft == pytest.approx([ttft])
    assert result.tpot == pytest.approx([later / 4])


def test_requests_far_apart_do_not_see_each_other():
    lengths = {"prompt_tokens": [300, 7, 128], "output_tokens": [5, 1, 9]}
    together = serve(Requests(arrival_seconds=[0, 100, 200], **lengths), mixed_pool())
    for i in range(3):
        alone = Requests(
            arrival_seconds=[0], **{name: [values[i]] for name, values in lengths.items()}
        )
        assert serve(alone, mixed_pool()).ttft[0] == pytest.approx(together.ttft[i])


@given(
    gaps=st.lists(st.floats(0, 5), min_size=1, max_size=20),
    outputs=st.lists(st.integers(1, 5), min_size=20, max_size=20),
    speedup=st.floats(1, 10),
)
def test_faster_steps_never_make_anyone_wait_longer_in_a_batch_of_one(gaps, outputs, speedup):
    requests = Requests(
        arrival_seconds=np.cumsum(gaps), prompt_tokens=3, output_tokens=outputs[: len(gaps)]
    )
    slow = replace(one_server(), kv_tokens=10)
    fast = replace(slow, step_time=LinearStepTime(fixed_seconds=1 / speedup))
    before, after = serve(requests, slow), serve(requests, fast)
    assert (after.ttft <= before.ttft + 1e-9).all()
    assert (after.finished <= before.finished + 1e-9).all()


def test_disaggregated_pools_are_two_queues_with_the_hand_over_between():
    requests = Requests(arrival_seconds=[0, 0, 9], prompt_tokens=[4, 2, 2], output_tokens=[3, 2, 1])
    step = LinearStepTime(fixed_seconds=1)
    prefill = Pool(step_time=step, max_sequences=1, max_tokens=8, kv_tokens=8)
    decode = Pool(step_time=step, max_sequences=1, max_tokens=1, kv_tokens=8)
    move = HandOver(fixed_seconds=0.5, token_seconds=0.25)
    result = serve_disaggregated(requests, prefill=prefill, decode=decode, hand_over=move)
    assert result.first_token.tolist() == [1, 2, 10]
    # The first is handed over at 2.5; the second at 3, and waits for it to end at 4.5.
    assert result.finished.tolist() == [4.5, 5.5, 10]
    assert result.pools["decode"].timeline.admitted.tolist() == [2.5, 4.5]
    assert result.pools["decode"].mean_queue == pytest.approx(1.5 / 10)
    assert np.array_equal(result.tpot, [1.75, 3.5, np.nan], equal_nan=True)


def test_a_shorter_hand_over_overtakes_and_results_stay_with_their_request():
    requests = Requests(arrival_seconds=[0, 0], prompt_tokens=[8, 1], output_tokens=[2, 20])
    step = LinearStepTime(fixed_seconds=1)
    pool = Pool(step_time=step, max_sequences=2, max_tokens=9, kv_tokens=40)
    move = HandOver(token_seconds=2)
    result = serve_disaggregated(requests, prefill=pool, decode=pool, hand_over=move)
    assert result.finished.tolist() == [18, 22]


def test_one_token_answers_never_reach_the_decode_pool():
    requests = single_steps([0.0, 1.0])
    result = serve_disaggregated(
        requests, prefill=one_server(), decode=one_server(), hand_over=HandOver()
    )
    assert set(result.pools) == {"prefill"}
    assert result.finished.tolist() == [1, 2]


def test_disaggregated_pools_lose_no_token():
    requests = mixed_requests(500)
    result = serve_disaggregated(
        requests,
        prefill=mixed_pool(),
        decode=mixed_pool(max_tokens=8),
        hand_over=HandOver(token_seconds=1e-5),
    )
    prefill, decode = (result.pools[name].timeline.steps for name in ("prefill", "decode"))
    assert prefill.prefill_tokens.sum() == requests.prompt_tokens.sum()
    assert not prefill.sequences.any()
    assert not decode.prefill_tokens.any()
    assert decode.sequences.sum() == (requests.output_tokens - 1).sum()


def test_numbers_of_a_small_case():
    requests = Requests(arrival_seconds=[0, 0, 4], prompt_tokens=1, output_tokens=[3, 1, 1])
    result = serve(requests, replace(one_server(), kv_tokens=4))
    assert result.ttft.tolist() == [1, 4, 1]
    assert result.seconds == 5
    assert result.ttft_p50 == 1
    assert result.ttft_p99 == pytest.approx(1 + 0.98 * 3)
    assert result.tpot_p50 == result.tpot_p99 == 1
    assert result.output_tokens_per_second == 1
    slo = Slo(ttft_seconds=1, tpot_seconds=1)
    assert result.within(slo).tolist() == [True, False, True]
    assert result.goodput(slo) == 2 / 5
    assert result.goodput(Slo(ttft_seconds=9, tpot_seconds=0.5)) == 2 / 5
    use = result.pools["serving"]
    assert (use.busy_share, use.sequence_share) == (1, 1)
    assert use.kv_share == pytest.approx((3 * 3 + 1 + 1) / 5 / 4)
    assert (use.mean_queue, use.longest_queue) == (3 / 5, 1)
    summary = json.loads(json.dumps(result.summary(slo), allow_nan=False))
    assert summary["goodput"] == 2 / 5
    assert summary["serving_longest_queue"] == 1


def test_no_later_token_has_no_tpot():
    summary = serve(single_steps([0.0]), one_server()).summary()
    assert summary["tpot_p50"] is summary["tpot_p99"] is None
    assert "goodput" not in summary


def test_redundant_experts_shrink_the_cache_and_the_queue_grows():
    per_token, expert = 70_000, 44_040_192
    rooms = [
        kv_tokens(
            10**10,
            token_bytes=per_token,
            redundant_per_rank=redundant,
            num_layers=58,
            expert_bytes=expert,
        )
        for redundant in (0, 1, 2)
    ]
    assert rooms == [(10**10 - r * 58 * expert) // per_token for r in (0, 1, 2)]
    queues = [
        serve(mixed_requests(1000), mixed_pool(kv_tokens=room // 60)).pools["serving"].mean_queue
        for room in rooms
    ]
    assert queues == sorted(queues)
    assert queues[2] > queues[0]
    small = {"redundant_per_rank": np.uint8(2), "expert_bytes": np.uint8(200)}
    assert kv_tokens(1000, token_bytes=np.uint8(100), **small) == 6
    with pytest.raises(EquipoiseError, match="leave no room"):
        kv_tokens(
            10**10,
            token_bytes=per_token,
            redundant_per_rank=4,
            num_layers=58,
            expert_bytes=expert,
        )


def test_equal_requests_give_equal_results():
    first, second = (serve(mixed_requests(800), mixed_pool()) for _ in range(2))
    assert first.summary() == second.summary()
    assert first.finished.tobytes() == second.finished.tobytes()


@pytest.mark.parametrize(
    "call",
    [
        lambda: serve([1, 2], one_server()),
        lambda: serve(single_steps([0.0]), LINEAR),
        lambda: serve_disaggregated(
            single_steps([0.0]), prefill=one_server(), decode=None, hand_over=HandOver()
        ),
        lambda: serve_disaggregated(
            single_steps([0.0]), prefill=one_server(), decode=one_server(), hand_over=0.1
        ),
        lambda: serve(single_steps([0.0]), one_server()).within(0.1),
        lambda: Slo(ttft_seconds=-1, tpot_seconds=1),
        lambda: HandOver(token_seconds=float("nan")),
        lambda: kv_tokens(0, token_bytes=1),
        lambda: kv_tokens(1, token_bytes=2),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(EquipoiseError):
        call()
