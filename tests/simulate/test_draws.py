from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.simulate import draws
from equipoise.simulate.draws import Deployment, power_law_share, slowest_rank, uniform_share

IN_ORDER = Deployment(num_experts=64, top_k=4, num_ranks=8, num_slots=64)
BALANCED = Deployment(num_experts=64, top_k=4, num_ranks=8, num_slots=64, is_balanced=True)
COPIES = Deployment(num_experts=64, top_k=4, num_ranks=8, num_slots=72, is_balanced=True)


def captured(monkeypatch, tokens, alpha, rounding, deployment=IN_ORDER, num_draws=400):
    """All loads of a draw, as they were before the slowest rank was taken."""
    seen = []
    monkeypatch.setattr(draws, "slowest_rank", lambda counts, *rest: seen.append(counts))
    power_law_share(tokens, alpha, deployment, rounding=rounding, num_draws=num_draws)
    return seen[0]


@pytest.mark.parametrize("rounding", ["smallest", "by rank"])
@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 500, 20_000])
def test_every_token_chooses_different_experts(monkeypatch, tokens, rounding):
    counts = captured(monkeypatch, tokens, 1.2, rounding)
    assert (counts.sum(axis=1) == 4 * tokens).all()
    assert counts.min() >= 0
    assert counts.max() <= tokens


@pytest.mark.parametrize("alpha", [0.6, 1.01, 1.2])
def test_popularity_follows_the_power_law_with_its_upper_cut(monkeypatch, alpha):
    tokens = 1_000_000
    one_choice = Deployment(num_experts=64, top_k=1, num_ranks=8, num_slots=64)  # clips none
    counts = captured(monkeypatch, tokens, alpha, "by rank", one_choice)
    # Loads add up to the tokens, so ratios of quantiles are what the distribution fixes.
    a, high = 1 - alpha, 0.8 * tokens
    at = np.array([0.6, 0.75, 0.9])
    quantile = ((high**a - 1) * at + 1) ** (1 / a)
    measured = np.log(np.quantile(counts + 0.5, at, axis=1)).mean(axis=1)
    assert np.diff(measured) == pytest.approx(np.diff(np.log(quantile)), rel=0.1)


def test_few_tokens_fall_on_few_experts_in_order():
    """The recipe's remainders go to the smallest loads, which are neighbours when all are 0."""
    share = power_law_share(1, 1.01, IN_ORDER, rounding="smallest", num_draws=5)
    assert (share.load.sum(axis=1) == 4).all()
    share = power_law_share(1, 1.01, IN_ORDER, rounding="by rank", num_draws=5)
    assert (share.load.sum(axis=1) == 1).all()


@pytest.mark.parametrize("deployment", [IN_ORDER, BALANCED, COPIES])
def test_the_slowest_rank_has_most(deployment):
    rng = np.random.default_rng(1)
    counts = rng.multinomial(4 * 300, rng.dirichlet(np.full(64, 0.3)), 20)
    share = slowest_rank(counts, 300, deployment)
    assert share.load.shape == (20, deployment.num_slots // 8)
    mean = counts.sum(axis=1) / 8
    assert (share.load.sum(axis=1) >= np.floor(mean)).all()
    in_order = slowest_rank(counts, 300, IN_ORDER).load.sum(axis=1)
    assert (in_order == counts.reshape(20, 8, 8).sum(axis=2).max(axis=1)).all()
    assert (share.load.sum(axis=1) <= in_order).all()


def test_greedy_placement_by_hand():
    deployment = Deployment(num_experts=4, top_k=2, num_ranks=2, num_slots=6, is_balanced=True)
    share = slowest_rank(np.array([[8, 4, 2, 2]]), 8, deployment)
    # The expert of 8 gets both copies, also in the tie at 4. From the heaviest on, slots of 4, 8/3
    # and 2 come to one rank, 8/3, 8/3 and 2 to the other; the last 8/3 becomes 2, the others 3.
    assert share.load.tolist() == [[4, 2, 2]]
    assert share.tokens.tolist() == [8]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.integers(0, 60),
)
def test_raising_and_lowering_one_at_a_time(values, number):
    raised, lowered = list(values), list(values)
    for _ in range(number):
        raised[raised.index(min(raised))] += 1
        lowered[lowered.index(max(lowered))] -= 1
    counts, amount = np.array([values]), np.array([number])
    assert sorted(draws._raise_lowest(counts, amount)[0].tolist()) == sorted(raised)
    assert sorted(draws._lower_highest(counts, amount)[0].tolist()) == sorted(lowered)


@given(st.integers(1, 60), st.integers(0, 1000))
def test_distinct_tokens_are_those_of_a_token_list(tokens, seed):
    rng = np.random.default_rng(seed)
    choices = np.argsort(rng.random((tokens, 16)), axis=1)[:, :4]
    load = np.bincount(choices.ravel(), minlength=16)[None]
    mine = np.array([[1, 5, 11]])
    order = np.argsort(-load[0], kind="stable")
    dealt = np.repeat(order, load[0][order]).reshape(4, tokens)
    expected = np.isin(dealt, mine).any(axis=0).sum()
    assert draws._distinct_tokens(load, mine, tokens)[0] == expected


def test_equal_arguments_give_equal_draws_and_copies_share_the_luck():
    first, again = (
        power_law_share(200, 1.2, COPIES, rounding="smallest", num_draws=6, seed=3)
        for _ in range(2)
    )
    assert np.array_equal(first.load, again.load)
    other = power_law_share(200, 1.2, COPIES, rounding="smallest", num_draws=6, seed=4)
    assert not np.array_equal(first.load, other.load)


def test_uniform_loads():
    assert uniform_share(320, IN_ORDER).load.tolist() == [[20.0] * 8]
    assert uniform_share(4, IN_ORDER).load.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    packed = uniform_share(320, IN_ORDER, tile=128).load  # 160 rows are two tiles
    assert packed.tolist() == [[80, 80, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_ranks": 7}, "do not fill 7 ranks"),
        ({"num_slots": 72}, "only a balanced deployment"),
        ({"top_k": 65}, "expected no fewer slots"),
        ({"num_ranks": 0}, "num_ranks is 0"),
    ],
)
def test_impossible_deployments_are_refused(wrong, message):
    sizes = {"num_experts": 64, "top_k": 4, "num_ranks": 8, "num_slots": 64, **wrong}
    with pytest.raises(EquipoiseError, match=message):
        Deployment(**sizes)


def test_an_exponent_of_one_is_refused():
    with pytest.raises(EquipoiseError, match="alpha is 1"):
        power_law_share(10, 1, IN_ORDER, rounding="smallest", num_draws=1)
