"""Our server records as TensorRT-LLM does: its switches, its files, its scripts' reader."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Placement, read_trace
from equipoise.engines.formats import TraceOptions
from equipoise.engines.trtllm.statistic import PATH, RANGE, recording_asked_for, write_rank
from equipoise.engines.trtllm.table import trtllm_table
from equipoise.errors import EquipoiseError, FormatError
from equipoise.runtime.moe.slot_recorder import RankRecording, SlotRecording
from tests.engines.trtllm.test_traces import GOLDEN_SOURCE, META
from tests.reference.trtllm import load_statistic, load_statistics


def of_rank(
    rank: int, counts: np.ndarray, *, first: int = 10, layers=(3, 4), top_k: int = 2, versions=None
):
    iterations = np.arange(first, first + len(counts))
    return RankRecording(
        rank=rank,
        iterations=iterations,
        layer_ids=layers,
        counts=counts,
        map_versions=np.zeros_like(iterations) if versions is None else np.array(versions),
        top_k=top_k,
    )


def asked(folder: Path, text: str = "100-200") -> SlotRecording | None:
    return recording_asked_for({RANGE: text, PATH: str(folder)})


def test_nothing_is_recorded_unless_iterations_are_named(tmp_path):
    assert recording_asked_for({}) is None
    assert recording_asked_for({PATH: str(tmp_path / "new")}) is None
    assert list(tmp_path.iterdir()) == []


def test_the_range_and_the_folder_are_those_of_the_environment(tmp_path):
    recording = asked(tmp_path / "a" / "new", " 100-200 ")
    assert recording is not None
    assert recording.iterations == (100, 200)
    recording.write(of_rank(1, GOLDEN_SOURCE[:, 1]))
    assert [path.name for path in (tmp_path / "a" / "new").iterdir()] == ["rank1.safetensors"]


def test_the_folder_has_the_engines_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recording = recording_asked_for({RANGE: "0-1"})
    assert recording is not None
    recording.write(of_rank(3, GOLDEN_SOURCE[:, 0]))
    assert (tmp_path / "expert_statistic" / "rank3.safetensors").is_file()


@pytest.mark.parametrize(
    "text", ["", "100", "100-", "-100", "1-2-3", "200-100", "100-100", "a-b", "1.5-2", "9" * 99]
)
def test_what_is_no_range_is_refused(text, tmp_path):
    with pytest.raises(EquipoiseError, match=r"ITER_RANGE is .*; expected START-STOP with START"):
        asked(tmp_path, text)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_recording_is_refused(tmp_path):
    write_rank(tmp_path, of_rank(5, GOLDEN_SOURCE[:, 0]))
    with pytest.raises(EquipoiseError, match="holds the files of another recording; name a new"):
        asked(tmp_path)


def test_a_file_for_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EquipoiseError, match="cannot be made a folder: File exists"):
        asked(tmp_path / "file")


def test_the_files_are_the_engines_byte_for_byte(tmp_path):
    for rank in range(2):
        write_rank(tmp_path, of_rank(rank, GOLDEN_SOURCE[:, rank]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "meta_info.json",
        "rank0.safetensors",
        "rank1.safetensors",
    ]
    assert (tmp_path / "meta_info.json").read_text() == META
    for name, digest in (("rank0", "10ae57ffc7438055"), ("rank1", "f5692cca4b269e29")):
        data = (tmp_path / f"{name}.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest().startswith(digest)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.integers(0, 1000))
def test_both_readers_get_what_the_ranks_have_counted(seed, first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistic")
    rng = np.random.default_rng(seed)
    T, R, L, C = rng.integers([1, 2, 1, 2], [5, 6, 5, 6])
    source = rng.integers(1, 900, (T, R, L, R * C))
    layers = tuple((np.arange(L) * 3 + 2).tolist())
    for rank in range(R):
        write_rank(folder, of_rank(rank, source[:, rank], first=first, layers=layers))
    trace = read_trace(folder)
    np.testing.assert_array_equal(trace.source_counts, source)
    assert trace.steps.tolist() == list(range(first, first + T))
    assert (trace.layer_ids, trace.top_k) == (layers, 2)
    meta, total = load_statistic(folder)
    assert (meta["num_experts"], meta["num_experts_per_token"], meta["ep_size"]) == (R * C, 2, R)
    for t, i in np.ndindex(T, L):
        assert total[first + t, layers[i]] == source[t, :, i].sum(axis=0).tolist()
    table = trtllm_table(trace)
    for row, layer in zip(table.values, layers, strict=True):
        np.testing.assert_allclose(row, load_statistics(folder)[layer], rtol=1e-4, atol=1e-5)


def moved(folder: Path) -> np.ndarray:
    """A recording of iterations 10 to 15 on two ranks, whose map changes in 12 and 13."""
    source = np.arange(6 * 2 * 2 * 4).reshape(6, 2, 2, 4)
    for rank in range(2):
        write_rank(folder, of_rank(rank, source[:, rank], versions=[1, 1, 2, 3, 3, 3]))
    return source


def test_changes_of_the_map_are_recorded_and_read(tmp_path):
    source = moved(tmp_path)
    trace = read_trace(tmp_path)
    assert trace.labels["map"].tolist() == ["1", "1", "2", "3", "3", "3"]
    np.testing.assert_array_equal(trace.source_counts, source)
    later = read_trace(tmp_path, TraceOptions(iterations=(12, 99)))
    assert later.labels["map"].tolist() == ["2", "3", "3", "3"]
    assert load_statistic(tmp_path)[0]["ep_size"] == 2  # the engine's script passes over the file


def test_slots_of_several_maps_are_not_folded_with_one(tmp_path):
    moved(tmp_path)
    placement = Placement([[0, 1, 2, 0]] * 2, num_ranks=2, num_experts=3, layer_ids=(3, 4))
    with pytest.raises(FormatError, match="the map changed in iteration 12, and one map cannot"):
        read_trace(tmp_path, TraceOptions(placement=placement))
    folded = read_trace(tmp_path, TraceOptions(placement=placement, iterations=(13, 16)))
    assert folded.num_experts == 3
    assert folded.labels["map"].tolist() == ["3", "3", "3"]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1, 2]", '{"a": 1}', '{"5": 1, "4": 2}', '{"4": 2, "5": 2}', '{"4": -1}',
     '{"1": 1e99}', '{"99999999999999999999999": 1}'],
)  # fmt: skip
def test_damaged_changes_of_the_map_are_refused(tmp_path, text):
    moved(tmp_path)
    (tmp_path / "map_changes.json").write_text(text)
    with pytest.raises(FormatError, match=r"map_changes\.json is damaged.*expected iterations"):
        read_trace(tmp_path)
