from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.balance import expert_loads, imbalance
from equipoise.errors import EquipoiseError
from equipoise.lab import ep_step_time
from equipoise.simulate.routers import (
    choice_shares,
    drift,
    hot_expert,
    lognormal,
    sample_topk,
    sample_trace,
    shift_domains,
    steady,
    uniform,
    zipf,
)

MAKERS = [
    uniform,
    hot_expert,
    zipf,
    lognormal,
]


@pytest.mark.parametrize("make", MAKERS)
def test_popularity_sums_to_one_in_every_layer_and_repeats(make):
    popularity = make(16, num_layers=3)
    assert popularity.shape == (3, 16)
    assert np.allclose(popularity.sum(axis=1), 1)
    assert np.array_equal(popularity, make(16, num_layers=3))


@pytest.mark.parametrize("make", [zipf, lognormal])
def test_layers_and_seeds_differ(make):
    popularity = make(16, num_layers=2, seed=0)
    assert not np.array_equal(popularity[0], popularity[1])
    assert not np.array_equal(popularity, make(16, num_layers=2, seed=1))


def test_hot_expert_gets_its_share_and_its_part_of_the_rest():
    popularity = hot_expert(8, share=0.6, expert=3)
    assert popularity[0, 3] == pytest.approx(0.65)
    assert np.delete(popularity[0], 3) == pytest.approx(0.05)


def test_zipf_weights():
    popularity = np.sort(zipf(4, exponent=2)[0])[::-1]
    assert popularity[0] / popularity == pytest.approx([1, 4, 9, 16])
    assert zipf(4, exponent=0) == pytest.approx(0.25)


def test_lognormal_spread_is_sigma():
    assert np.log(lognormal(20_000, sigma=0.7)).std() == pytest.approx(0.7, abs=0.02)


def test_steady_and_drift():
    start = lognormal(512, num_layers=2)
    assert np.allclose(steady(start, num_steps=3)[2], start, rtol=1e-14)
    walk = drift(start, num_steps=26, std_per_step=0.1)
    assert walk.shape == (26, 2, 512)
    assert np.allclose(walk[0], start)
    assert np.allclose(walk.sum(axis=-1), 1)
    assert np.log(walk[25] / start).std() == pytest.approx(0.5, abs=0.05)
    assert (drift([[0, 1, 1]], num_steps=9, std_per_step=1)[:, 0, 0] == 0).all()


def test_domains_take_turns():
    domains = [hot_expert(4, expert=e) for e in (0, 1, 2)]
    popularity, label = shift_domains(domains, num_steps=7, steps_per_domain=2)
    assert popularity.argmax(axis=-1)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert label[[0, 3, 6]].tolist() == ["domain 0", "domain 1", "domain 0"]
    trace = sample_trace(popularity, num_tokens=8, top_k=2, labels={"domain": label})
    assert trace.select(domain="domain 1").num_steps == 2


def test_lab_numbers():
    def loads(popularity):
        return expert_loads(sample_topk(popularity[0], num_tokens=1600, top_k=1), 8)

    fair, hot = loads(uniform(8)), loads(hot_expert(8, share=0.6))
    assert fair.sum() == hot.sum() == 1600
    assert imbalance(fair) < 1.3
    assert 4.5 < imbalance(hot) < 5.6
    assert ep_step_time(hot, 8) > 2.5 * ep_step_time(fair, 8)


@given(st.integers(1, 5), st.integers(1, 60), st.integers(0, 9))
def test_choices_of_a_token_differ(top_k, num_tokens, seed):
    ids = sample_topk([0.5, 0.2, 0, 0.1, 0.1, 0.1], num_tokens=num_tokens, top_k=top_k, seed=seed)
    assert ids.shape == (num_tokens, top_k)
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
    assert not (ids == 2).any()


def test_single_choices_follow_popularity():
    popularity = [0.5, 0.3, 0.2]
    ids = sample_topk(popularity, num_tokens=20_000, top_k=1)
    assert expert_loads(ids, 3) / 20_000 == pytest.approx(popularity, abs=0.015)


def test_second_choices_follow_popularity_among_the_rest():
    pairs = np.sort(sample_topk([0.5, 0.3, 0.2], num_tokens=20_000, top_k=2), axis=1)
    # 0 then 1, or 1 then 0.
    both = 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7
    assert (pairs == [0, 1]).all(axis=1).mean() == pytest.approx(both, abs=0.015)


def test_popularity_needs_no_normalising():
    draw = {"num_tokens": 50, "top_k": 2, "seed": 4}
    assert np.array_equal(sample_topk([5, 3, 2], **draw), sample_topk([0.5, 0.3, 0.2], **draw))


def test_traces_count_every_choice_and_repeat():
    popularity = steady(zipf(12, num_layers=2), num_steps=3)
    trace = sample_trace(popularity, num_tokens=5000, top_k=3, seed=7)
    assert trace.counts.shape == (3, 2, 12)
    assert (trace.counts.sum(axis=-1) == 15_000).all()
    assert trace.top_k == 3
    again = sample_trace(popularity, num_tokens=5000, top_k=3, seed=7)
    assert np.array_equal(trace.counts, again.counts)
    assert not np.array_equal(trace.counts[0], trace.counts[1])
    assert sample_trace(uniform(4), num_tokens=9, top_k=1).num_steps == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: uniform(0), "num_experts is 0"),
        (lambda: uniform(10**6, num_layers=10**6), "use fewer"),
        (lambda: uniform(8, num_layers=1.5), "num_layers is 1.5"),
        (lambda: hot_expert(8, share=1.5), "share is 1.5"),
        (lambda: hot_expert(8, expert=8), "expert is 8"),
        (lambda: zipf(8, exponent=-1), "exponent is -1"),
        (lambda: lognormal(8, sigma=float("nan")), "sigma is nan"),
        (lambda: steady([1, 2], num_steps=3), r"expected \(layers, experts\)"),
        (lambda: steady([[1, 2]], num_steps=0), "num_steps is 0"),
        (lambda: drift([[1, 2]], num_steps=2, std_per_step="0.1"), "expected a number"),
        (lambda: drift([[0, 0]], num_steps=2, std_per_step=0.1), "no expert has any popularity"),
        (lambda: shift_domains([], num_steps=1, steps_per_domain=1), "No domain"),
        (
            lambda: shift_domains([uniform(2), uniform(3)], num_steps=1, steps_per_domain=1),
            "same layers and experts",
        ),
        (lambda: sample_topk([1, 0], num_tokens=1, top_k=2), "only 1"),
        (lambda: sample_topk([1, -1], num_tokens=1, top_k=1), "finite numbers >= 0"),
        (lambda: sample_topk([1, 1], num_tokens=10**12, top_k=1), "use fewer"),
        (lambda: sample_trace([1, 1], num_tokens=1, top_k=1), "steps, layers, experts"),
        (lambda: sample_trace([[1, 1]], num_tokens=0, top_k=1), "num_tokens is 0"),
    ],
)
def test_wrong_input_gets_a_sentence(call, says):
    with pytest.raises(EquipoiseError, match=says):
        call()


@pytest.mark.parametrize(("experts", "top_k", "error"), [(8, 2, 0.05), (64, 8, 0.015)])
@pytest.mark.parametrize("sigma", [0.0, 1.0, 1.5])
def test_choice_shares_are_what_many_tokens_choose(experts, top_k, error, sigma):
    popularity = lognormal(experts, sigma=sigma, seed=3)[0]
    ids = sample_topk(popularity, num_tokens=20_000, top_k=top_k, seed=1)
    chosen = expert_loads(ids, experts) / 20_000
    assert np.abs(top_k * choice_shares(popularity, top_k=top_k) - chosen).max() < error


def test_choice_shares_never_exceed_one_choice_of_a_token():
    hot = hot_expert(16, share=0.9, num_layers=2)
    shares = choice_shares(hot, top_k=4)
    assert shares.max() <= 1 / 4 + 1e-9
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.array_equal(choice_shares(hot, top_k=16), np.full((2, 16), 1 / 16))
    with pytest.raises(EquipoiseError, match="cannot choose 4 different experts where only 1"):
        choice_shares(hot_expert(16, share=1.0), top_k=4)
