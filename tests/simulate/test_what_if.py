"""Answers to what-if questions against the library, step by step."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from equipoise.dispatch import dispatcher
from equipoise.engines.served_models import served_models
from equipoise.errors import EquipoiseError
from equipoise.noise import noise_floor
from equipoise.plan.evaluate import evaluate, evaluate_without_balancing
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.planners.lplb import FixedGraph
from equipoise.plan.problem import Problem
from equipoise.simulate.step_table import drawn_steps
from equipoise.simulate.what_if import DISPATCH, NUM_BATCHES, Question, WhatIf
from equipoise.topology import Topology
from equipoise.trace import Trace

MODEL = "gpt-oss-20b"  # small: 24 layers of 32 experts, 4 a token
SMALL = Question(model=MODEL, num_ranks=8, step_tokens=1024)


def made_recording(num_steps: int = 10, num_layers: int = 3, num_experts: int = 32) -> Trace:
    rng = np.random.default_rng(1)
    popularity = rng.dirichlet(np.full(num_experts, 0.5), size=num_layers)
    counts = rng.multinomial(40_000, popularity, size=(num_steps, num_layers))
    return Trace(counts=counts, layer_ids=tuple(range(3, 3 + num_layers)), top_k=4)


@pytest.fixture(scope="module")
def models():
    return served_models()


@pytest.fixture(scope="module")
def what_if(models) -> WhatIf:
    return WhatIf(models, made_recording())


def figure(answer, key):
    return next(figure for figure in answer.figures if figure.key == key)


@pytest.mark.parametrize("dispatch", DISPATCH)
def test_numbers_are_those_of_the_library(what_if, dispatch):
    question = replace(SMALL, routing="recorded", dispatch=dispatch, redundant_per_rank=2)
    answer = what_if.answer(question)
    fit, held = made_recording().split(at=0.8)
    batches = drawn_steps(held, 1024, top_k=4, number=NUM_BATCHES)
    topology = Topology(8)
    problem = Problem(fit.total, topology, 48)
    greedy = Greedy().plan(problem).placement

    def by_batch(placement, name):
        judge = dispatcher(name, topology, top_k=4)
        return evaluate(placement, batches, dispatch=judge).imbalance.mean(axis=1)

    assert answer.batches.chosen == pytest.approx(by_batch(greedy, dispatch), rel=2e-3)
    assert answer.batches.eplb == pytest.approx(by_batch(greedy, "even"))
    ring = FixedGraph(graph="ring").plan(problem).placement
    assert answer.batches.lplb == pytest.approx(by_batch(ring, "minmax"), rel=2e-3)
    plain = evaluate_without_balancing(batches, topology)
    assert answer.batches.without == pytest.approx(plain.imbalance.mean(axis=1))
    assert figure(answer, "imbalance").before == pytest.approx(plain.mean_imbalance)
    assert answer.batches.floor == noise_floor(1024, 32, 4, 8).mean
    row = answer.layers.index(answer.layer.layer)
    assert answer.layer.copies == greedy.copies[row][answer.layer.experts].tolist()


def test_parts_of_a_step_add_up_to_its_time(what_if):
    answer = what_if.answer(SMALL)
    step = figure(answer, "step")
    assert 1e3 * sum(answer.parts_before.values()) == pytest.approx(step.before)
    assert 1e3 * sum(answer.parts_after.values()) == pytest.approx(step.after)
    assert f"{step.after:.1f} ms instead of {step.before:.1f} ms" in answer.headline


def test_recorded_layers_stand_for_those_of_the_model(what_if, models):
    """A recording of the same loads in twice the layers takes the same time."""
    twice = made_recording()
    twice = replace(
        twice, counts=np.concatenate([twice.counts] * 2, axis=1), layer_ids=tuple(range(6))
    )
    question = replace(SMALL, routing="recorded", step_tokens=1 << 20)
    one, two = what_if.answer(question), WhatIf(models, twice).answer(question)
    assert figure(two, "step").before == pytest.approx(figure(one, "step").before, rel=1e-2)
    assert f"3 recorded layers stand for the 24 of {MODEL}." in one.notes


def test_a_fair_router_leaves_nothing_but_chance(what_if):
    answer = what_if.answer(replace(SMALL, skew=0.0, drift=0.0))
    assert figure(answer, "imbalance").before == pytest.approx(answer.batches.floor, rel=0.02)


def test_skew_is_balanced_and_the_floor_stays(what_if):
    answers = [what_if.answer(replace(SMALL, skew=skew, drift=0.0)) for skew in (0.5, 1.5)]
    mild, heavy = (figure(answer, "imbalance") for answer in answers)
    assert mild.before < heavy.before
    assert heavy.after < 0.5 * heavy.before
    assert answers[0].batches.floor == answers[1].batches.floor


def test_more_slots_make_more_copies(what_if):
    none, some = (what_if.answer(replace(SMALL, redundant_per_rank=n)) for n in (0, 2))
    assert set(none.layer.copies) == {1}
    assert max(some.layer.copies) > 1
    assert figure(some, "copied").after > figure(none, "copied").after == 0
    assert figure(some, "memory").after > figure(none, "memory").after == 0


def test_drift_makes_the_plan_older_with_every_batch(what_if):
    batches = what_if.answer(replace(SMALL, drift=0.5, step_tokens=1 << 17)).batches
    third = NUM_BATCHES // 3
    assert np.mean(batches.eplb[-third:]) > np.mean(batches.eplb[:third]) + 0.1
    assert np.mean(batches.lplb) < np.mean(batches.eplb)


def test_where_the_ring_does_not_fit_a_sentence_says_why(what_if):
    batches = what_if.answer(replace(SMALL, num_ranks=6)).batches
    assert batches.lplb is None
    assert batches.lplb_reason.startswith("32 experts in 42 slots do not fit 6 ranks")


def test_step_times_grow_along_the_curve(what_if):
    curve = what_if.answer(SMALL).curve
    assert curve.tokens[0] == 8
    assert np.all(np.diff(curve.before_seconds) > 0)
    # A large batch takes time in proportion to its tokens, one far below the knee does not.
    low, high = curve.before_seconds[1] / curve.before_seconds[0], curve.before_seconds[-1]
    assert low < 2
    assert high / curve.before_seconds[-2] > 3.5


def test_ranks_that_do_not_fill_nodes_are_dealt_to_smaller_ones(what_if):
    assert what_if.answer(replace(SMALL, num_ranks=16)).notes == []
    answer = what_if.answer(replace(SMALL, num_ranks=12))
    assert answer.notes == ["12 ranks are in nodes of 6, since 8 do not divide them."]
    assert "between nodes" in answer.facts


def test_a_layer_is_chosen_or_the_least_balanced(what_if):
    recorded = replace(SMALL, routing="recorded")
    assert what_if.answer(replace(recorded, layer=5)).layer.layer == 5
    every = [what_if.answer(replace(recorded, layer=n)).layer for n in (3, 4, 5)]
    worst = what_if.answer(recorded).layer
    assert worst.layer in (3, 4, 5)
    assert max(worst.ranks_before) == max(max(view.ranks_before) for view in every)


def test_other_seeds_draw_other_batches_and_equal_ones_the_same(what_if):
    one, again, other = (what_if.answer(replace(SMALL, seed=seed)) for seed in (0, 0, 1))
    assert asdict(one) == asdict(again)
    assert one.batches.without != other.batches.without


def test_many_layers_are_told_from_those_computed(models):
    recording = made_recording(num_steps=2, num_layers=4, num_experts=8192)
    answer = WhatIf(models, recording).answer(replace(SMALL, routing="recorded"))
    assert answer.layers == [3, 4, 6]
    assert answer.notes[0].startswith("3 of 4 layers are computed")
    assert f"The recording has 8192 experts, 4 a token, where {MODEL} has 32 and 4" in str(
        answer.notes
    )


def test_batches_of_a_long_recording_come_from_some_of_its_steps(models):
    recording = made_recording(num_steps=1000)
    answer = WhatIf(models, recording).answer(replace(SMALL, routing="recorded"))
    assert answer.notes[0] == "Batches are drawn from 128 of 200 unseen steps."


def test_a_recording_of_one_step_is_planned_on_and_drawn_from(models):
    answer = WhatIf(models, made_recording(num_steps=1)).answer(replace(SMALL, routing="recorded"))
    assert answer.notes[0].startswith("The recording has one step")


def test_layers_without_load_are_left_out(models):
    recording = made_recording()
    counts = recording.counts.copy()
    counts[:, 1] = 0
    answer = WhatIf(models, replace(recording, counts=counts)).answer(
        replace(SMALL, routing="recorded")
    )
    assert answer.layers == [3, 5]
    with pytest.raises(EquipoiseError, match="No layer of the recording has load"):
        WhatIf(models, replace(recording, counts=np.zeros_like(counts)))


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "The question is []; expected an object."),
        ({"rank": 3}, "There is nothing called 'rank' to ask for; expected some of routing, skew"),
        ({"num_ranks": 1}, "num_ranks is 1; expected 2 to 256."),
        ({"num_ranks": 8.0}, "num_ranks is 8.0; expected a whole number."),
        ({"num_ranks": True}, "num_ranks is True; expected a whole number."),
        ({"step_tokens": 10**30}, "step_tokens is"),
        ({"skew": "1"}, "skew is '1'; expected a number."),
        ({"skew": -1}, "skew is -1; expected 0 to 3."),
        ({"skew": 1, "routing": "recorded"}, "skew is of generated routing; leave it out"),
        ({"dispatch": "vllm"}, "dispatch is 'vllm'; expected one of even, minmax"),
        ({"dispatch": ["even"]}, "dispatch is ['even']; expected one of"),
        ({"gpu": "../../etc/passwd"}, "gpu is '../../etc/passwd'; expected one of"),
        ({"model": None}, "model is None; expected a str."),
        ({"layer": -1}, "layer is -1; expected 0 or more."),
        ({"seed": 1 << 40}, "seed is"),
    ],
)
def test_wrong_questions_are_refused_in_a_sentence(document, sentence):
    with pytest.raises(EquipoiseError) as refused:
        Question.of(document)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "no-such"}, "There is no model 'no-such'; use one of deepseek-r1"),
        ({"num_ranks": 64}, "64 ranks share 32 experts"),
        ({"redundant_per_rank": 29}, ""),
        ({"layer": 99}, "There is no layer 99 in this answer; expected one from 0 to 23"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(what_if, change, sentence):
    with pytest.raises(EquipoiseError) as refused:
        what_if.answer(replace(SMALL, **change))
    assert str(refused.value).startswith(sentence)


def test_without_a_recording_there_is_none_to_ask_about(models):
    assert WhatIf(models).choices["recording"] is None
    with pytest.raises(EquipoiseError, match="There is no recording to ask about"):
        WhatIf(models).answer(replace(SMALL, routing="recorded"))
