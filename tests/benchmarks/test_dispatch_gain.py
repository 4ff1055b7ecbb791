from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality import dispatch_gain, protocols
from benchmarks.quality.engine_rules import RULES, Study
from equipoise.noise import noise_floor
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.conftest import SHARED_DATA

FOLLOWING = ("minmax, sources unknown", "minmax", "fewest", "time", "auto")


@pytest.fixture(scope="module")
def study() -> Study:
    """Two layers of 16 experts, the low ones hot, on 8 ranks with 3 slots each."""
    rng = np.random.default_rng(0)
    loads = rng.multinomial(2 * 64, np.arange(16, 0, -1) / 136, (6, 2))
    tokens = [dispatch_gain.tokens_with(load, 2, rng) for load in loads[4:]]
    batches = {"64": [np.array_split(ids, 8) for ids in tokens]}
    return Study("tiny", Trace(counts=loads[:4]), batches, 2, Topology(8, 4), 24)


@pytest.fixture(scope="module")
def cells(study) -> list[dispatch_gain.Cell]:
    return list(dispatch_gain.measure(study, 1000))


def test_tokens_add_up_to_the_load_without_repeating_an_expert():
    rng = np.random.default_rng(0)
    load = np.array([[5, 0, 3, 4, 3], [1, 5, 2, 4, 3]])
    ids = dispatch_gain.tokens_with(load, 3, rng)
    assert ids.shape == (5, 2, 3)
    for layer in range(2):
        assert np.bincount(ids[:, layer].ravel(), minlength=5).tolist() == load[layer].tolist()
    assert (np.diff(np.sort(ids, axis=2)) > 0).all()
    assert not np.array_equal(ids, dispatch_gain.tokens_with(load, 3, rng))


def test_numbers_by_hand():
    """Two slots a rank; rank 0 sends 3 to itself, 1 to its node and 4 elsewhere."""
    served = np.zeros((1, 8, 16), int)
    served[0, 0, [0, 1, 2, 15]] = [2, 1, 1, 4]
    found = dispatch_gain.numbers(served, Topology(8, 4))
    assert found[0] == 4.0
    assert found[1] == pytest.approx(21.3 + 2 * 16.04)
    assert found[2:] == (3 / 8, 4 / 8)
    assert dispatch_gain.numbers(served.sum(axis=1), Topology(8, 4)) == found[:2]


def test_every_dispatcher_has_a_cell_on_either_placement(cells):
    names = ["even, in fractions", "even", "nearest", *RULES, "minmax, in fractions", *FOLLOWING]
    for placement in ("DeepSeek", "Robust"):
        assert [c.dispatch for c in cells if c.placement == placement] == names


def test_dispatchers_are_ordered_as_they_must_be(cells):
    for placement in ("DeepSeek", "Robust"):
        of = {c.dispatch: c for c in cells if c.placement == placement}
        assert of["minmax, in fractions"].imbalance < of["minmax"].imbalance
        assert of["minmax"].imbalance == of["minmax, sources unknown"].imbalance
        whole = [of[name] for name in of if "fractions" not in name]
        same_plan = whole if placement == "DeepSeek" else [of[name] for name in FOLLOWING]
        assert min(c.imbalance for c in same_plan) == of["minmax"].imbalance
        assert min(c.microseconds for c in same_plan) == of["auto"].microseconds
        blind = [of[name] for name in ("even", "nearest", *RULES)]
        assert max(c.on_rank for c in blind) == of["nearest"].on_rank
        assert max(c.on_node for c in blind) == of["nearest"].on_node


def test_only_cells_below_the_floor_are_bold(study, cells):
    floor = noise_floor(64, 16, 2, 8).mean
    text = dispatch_gain.markdown(cells).split("\n\n**")[0]
    assert text.startswith("**tiny, imbalance**")
    assert f"| noise floor | {floor:.3f} |" in text
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if "/" in line]
    bold = 0
    for name, both in lines:
        found = [c.imbalance for c in cells if c.dispatch == name]
        for shown, value in zip(both.split(" / "), found, strict=True):
            assert shown == (f"**{value:.3f}**" if value < floor else f"{value:.3f}")
            bold += value < floor
    assert 0 < bold < 2 * len(lines)


def test_a_thin_study_has_the_same_layers_everywhere(study):
    thin = dispatch_gain.thin(study, 1)
    assert thin.fit.layer_ids == (0,)
    for all_layers, one in zip(study.batches["64"][0], thin.batches["64"][0], strict=True):
        assert np.array_equal(one, all_layers[:, :1])


@pytest.mark.shared_data
def test_batches_are_held_out_and_of_their_size(monkeypatch):
    windows = protocols.read_glm52(SHARED_DATA)
    windows = windows.select(layers=windows.layer_ids[:2])
    monkeypatch.setattr(protocols, "read_glm52", lambda data: windows)
    study = dispatch_gain.glm52(SHARED_DATA, 32)
    held = protocols.glm52(windows).tests["known domains"].counts
    assert study.fit.num_steps == 49
    for batch, counts in zip(study.batches["window"], held, strict=True):
        ids = np.concatenate(batch)[:, 0]
        assert np.array_equal(np.bincount(ids.ravel(), minlength=256), counts[0])
    sizes = {k: {sum(map(len, b)) for b in of_kind} for k, of_kind in study.batches.items()}
    window = set((held[:, 0].sum(axis=1) // 8).tolist())
    assert sizes == {"window": window, "1,024": {1024}, "4,096": {4096}, "mixed 4,096": {4096}}
    assert {len(study.batches[kind]) for kind in list(sizes)[1:]} == {14}


@pytest.mark.shared_data
def test_recorded_tokens_keep_their_choices():
    held = protocols.esft(protocols.read_esft(SHARED_DATA)).tests["known domains"].tokens.ids
    known = {ids.tobytes() for ids in held}
    study = dispatch_gain.esft(SHARED_DATA)
    assert list(study.batches) == ["64", "256", "1,024", "4,096"]
    for size, batches in study.batches.items():
        assert {len(ids) for batch in batches for ids in batch} == {int(size.replace(",", "")) // 8}
    first = np.concatenate(study.batches["64"][0]).astype(np.uint8)
    assert {ids.tobytes() for ids in first} <= known
    decode = dispatch_gain.gptoss(SHARED_DATA)
    assert all(8 <= sum(map(len, batch)) <= 18 for batch in decode.batches["decode"])
