"""The decisions, on deployments of which the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import equipoise as eq
from equipoise.errors import EquipoiseError
from equipoise.simulate.checklist import TILE, TOPICS, checklist
from equipoise.simulate.forecast import forecast, quickest
from equipoise.simulate.routers import lognormal, uniform
from tests.simulate.test_layer_time import LAYER

SMALL = replace(LAYER, num_ranks=16, shape=replace(LAYER.shape, num_experts=64))


def routed(num_tokens: int, popularity=None, num_steps: int = 12) -> eq.Trace:
    """Steps of independent assignments, which is close to a router and fast."""
    popularity = uniform(64, num_layers=2) if popularity is None else popularity
    rng = np.random.default_rng(1)
    counts = rng.multinomial(8 * num_tokens, popularity, size=(num_steps, 2))
    return eq.Trace(counts=counts, top_k=8)


def items(trace, layer=SMALL, forecasts=(), **values):
    values = {"num_layers": 58, "kv_bytes_per_token": 70_000} | values
    return {item.topic: item for item in checklist(trace, layer, forecasts, **values).items}


def foreseen(trace, mode="high-throughput"):
    return forecast(trace, SMALL.topology, SMALL.machines[mode], planner=quickest)


def balancing(trace, *forecasts):
    return items(trace, forecasts=forecasts)["load balancing"]


def test_every_decision_comes_once_and_balancing_last():
    assert tuple(items(routed(1024))) == TOPICS
    assert TOPICS[-1] == "load balancing"


def test_experts_that_do_not_fit():
    item = items(routed(1024), num_layers=1000)["wide EP"]
    assert item.verdict == "change"
    fewest = int(np.ceil(item.numbers["expert_bytes"] / item.numbers["memory_bytes"]))
    assert f"they need {fewest} ranks or more" in item.means
    assert item.numbers["expert_bytes"] == pytest.approx(64 * 44_050_000 * 1000, rel=0.01)


def test_tokens_are_cheap_below_the_knee_and_not_above():
    low, high = (items(routed(n))["token budget"] for n in (256, 200_000))
    assert (low.verdict, high.verdict) == ("change", "keep")
    assert low.numbers["tokens_per_rank"] == 16
    assert high.numbers["longer"] == pytest.approx(1, abs=0.2)


def test_what_is_free_is_what_the_experts_leave():
    item = items(routed(1600))["concurrency"]
    taken = 4 * LAYER.shape.expert_bytes * 58
    free = 0.9 * 80e9 - taken
    assert item.numbers["kv_tokens_per_rank"] == pytest.approx(free / 70_000)
    assert item.numbers["context_tokens"] == pytest.approx(free / 70_000 / 100)
    assert "not known" in items(routed(1600), kv_bytes_per_token=None)["concurrency"].found


def test_padding_is_what_tiles_add():
    item = items(routed(64))["chunked prefill"]  # 8 assignments an expert, in tiles of 128
    assert item.numbers["padding"] == pytest.approx(TILE / 8 - 1, rel=0.01)


def test_overlap_loses_where_weights_are_read_twice():
    one_node = replace(SMALL, num_ranks=8)
    assert items(routed(128), one_node)["overlap"].numbers["saved"] < 0
    assert items(routed(400_000))["overlap"].verdict == "change"


def test_the_fullest_rank_is_named():
    trace = routed(1600)
    counts = trace.counts.copy()
    counts[3, 1, 20:24] *= 5  # the experts of rank 5
    item = items(replace(trace, counts=counts, layer_ids=(7, 9)))["buffers"]
    assert "rank 5, in layer 9" in item.found
    assert item.numbers["busiest_rank"] == 5


def test_chance_is_left_alone():
    trace = routed(6400, num_steps=40)
    item = balancing(trace, foreseen(trace))
    assert item.verdict == "keep"
    assert item.numbers["imbalance"] == pytest.approx(item.numbers["floor"], abs=0.03)
    assert item.numbers["gain_high"] < item.numbers["gain_needed"]
    assert "not now: " in item.means


def test_the_forecast_decides_on_balancing():
    trace = routed(200_000, lognormal(64, num_layers=2, seed=0), num_steps=40)
    answer = foreseen(trace)
    item = balancing(trace, answer)
    assert answer.verdict.kind == "recommend"
    assert item.verdict == "change"
    assert f"{answer.model}: {answer.verdict.text}" in item.means
    assert answer.today[0].text in item.found
    best, idle = answer.best, answer.today[0]
    numbers = {"idle_share": idle.share, "chance_share": idle.chance, "gain": best.gain}
    numbers |= {"redundant_slots": best.redundant, "gain_low": best.interval[0]}
    assert numbers.items() <= item.numbers.items()


def test_what_each_split_saves_is_the_best_of_its_options():
    trace = routed(200_000, lognormal(64, num_layers=2, seed=0), num_steps=40)
    answer = foreseen(trace)
    said = []
    for name in ("even", "minmax"):
        options = [o for o in answer.options if o.dispatch == name]
        best = max(options, key=lambda o: o.gain - o.needed)
        said.append(f"{name} {best.gain:.1%} with {best.redundant} redundant")
    assert balancing(trace, answer).means.endswith(f"Saved by split: {', '.join(said)}.")


def test_every_kind_of_steps_has_its_numbers_and_its_verdict():
    trace = routed(20_000, lognormal(64, num_layers=2, seed=0), num_steps=40)
    phases = replace(trace, labels={"phase": np.repeat(["decode", "prefill"], 20)})
    made = [foreseen(phases.select(phase=name)) for name in ("decode", "prefill")]
    item = balancing(phases, *made, "too few steps")
    for answer in made:
        idle = answer.today[0]
        assert item.numbers[f"{idle.steps}_idle_share"] == idle.share
    assert item.means.endswith("insufficient evidence: too few steps")


def test_without_a_forecast_nothing_is_changed():
    item = balancing(routed(200_000), "The recording has one step.")
    assert item.verdict == "keep"
    assert item.means == "insufficient evidence: The recording has one step."


def test_imbalance_is_told_by_how_long_it_lasts():
    batches = [routed(200_000, lognormal(64, num_layers=2, seed=n), num_steps=1) for n in range(24)]
    counts = np.concatenate([trace.counts for trace in batches])
    changing = balancing(eq.Trace(counts=counts, top_k=8)).numbers
    assert changing["varying"] > changing["lasting"] - 1
    steady = balancing(routed(200_000, lognormal(64, num_layers=2, seed=0))).numbers
    assert steady["varying"] < 0.05 < steady["lasting"] - 1


def test_rows_that_are_sums_are_drawn_at_the_size_of_a_step():
    windows = routed(1_000_000, num_steps=4)
    found = checklist(windows, SMALL, (), num_layers=58, step_tokens=1600)
    assert found.step_tokens == pytest.approx(1600, rel=0.02)
    assert found.items[1].numbers["tokens_per_rank"] == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("ranks", [1, 7, 48, 64])
def test_any_number_of_ranks_and_hardly_any_load(ranks):
    one = np.zeros((2, 2, 64), np.int64)
    one[0, 0, 5] = 1
    for counts in (one, np.full((2, 2, 64), 2**40)):
        for item in items(eq.Trace(counts=counts, top_k=8), SMALL.on(ranks)).values():
            assert np.isfinite(list(item.numbers.values())).all(), item


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match="has 64 experts in a layer and the model 256"):
        checklist(routed(64), LAYER, (), num_layers=58)
    with pytest.raises(EquipoiseError, match="No assignment was recorded"):
        checklist(eq.Trace(counts=np.zeros((2, 1, 64), np.int64)), SMALL, (), num_layers=58)
    with pytest.raises(EquipoiseError, match="step_tokens"):
        checklist(routed(64), SMALL, (), num_layers=58, step_tokens=0.5)
