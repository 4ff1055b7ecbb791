from __future__ import annotations

import pickle

import pytest

from equipoise.engines.transformers.capture import capture_prompts
from equipoise.errors import EquipoiseError, FormatError
from equipoise.plan.evaluate import evaluate
from equipoise.plan.planners.robust import Robust
from equipoise.plan.problem import Problem
from equipoise.runtime.serving import prompts as module
from equipoise.runtime.serving.prompts import TEMPLATES, Prompts, Stream
from equipoise.sample import sample_model_path
from equipoise.topology import Topology

MODEL = sample_model_path()
SHIFT = [(0.0, {"docs": 1.0}), (30.0, {"tables": 1.0})]


def only(domain: str, seed: int = 0) -> Prompts:
    return Prompts(seed, [(0, {domain: 1})])


def test_the_domain_follows_the_schedule():
    prompts = Prompts(0, SHIFT)
    assert [prompts.at(7, moment)[0] for moment in (0, 29.9, 30, 1000)] == [
        "docs", "docs", "tables", "tables",
    ]  # fmt: skip


def test_weights_are_shares():
    prompts = Prompts(0, [(0, {"code": 3, "maths": 1, "docs": 0})])
    domains = [prompts.at(number, 0)[0] for number in range(1000)]
    assert set(domains) == {"code", "maths"}
    assert domains.count("code") == pytest.approx(750, abs=60)  # more than four deviations


@pytest.mark.parametrize("domain", TEMPLATES)
def test_prompts_depend_on_seed_and_number_alone_and_have_no_slot_left(domain):
    texts = [only(domain).at(number, 0)[1] for number in range(200)]
    assert texts == [only(domain).at(number, 5)[1] for number in range(200)]
    assert texts != [only(domain, seed=1).at(number, 0)[1] for number in range(200)]
    assert len(set(texts)) > 190
    assert not any(name in text for name in ("{word}", "{Word}", "{number}") for text in texts)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], "expected 0, then ascending"),
        ([(1.0, {"docs": 1})], "expected 0, then ascending"),
        ([(0.0, {"docs": 1}), (0.0, {"code": 1})], "expected 0, then ascending"),
        ([(0.0, {"poems": 1})], "no prompts of the domain 'poems'; there are code"),
        ([(0.0, {})], "expected shares"),
        ([(0.0, {"docs": 0})], "expected shares"),
        ([(0.0, {"docs": -1, "code": 2})], "expected shares"),
        ([(0.0, {"docs": float("nan")})], "expected shares"),
    ],
)
def test_a_schedule_that_is_none_is_refused(schedule, message):
    with pytest.raises(EquipoiseError, match=message):
        Prompts(0, schedule)


def test_a_stream_gives_requests_of_the_domain_whose_time_it_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream: Stream = pickle.loads(pickle.dumps(Stream(Prompts(0, SHIFT), MODEL / "tokenizer.json")))
    first = stream(3)
    assert (first.number, first.domain) == (3, "docs")
    assert 10 < len(first.prompt) < 100
    now[0] += 29
    assert stream(3) == first
    now[0] += 1
    assert stream(3).domain == "tables"


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Stream(only("docs"), tmp_path / "tokenizer.json")(0)


def test_the_shift_of_the_demo_is_a_shift_of_load():
    """A map for one domain is in balance on its own new prompts, and not on the other domain's."""
    texts = {d: [only(d).at(n, 0)[1] for n in range(64)] for d in ("docs", "tables")}
    trace = capture_prompts(MODEL, texts, max_new_tokens=1, batch_size=16)
    parts = {domain: trace.select(domain=domain) for domain in texts}
    for here, there in (("docs", "tables"), ("tables", "docs")):
        fit, held = parts[here].split(at=0.5)
        plan = Robust(dispatch="minmax", proposals=20_000).plan(Problem(fit, Topology(4), 36))
        own, other = (evaluate(plan.placement, t, dispatch="minmax") for t in (held, parts[there]))
        assert own.mean_imbalance < 1.1
        assert other.mean_imbalance > own.mean_imbalance + 0.15


def test_a_tokenizer_of_another_model_is_found_before_it_is_used():
    stream = Stream(Prompts(0, SHIFT), MODEL / "tokenizer.json")
    stream.check(2048)
    with pytest.raises(EquipoiseError, match="has 2048 tokens, the model has 100; give"):
        stream.check(100)
    with pytest.raises(FormatError, match="cannot be read as a tokenizer"):
        Stream(Prompts(0, SHIFT), MODEL / "config.json").check(2048)
