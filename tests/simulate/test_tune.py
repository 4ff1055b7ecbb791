"""Tuning: the front and the answer, where both are known, and cases that are never run twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise as eq
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.simulate.expert_time import UncertainCost
from equipoise.simulate.online import Conditions
from equipoise.simulate.routers import lognormal, sample_trace, steady, uniform
from equipoise.simulate.tune import (
    ENGINE,
    NONE,
    ONLINE,
    STATIC,
    Setting,
    Study,
    Tuning,
    cases,
    run,
    tune,
)

MODEL = UncertainCost(name="by tokens", planning_cost=RankCost(token_seconds=1e-6), error=0)
CONDITIONS = Conditions(
    topology=eq.Topology(4), model=MODEL, expert_bytes=10**6, interference=0.5
)  # fmt: skip


def study(popularity_LE, **more) -> Study:
    trace = sample_trace(steady(popularity_LE, num_steps=96), num_tokens=400, top_k=2, seed=3)
    fit, held = trace.split(at=1 / 3)
    values = {"conditions": CONDITIONS, "proposals": 1 << 10, "plan_seconds": 0.001, **more}
    return Study(fit=fit, held=held, **values)


SKEWED = study(lognormal(16, num_layers=2, seed=1))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Tuning:
    chosen = cases(SKEWED, dispatch=["even"], redundant=[4], window=[8], interval=[8])
    with ThreadPoolExecutor(2) as executor:
        path = tmp_path_factory.mktemp("tune") / "t.jsonl"
        return tune(SKEWED, chosen, executor=executor, path=path)


def test_every_kind_is_replayed_and_a_skewed_router_gains(found):
    assert [s.kind for s in found.settings] == [NONE, STATIC, ENGINE, ONLINE]
    assert found.none.gain == 0
    assert found.best.kind != NONE
    assert found.best.low > found.best.needed
    assert found.best.gain == pytest.approx(
        1 - found.best.step_seconds / found.none.step_seconds, abs=1e-9
    )
    assert found.settings[1].moves == 0 < found.settings[2].moves
    assert found.best.name in found.text
    assert found.settings[1].bytes_per_rank == 1 * 2 * 10**6  # one more slot in two layers


def test_fair_routing_is_left_alone_and_moves_can_eat_the_gain(tmp_path):
    fair = study(uniform(16, num_layers=2))
    dear = replace(CONDITIONS, stall_seconds=10.0)
    for known, kinds in (
        (fair, [STATIC, ENGINE, ONLINE]),
        (study(_mild(), conditions=dear), [ENGINE]),
    ):
        chosen = cases(
            known, dispatch=["even"], redundant=[4], window=[8], interval=[8], kinds=kinds
        )
        with ThreadPoolExecutor(1) as executor:
            answer = tune(known, chosen, executor=executor, path=tmp_path / f"{known.digest}.jsonl")
        assert answer.best is answer.none
        assert answer.text.startswith("Leave balancing off")


def _mild():
    return lognormal(16, num_layers=2, sigma=0.5, seed=2)


PRICES = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))


def setting(kind: str, price: tuple[int, int, int], gain: float = 0.0) -> Setting:
    seconds, size, moves = price
    return Setting(
        kind=kind, redundant=0, dispatch="even", window=0, interval=0, excess=0.0,
        step_seconds=float(seconds), gain=gain, low=gain, high=gain, needed=0.0,
        bytes_per_rank=size, moves=moves, moved_bytes=0, changes=0, imbalance=1.0,
        blocks=(float(seconds),) * 16,
    )  # fmt: skip


@given(st.lists(PRICES, max_size=8))
def test_the_front_is_what_no_other_beats(prices):
    none = setting(NONE, (3, 0, 0))
    answer = Tuning(settings=(none, *(setting(STATIC, p, 1 - p[0] / 3) for p in prices)))
    for i, s in enumerate(answer.settings):
        beaten = any(
            all(a <= b for a, b in zip(o.price, s.price, strict=True)) and o.price != s.price
            for o in answer.settings
        )
        repeats = any(o.price == s.price for o in answer.settings[:i])
        assert any(s is f for f in answer.front) == (not beaten and not repeats)
    slower = [s for s in answer.front if s.step_seconds > none.step_seconds]
    assert slower == []
    assert answer.best.step_seconds <= none.step_seconds


def test_results_are_kept_and_those_of_another_study_are_not_taken(tmp_path):
    path = tmp_path / "t.jsonl"
    chosen = cases(SKEWED, dispatch=["even"], redundant=[0], kinds=[STATIC])
    with ThreadPoolExecutor(1) as executor:
        first = tune(SKEWED, chosen, executor=executor, path=path)
        before = path.read_text()
        assert tune(SKEWED, chosen, executor=executor, path=path) == first
        assert path.read_text() == before
        other = replace(SKEWED, seed=5)
        again = cases(other, dispatch=["even"], redundant=[0], kinds=[STATIC])
        tune(other, again, executor=executor, path=path)
    assert len(path.read_text().splitlines()) == 2 * len(before.splitlines())


def test_a_case_gives_the_same_again():
    (case,) = cases(SKEWED, dispatch=["minmax"], redundant=[4], window=[8], interval=[16])[3:4]
    assert case["kind"] == ONLINE
    assert run(SKEWED, case) == run(SKEWED, dict(case))


def test_what_cannot_be_tried_is_refused():
    for values, said in (
        ({"redundant": [3]}, "redundant is 3; expected what 4 ranks share"),
        ({"window": [9], "interval": [8]}, "No window of"),
        ({"kinds": ["magic"]}, "magic is not a way to balance"),
        ({"kinds": []}, "Nothing is not a way"),
        ({"dispatch": []}, "No dispatcher"),
    ):
        with pytest.raises(EquipoiseError, match=said):
            cases(SKEWED, **{"dispatch": ["even"]} | values)
    few = SKEWED.held.select(steps=np.arange(20))
    with pytest.raises(EquipoiseError, match="cannot tell a gain from chance"):
        replace(SKEWED, held=few)
