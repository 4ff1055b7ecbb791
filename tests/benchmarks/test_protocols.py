from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import protocols
from equipoise.trace import Trace
from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.shared_data

NAMES = ("glm52", "glm52, left out", "esft_tokens", "esft_tokens, left out", "gptoss")


@pytest.fixture(scope="module")
def windows() -> Trace:
    whole = protocols.read_glm52(SHARED_DATA)
    return whole.select(layers=whole.layer_ids[:2])


@pytest.fixture(scope="module")
def esft_tokens() -> protocols.Tokens:
    return _two_layers(protocols.read_esft(SHARED_DATA))


@pytest.fixture(scope="module")
def generations() -> protocols.Tokens:
    return _two_layers(protocols.read_gptoss(SHARED_DATA))


def _two_layers(tokens: protocols.Tokens) -> protocols.Tokens:
    return replace(tokens, ids=tokens.ids[:, :2])


def _splits(name, windows, esft_tokens, generations):
    return {
        "glm52": lambda: [protocols.glm52(windows)],
        "glm52, left out": lambda: list(protocols.glm52_left_out(windows)),
        "esft_tokens": lambda: [protocols.esft(esft_tokens)],
        "esft_tokens, left out": lambda: list(protocols.esft_left_out(esft_tokens)),
        "gptoss": lambda: [protocols.gptoss(generations)],
    }[name]()


def _same(a: Trace, b: Trace) -> bool:
    return np.array_equal(a.counts, b.counts)


def _other_counts(windows: Trace, units: frozenset[str]) -> Trace:
    """Loads of the named windows reversed over experts."""
    names = zip(windows.labels["domain"], windows.labels["window"], strict=True)
    altered = np.array([f"{domain} window {window}" in units for domain, window in names])
    assert altered.sum() == len(units)
    counts = np.where(altered[:, None, None], windows.counts[..., ::-1], windows.counts)
    return replace(windows, counts=counts)


def _other_ids(tokens: protocols.Tokens, units: frozenset[str]) -> protocols.Tokens:
    """Choices of the named sequences shifted by one expert."""
    names = [f"{label} sequence {i}" for i, label in enumerate(tokens.labels)]
    altered = np.repeat([name in units for name in names], tokens.lengths)
    assert altered.any()
    shifted = (tokens.ids + 1) % tokens.num_experts
    return replace(tokens, ids=np.where(altered[:, None, None], shifted, tokens.ids))


def test_every_study_is_listed():
    assert tuple(protocols.studies(SHARED_DATA)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_no_recorded_unit_is_on_both_sides(name, windows, esft_tokens, generations):
    for split in _splits(name, windows, esft_tokens, generations):
        assert split.fit_units
        assert split.test_units
        assert not split.fit_units & split.test_units


@pytest.mark.parametrize("name", NAMES)
def test_fit_does_not_see_what_is_held_out(name, windows, esft_tokens, generations):
    for i, split in enumerate(_splits(name, windows, esft_tokens, generations)):
        changed_test = _splits(
            name,
            _other_counts(windows, split.test_units) if "glm52" in name else windows,
            _other_ids(esft_tokens, split.test_units) if "esft" in name else esft_tokens,
            _other_ids(generations, split.test_units) if name == "gptoss" else generations,
        )[i]
        assert _same(changed_test.fit, split.fit)
        for test, trace in split.tests.items():
            assert not _same(changed_test.tests[test], trace)


@pytest.mark.parametrize("name", NAMES)
def test_score_does_not_see_what_was_planned_on(name, windows, esft_tokens, generations):
    for i, split in enumerate(_splits(name, windows, esft_tokens, generations)):
        changed_fit = _splits(
            name,
            _other_counts(windows, split.fit_units) if "glm52" in name else windows,
            _other_ids(esft_tokens, split.fit_units) if "esft" in name else esft_tokens,
            _other_ids(generations, split.fit_units) if name == "gptoss" else generations,
        )[i]
        assert not _same(changed_fit.fit, split.fit)
        for test, trace in split.tests.items():
            assert _same(changed_fit.tests[test], trace)


def test_glm52_uses_every_window_once(windows):
    split = protocols.glm52(windows)
    known = split.tests["known domains"]
    assert (split.fit.num_steps, known.num_steps) == (49, 7)
    assert (split.fit.total + known.total == windows.total).all()
    assert set(known.labels["window"]) == {"7"}


def test_mixed_glm52_batches_have_their_size(windows):
    mixed = protocols.glm52(windows).tests["mixed batches"]
    assert mixed.counts.shape == (32, 2, 256)
    assert (mixed.counts.sum(axis=2) == 8 * 4096).all()


def test_esft_windows_hold_512_tokens_each_at_most_once(esft_tokens):
    split = protocols.esft(esft_tokens)
    for trace in (split.fit, *split.tests.values()):
        assert (trace.counts.sum(axis=2) == 6 * 512).all()
    recorded = np.stack(
        [np.bincount(esft_tokens.ids[:, layer].ravel(), minlength=64) for layer in range(2)]
    )
    used = split.fit.total + split.tests["known domains"].total
    assert (used <= recorded).all()
    assert used.sum() > 0.9 * recorded.sum()  # what is lost are the last, shorter windows
    fit_tokens = len(split.fit.tokens.ids)
    assert fit_tokens / used[0].sum() * 6 == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("name", ["glm52, left out", "esft_tokens, left out"])
def test_the_domain_left_out_is_only_in_the_test(name, windows, esft_tokens, generations):
    splits = _splits(name, windows, esft_tokens, generations)
    left_out = []
    for split in splits:
        (test,) = split.tests.values()
        (domain,) = set(test.labels["domain"])
        assert domain not in split.fit.labels["domain"]
        left_out.append(domain)
    assert len(set(left_out)) == len(splits) == (7 if "glm52" in name else 3)


def test_gptoss_generations_are_split_by_benchmark(generations):
    split = protocols.gptoss(generations)
    assert (len(split.fit_units), len(split.test_units)) == (42, 18)
    of_test = [unit.rsplit(" sequence ")[0] for unit in split.test_units]
    assert sorted(map(of_test.count, set(of_test))) == [1, 1, 3, 6, 7]


def test_gptoss_steps_have_at_least_eight_active(generations):
    split = protocols.gptoss(generations)
    for trace, most in ((split.fit, 42), (split.tests["new requests"], 18)):
        active = trace.counts.sum(axis=2) / 4
        assert (active[:, 0] == active[:, 1]).all()
        assert active.min() >= 8
        assert active.max() <= most
