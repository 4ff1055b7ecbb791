from __future__ import annotations

import time
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from equipoise.errors import EquipoiseError
from equipoise.noise import noise_floor
from equipoise.placement import Placement
from equipoise.report.summary import summarise
from equipoise.trace import Provenance, Trace


def skewed(**options: object) -> Trace:
    """Two domains of four steps whose hot experts differ; decode and prefill alternate."""
    rng = np.random.default_rng(5)
    heat = np.ones((2, 3, 8))
    heat[0, :, 1] = 9
    heat[1, :, 6] = 9
    share = heat / heat.sum(axis=2, keepdims=True)
    counts = np.stack(
        [[rng.multinomial(4000, share[t // 4, layer]) for layer in range(3)] for t in range(8)]
    )
    return Trace(
        counts=counts,
        layer_ids=(3, 4, 7),
        top_k=2,
        labels={"domain": np.repeat(["code", "math"], 4)},
        provenance=Provenance("npz", "run.npz", ("A note.",)),
        **options,  # type: ignore[arg-type]
    )


# --- balance


def test_known_answer_by_hand() -> None:
    trace = Trace(counts=np.array([[[4, 0, 0, 0]], [[0, 0, 1, 1]], [[1, 1, 1, 1]]]))
    balance = summarise(trace, num_ranks=2).balance
    assert balance is not None
    # rank loads [4, 0], [0, 2], [2, 2]
    assert balance.imbalance == pytest.approx((2 + 2 + 1) / 3)
    assert balance.imbalance_ratio == pytest.approx(2 / 3)
    assert balance.balancedness == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert balance.worst == 2.0
    assert balance.of_window == pytest.approx(6 / 5)  # sums [6, 4]
    assert summarise(trace, num_ranks=2).relative_step_time == pytest.approx((4 + 2 + 2) / 5)
    assert summarise(trace, num_ranks=2).idle_share == pytest.approx(1 - 5 / 8)


def test_golden_rank_loads_of_the_conventions() -> None:
    trace = Trace(counts=np.array([[[6, 2, 2, 2], [20, 25, 20, 15]]]))
    found = summarise(trace, num_ranks=4)
    assert found.balance is not None
    assert found.balance.imbalance == 1.625
    assert found.balance.imbalance_ratio == 0.625
    assert found.balance.balancedness == pytest.approx(0.65)
    assert found.relative_step_time == pytest.approx(1.3478260870)


@given(
    counts=hnp.arrays(
        np.int32,
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.just(6)),
        elements=st.integers(0, 9),
    ),
    slots=st.permutations([*range(6), 0, 0, 5]),
)
def test_balance_agrees_with_plain_loops(counts: np.ndarray, slots: list[int]) -> None:
    if not counts.any():
        return
    layers = counts.shape[1]
    placement = Placement([slots] * layers, num_ranks=3, num_experts=6)
    found = summarise(Trace(counts=counts), placement=placement)
    gammas, peaks, means = [], 0.0, 0.0
    total = np.zeros((layers, 3))
    shares: list[list[list[float]]] = [[] for _ in range(layers)]
    for step in counts:
        for row, load in enumerate(step):
            ranks = [0.0, 0.0, 0.0]
            for slot, expert in enumerate(slots):
                ranks[slot // 3] += load[expert] / slots.count(expert)
            total[row] += ranks
            peaks, means = peaks + max(ranks), means + sum(ranks) / 3
            if sum(ranks):
                shares[row].append([load / (sum(ranks) / 3) for load in ranks])
                gammas.append(max(ranks) / (sum(ranks) / 3))
    assert found.balance is not None
    assert found.balance.imbalance == pytest.approx(np.mean(gammas))
    assert found.balance.balancedness == pytest.approx(np.mean([1 / g for g in gammas]))
    assert found.balance.p95 == pytest.approx(np.percentile(gammas, 95))
    assert found.balance.worst == pytest.approx(max(gammas))
    assert found.relative_step_time == pytest.approx(peaks / means)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(total / total.mean(axis=1, keepdims=True))
    assert np.allclose(found.rank_multiples, expected, atol=1e-4)
    tails = [np.percentile(steps, 95, axis=0) if steps else [0] * 3 for steps in shares]
    assert np.allclose(found.rank_p95, tails, atol=1e-4)


def test_the_heat_map_shows_hot_spots_that_move() -> None:
    """Each rank in turn carries all: in the sum they are equal, and every step waits for one."""
    counts = np.zeros((40, 1, 8), np.int64)
    counts[np.arange(40), 0, np.arange(40) % 4 * 2] = 100
    found = summarise(Trace(counts=counts), num_ranks=4)
    assert found.balance is not None
    assert found.balance.imbalance == 4
    assert found.rank_multiples == ((1, 1, 1, 1),)
    assert found.rank_p95 == ((4, 4, 4, 4),)


def test_of_many_steps_some_evenly_apart_are_looked_at() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 50, (1000, 2, 4))
    found = summarise(Trace(counts=counts), num_ranks=4)
    every = counts / counts.mean(axis=2, keepdims=True)
    picked = every[np.linspace(0, 999, 256).astype(int)]
    assert np.allclose(found.rank_p95, np.percentile(picked, 95, axis=0), atol=1e-3)


def test_a_sum_of_equal_steps_never_looks_worse_than_the_steps() -> None:
    found = summarise(skewed(), num_ranks=4)
    assert found.balance is not None
    assert found.balance.of_window < found.balance.imbalance - 0.3


def test_empty_layers_change_nothing_and_have_no_balance() -> None:
    trace = skewed()
    empty = np.zeros((8, 1, 8), np.int64)
    wider = Trace(counts=np.concatenate([trace.counts, empty], axis=1), top_k=2)
    found = summarise(wider, num_ranks=4)
    assert found.balance == summarise(Trace(counts=trace.counts, top_k=2), num_ranks=4).balance
    last = found.layers[-1]
    assert (last.assignments, last.used_experts, last.balance, last.busiest_rank) == (
        0,
        0,
        None,
        None,
    )
    assert 3 not in found.worst_layers


def test_a_fair_router_has_no_excess_and_a_skewed_one_does() -> None:
    rng = np.random.default_rng(0)
    fair = Trace(counts=rng.multinomial(2048, np.full(64, 1 / 64), size=(50, 4)))
    balance = summarise(fair, num_ranks=8).balance
    assert balance is not None
    assert abs(balance.excess) < 0.03
    assert balance.chance_share > 0.8
    assert "no placement" in summarise(fair, num_ranks=8).headline[1]
    hot = summarise(skewed(), num_ranks=4)
    assert hot.balance is not None
    assert hot.balance.excess > 0.5
    assert "the rest is skew" in hot.headline[1]


def test_floor_is_that_of_the_steps() -> None:
    trace = Trace(counts=np.full((2, 3, 16), 32), top_k=4)
    balance = summarise(trace, num_ranks=4).balance
    floor = noise_floor(16 * 32 // 4, 16, 4, 4)
    assert balance is not None
    assert balance.floor == pytest.approx(floor.mean)
    assert balance.floor_std == pytest.approx(floor.std)
    assert balance.chance_share == 1.0


# --- layout


def test_ranks_default_to_the_recorded_ones() -> None:
    source = np.ones((2, 4, 3, 8), np.int64)
    found = summarise(Trace(counts=source.sum(axis=1), source_counts=source))
    assert (found.num_ranks, found.layout, found.num_slots) == (4, "contiguous", 8)


def test_without_ranks_only_experts_are_shown() -> None:
    found = summarise(skewed())
    assert (found.num_ranks, found.balance, found.layout) == (None, None, "experts")
    assert found.rank_multiples == found.rank_p95 == ()
    assert found.idle_share is None
    assert any("give the ranks" in note for note in found.notes)
    assert found.worst_layers
    assert found.hottest_experts[0].ranks == ()
    assert "hottest expert" in found.headline[0]


def test_ranks_that_do_not_divide_hold_what_engines_put_there() -> None:
    counts = np.array([[[1, 2, 4, 8, 16, 32, 64, 128]]])
    found = summarise(Trace(counts=counts), num_ranks=3)
    assert found.rank_multiples == ((0.0824, 0.6588, 2.2588),)  # 7, 56 and 192 over 85
    assert (found.num_slots, found.layout) == (8, "contiguous")
    assert found.hottest_experts[0].ranks == (2,)
    assert any("each held 2 experts, and the first 2 ranks one more," in n for n in found.notes)


def test_nothing_recorded_is_refused() -> None:
    with pytest.raises(EquipoiseError, match=r"No assignment was recorded in run\.npz"):
        summarise(
            Trace(counts=np.zeros((1, 1, 2), np.int64), provenance=Provenance("npz", "run.npz"))
        )


def test_copies_of_the_hot_expert_lower_the_imbalance() -> None:
    slots = [1, 0, 6, 1, 2, 6, 1, 3, 6, 4, 5, 7]
    placement = Placement([slots] * 3, num_ranks=4, num_experts=8, layer_ids=(3, 4, 7))
    before, after = summarise(skewed(), num_ranks=4), summarise(skewed(), placement=placement)
    assert before.balance is not None
    assert after.balance is not None
    assert after.balance.imbalance < before.balance.imbalance
    assert (after.layout, after.num_slots) == ("placement", 12)
    assert {hot.ranks for hot in after.hottest_experts if hot.expert == 1} == {(0, 1, 2)}


# --- experts


def test_hottest_expert_by_hand() -> None:
    trace = Trace(counts=np.array([[[1, 5, 1, 1], [2, 2, 2, 2]]]), layer_ids=(3, 9))
    hot = summarise(trace, num_ranks=2).hottest_experts[0]
    assert (hot.layer, hot.expert, hot.multiple, hot.share, hot.ranks) == (3, 1, 2.5, 0.625, (0,))


def test_experts_that_never_fire_are_counted_and_not_listed() -> None:
    trace = Trace(counts=np.array([[[3, 0, 0, 0]], [[1, 1, 0, 0]]]))
    found = summarise(trace, num_ranks=2)
    assert found.layers[0].used_experts == 2
    assert found.layers[0].active_experts == 1.5
    assert [hot.expert for hot in found.hottest_experts] == [0, 1]


def test_expert_curves_are_sorted_and_average_one() -> None:
    curves = summarise(skewed()).expert_curves
    for curve in (curves.low, curves.median, curves.high, curves.steepest):
        assert len(curve) == 8
        assert list(curve) == sorted(curve, reverse=True)
    assert np.mean(curves.steepest) == pytest.approx(1.0, abs=1e-3)


# --- labels and drift


def test_each_label_value_is_measured_alone() -> None:
    trace = skewed()
    code, math = summarise(trace, num_ranks=4).labels
    alone = summarise(trace.select(domain="math"), num_ranks=4)
    assert (code.value, math.value, math.num_steps) == ("code", "math", 4)
    assert math.balance == alone.balance
    assert math.assignments == alone.assignments


def test_drift_between_domains_is_found() -> None:
    found = summarise(skewed(), num_ranks=4)
    drift = found.drift
    assert drift.labels["domain"].within == pytest.approx(1.0, abs=0.02)
    assert drift.labels["domain"].between < 0.1
    assert drift.correlation == pytest.approx(1.0, abs=0.02)
    assert drift.total_variation == pytest.approx(drift.chance_variation, rel=0.5)
    assert "Hot experts differ by domain" in found.headline[-1]


@given(
    counts=hnp.arrays(np.int64, (5, 2, 4), elements=st.integers(50, 99)),
    labels=st.lists(st.sampled_from("ab"), min_size=5, max_size=5),
)
def test_drift_agrees_with_plain_loops(counts: np.ndarray, labels: list[str]) -> None:
    trace = Trace(counts=counts, labels={"domain": np.array(labels)})
    drift = summarise(trace).drift
    assert drift.window_steps == 1

    def correlations(a: int, b: int) -> list[float]:
        pairs = [(counts[a, row], counts[b, row]) for row in range(2)]
        return [np.corrcoef(x, y)[0, 1] for x, y in pairs if np.ptp(x) and np.ptp(y)]

    def average(pairs: list[tuple[int, int]]) -> float | None:
        values = [c for a, b in pairs for c in correlations(a, b)]
        return pytest.approx(np.mean(values), abs=1e-9) if values else None

    every = list(combinations(range(5), 2))
    assert drift.correlation == average(
        [(a, b) for a, b in every if b == a + 1 and labels[a] == labels[b]]
    )
    between = average([(a, b) for a, b in every if labels[a] != labels[b]])
    if between is None:
        assert not drift.labels
        return
    assert drift.labels["domain"].between == between
    assert drift.labels["domain"].within == average(
        [(a, b) for a, b in every if labels[a] == labels[b]]
    )


def test_small_steps_are_summed_before_drift_is_measured() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(64, np.arange(1, 33) / 528, size=(200, 2))
    drift = summarise(Trace(counts=counts)).drift
    assert drift.window_steps == 16  # 32 assignments per expert at 2 a step
    assert drift.correlation is not None
    assert drift.correlation > 0.8
    assert drift.total_variation == pytest.approx(drift.chance_variation, rel=0.2)


def test_one_step_has_no_drift() -> None:
    drift = summarise(Trace(counts=np.array([[[1, 2]]]))).drift
    assert (drift.num_windows, drift.correlation, drift.total_variation) == (1, None, None)


def test_a_label_that_names_every_step_is_noted_and_left_out() -> None:
    counts = np.ones((40, 1, 4), np.int64)
    trace = Trace(counts=counts, labels={"request": np.arange(40).astype(str)})
    found = summarise(trace, num_ranks=2)
    assert found.labels == ()
    assert "The label request has 40 values and is not broken down." in found.notes


# --- JSON


def test_json_is_plain_and_complete() -> None:
    found = summarise(skewed(), num_ranks=4)
    document = msgspec.json.decode(found.to_json())
    assert list(document) == [f.name for f in fields(found)]
    assert document["source"] == "run.npz"
    assert document["notes"][0] == "A note."
    assert document["layers"][0]["balance"]["imbalance"] == found.layers[0].balance.imbalance
    assert document["drift"]["labels"]["domain"]["between"] == found.drift.labels["domain"].between
    assert len(document["rank_multiples"]) == 3
    assert document["tokens"] == 16000
    assert document["tokens_per_step"] == [2000.0, 2000.0, 2000.0]


# --- real data and size


@pytest.mark.shared_data
def test_glm52(shared_data: Path) -> None:
    with np.load(shared_data / "glm52" / "windows.npz") as z:
        trace = Trace(
            counts=z["counts"].reshape(-1, 75, 256),
            layer_ids=tuple(z["layers"].tolist()),
            top_k=int(z["top_k"]),
            labels={"domain": np.repeat(z["domains"], 8)},
        )
        tokens = int(z["tokens"].sum())
    found = summarise(trace, num_ranks=32)
    ranks = trace.counts.reshape(56, 75, 32, 8).sum(axis=3)
    plain = ranks.max(axis=2) / ranks.mean(axis=2)
    assert found.tokens == tokens
    assert found.balance is not None
    assert found.balance.imbalance == pytest.approx(np.mean(plain), abs=1e-9)
    assert found.balance.floor < 1.05
    drift = found.drift.labels["domain"]
    assert drift.within is not None
    assert drift.within > 0.7
    assert drift.between < 0.15


def test_a_long_trace_takes_less_than_two_seconds() -> None:
    counts = np.random.default_rng(0).poisson(64, (100, 58, 256))
    trace = Trace(counts=counts, top_k=8)
    start = time.process_time()  # not the clock: other work on the machine is not ours
    summarise(trace, num_ranks=32)
    assert time.process_time() - start < 2.0
