"""Every format of a recording: planted violations of what is true of routing are never silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError
from tests.cli import samples

TOKENS = 120  # of a step and source rank, so that nothing is left to chance
WITH_SOURCES = {
    *("run.safetensors", "dump", "raw", "pickles", "passes", "rank_tables", "router_traces"),
}
OF_REQUESTS = {
    *("choices.npz", "answers.json", "sglang.jsonl", "stream.txt", "tensors.json"),
    *("routing.npz", "routes.jsonl", "tokens.csv"),
}
WITH_DENSE = {
    *("stat.pt", "stat.json", "passes", "answers.json", "sglang.jsonl", "stream.txt"),
    "routing.npz",
}
FROM_CHOICES = {"raw", "router_traces", *OF_REQUESTS}
STATED_EXPERTS = set(samples.TRACES) - FROM_CHOICES - {"passes"}


def choices(seed: int = 3, experts: int = 4) -> np.ndarray:
    """Different choices ``(steps, source ranks, tokens, layers, choices)``."""
    random = np.random.default_rng(seed)
    return random.random((4, 2, TOKENS, 2, experts)).argsort(axis=-1)[..., :2]


def read(
    name: str, planted: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch, **options
) -> eq.Trace:
    """The sample of that name, recorded of the planted choices."""
    if name == "pickles":
        pytest.importorskip("torch")
        options["allow_pickle"] = True
    if name == "sglang.jsonl":
        options["top_k"] = 2
    sources = samples._count(planted)
    monkeypatch.setattr(samples, "CHOICES", planted)
    monkeypatch.setattr(samples, "SOURCE_COUNTS", sources)
    monkeypatch.setattr(samples, "COUNTS", sources.sum(axis=1))
    return eq.read_trace(samples.write_sample(folder, name), TraceOptions(**options))


def answer(read: Callable[[], eq.Trace]) -> tuple[eq.Trace | None, str]:
    """The trace and its notes, or the refusal."""
    try:
        trace = read()
    except EquipoiseError as error:
        return None, str(error)
    return trace, " ".join(trace.provenance.notes)


every_format = pytest.mark.parametrize("name", samples.TRACES)


@every_format
def test_sound_routing_raises_no_doubt(name, tmp_path, monkeypatch):
    trace = read(name, choices(), tmp_path, monkeypatch)
    doubts = (
        "never chosen",
        "all route the same tokens",
        "dense and left out",
        "more than one",
        "counted once",
    )
    said = [note for note in trace.provenance.notes if any(doubt in note for doubt in doubts)]
    assert len(said) == (name in WITH_DENSE)
    assert all("ayers 0-2" in note for note in said)
    assert trace.num_experts == 4


@every_format
def test_a_layer_without_choices_is_left_out_with_a_note(name, tmp_path, monkeypatch):
    planted = choices()
    planted[..., 0, :] = -1 if name not in FROM_CHOICES else 0
    if name == "run.safetensors":  # written by us, from a recording that was checked
        return
    trace, said = answer(lambda: read(name, planted, tmp_path, monkeypatch))
    assert trace is not None, said
    assert trace.num_layers == 1
    assert "left out" in said


@every_format
def test_a_layer_counted_twice_is_said(name, tmp_path, monkeypatch):
    planted = choices()
    planted[:, :, TOKENS // 2 :, 0] = -1 if name not in FROM_CHOICES else 0
    trace, said = answer(lambda: read(name, planted, tmp_path, monkeypatch))
    assert trace is not None, said
    if name in OF_REQUESTS:
        assert "choices of a token in a layer are missing" in said
    else:
        assert "route the same tokens" in said


@every_format
def test_an_expert_that_nobody_chooses_is_said(name, tmp_path, monkeypatch):
    planted = np.array([0, 2, 3])[choices(experts=3)]
    trace, said = answer(lambda: read(name, planted, tmp_path, monkeypatch))
    assert trace is not None, said
    assert "Experts 1 were never chosen in any layer" in said


@every_format
def test_padded_experts_get_no_slot(name, tmp_path, monkeypatch):
    trace, said = answer(lambda: read(name, choices(experts=3), tmp_path, monkeypatch))
    assert trace is not None, said
    if name == "run.safetensors":
        assert "Experts 3 were never chosen in any layer" in said
        return
    assert trace.num_experts == 3
    assert "Experts 3 were never chosen" in said or "3 is the largest id seen plus one" in said


@every_format
def test_a_layer_with_fewer_experts_is_refused(name, tmp_path, monkeypatch):
    planted = choices()
    planted[..., 1, :] = choices(experts=2)[..., 1, :]
    if name == "run.safetensors":
        return
    trace, said = answer(lambda: read(name, planted, tmp_path, monkeypatch))
    assert trace is None
    assert "never chose the experts 2-3, which other layers use" in said


@pytest.mark.parametrize("name", sorted(WITH_SOURCES))
@pytest.mark.parametrize("ties", [0, 1])
def test_ranks_that_saw_the_same_tokens_are_counted_once(name, ties, tmp_path, monkeypatch):
    planted = choices()
    planted[:, 1] = planted[:, 0]
    for token in range(ties):
        chosen = planted[0, 1, token, 0]
        chosen[0] = np.setdiff1d(np.arange(4), chosen)[0]
    trace, said = answer(lambda: read(name, planted, tmp_path, monkeypatch))
    assert trace is not None, said
    assert trace.counts[0, 0].sum() == 2 * TOKENS
    assert trace.source_counts is None
    assert "counted once" in said


@pytest.mark.parametrize("name", ["raw", "choices.npz", "passes", "answers.json"])
def test_a_token_that_names_an_expert_twice_is_refused(name, tmp_path, monkeypatch):
    planted = np.concatenate([choices(), choices(4)[..., :1]], axis=-1)
    planted[..., 2] = planted[..., 0]
    trace, said = answer(lambda: read(name, planted, tmp_path, monkeypatch))
    assert trace is None
    assert "twice in layer row" in said


@pytest.mark.parametrize("name", ["dump", "raw", "counts.npz"])
def test_more_choices_than_experts_are_refused(name, tmp_path, monkeypatch):
    folder = samples.write_sample(tmp_path, name)
    if name == "counts.npz":
        np.savez(folder, counts=samples.COUNTS, top_k=np.array(5))
    else:
        (folder / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 5}')
    with pytest.raises(EquipoiseError, match="top_k is 5 with 4 experts"):
        eq.read_trace(folder)


@every_format
def test_layers_and_experts_are_fitted_in_every_format(name, tmp_path, monkeypatch):
    own_numbers = ("stat.pt", "stat.json", "passes", "hotness.json")
    layers = {} if name in own_numbers else {"layer_ids": (3, 4)}
    known = read(name, choices(), tmp_path, monkeypatch, **layers)
    (tmp_path / "again").mkdir()
    stated = known.layer_ids == (3, 4) and name in (
        *("run.safetensors", "dump", "raw", "pickles", "table.csv", "table.json", "counts.npz"),
    )
    more = {"layer_ids": (3, 4, 61)} if stated else layers
    trace = read(name, choices(), tmp_path / "again", monkeypatch, num_experts=6, **more)
    assert trace.num_experts == 6
    np.testing.assert_array_equal(trace.counts[:, :2, :4], known.counts)
    assert not trace.counts[:, :, 4:].any()
    if stated:
        assert trace.layer_ids == (3, 4, 61)
        assert "added without load" in " ".join(trace.provenance.notes)


def test_experts_without_weights_are_dropped_only_when_asked(tmp_path):
    path = tmp_path / "longcat.npz"
    np.savez(path, counts=np.full((3, 2, 6), 40))
    with pytest.raises(EquipoiseError, match=r"Experts 4-5 have 480 assignments.*0-3"):
        eq.read_trace(path, TraceOptions(num_experts=4))
    trace = eq.read_trace(path, TraceOptions(num_experts=4, drop_experts=True))
    assert trace.num_experts == 4
    assert "33.3% of all assignments" in " ".join(trace.provenance.notes)
