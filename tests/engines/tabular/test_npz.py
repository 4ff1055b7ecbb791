"""NumPy archives: every convention, and nothing allocated on the word of a hostile header."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.tabular.npz import FORMAT
from equipoise.engines.trace_io import read_trace
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Trace


def read(path: Path, **options: Any) -> Trace:
    chosen = TraceOptions(**options)
    FORMAT.check_options(chosen)
    return FORMAT.read(path, chosen, no_progress)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


IDS = np.array([[[0, 1]], [[1, 2]], [[2, 0]], [[1, 0]], [[2, 1]]])  # 5 tokens, 1 layer, top-2


def test_leading_axes_become_steps_labelled_by_domain(tmp_path: Path) -> None:
    counts = np.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    path = save(
        tmp_path / "a.npz",
        counts=counts,
        domains=["code", "math"],
        layers=[3, 5],
        top_k=8,
        extra=1,
    )
    assert FORMAT.matches(path)
    trace = read(path)
    np.testing.assert_array_equal(trace.counts, counts.reshape(6, 2, 4))
    assert trace.labels["domain"].tolist() == ["code"] * 3 + ["math"] * 3
    assert (trace.layer_ids, trace.top_k) == ((3, 5), 8)
    assert trace.provenance.notes == ("Arrays not used: extra.",)


def test_top_k_follows_from_the_number_of_active_sequences(tmp_path: Path) -> None:
    counts = np.array([[[3, 1]], [[2, 0]]])
    trace = read(save(tmp_path / "a.npz", counts=counts, active_seqs=[2, 1]))
    assert trace.top_k == 2
    assert trace.provenance.notes == ("top_k 2 follows from counts and active_seqs.",)


def test_counts_that_contradict_the_stated_top_k_are_noted(tmp_path: Path) -> None:
    counts = np.array([[[3, 1]], [[2, 1]]])
    trace = read(save(tmp_path / "a.npz", counts=counts, tokens=[2, 1], top_k=2))
    assert trace.top_k == 2
    assert "do not add up to top_k 2" in trace.provenance.notes[0]


def test_named_choices_become_a_step_a_sequence(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.npz",
        law_topk_ids=IDS.astype(np.uint8),
        law_seq_lens=[3, 2],
        math_topk_ids=IDS[:2],
        math_seq_lens=[2],
    )
    trace = read(path, num_experts=4)
    assert trace.counts[:, 0].tolist() == [[2, 2, 2, 0], [1, 2, 1, 0], [1, 2, 1, 0]]
    assert trace.labels["domain"].tolist() == ["law", "law", "math"]
    assert trace.top_k == 2
    assert trace.tokens is not None
    assert trace.tokens.offsets.tolist() == [0, 3, 5, 7]


def test_windows_never_mix_names_and_a_short_last_one_is_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", a_topk_ids=IDS, b_topk_ids=IDS[:2])
    trace = read(path, window_tokens=2)
    assert trace.counts.sum(axis=(1, 2)).tolist() == [4, 4, 2, 4]
    assert trace.labels["domain"].tolist() == ["a", "a", "a", "b"]
    assert trace.provenance.notes == (
        "The file does not state the number of experts; 3 is the largest id seen plus one.",
        "Last windows shorter than 2 tokens were kept: 1 of a.",
    )


def test_sequences_are_ordered_by_their_label(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.npz", topk_ids=IDS, seq_lens=[1, 3, 1], dataset=["x", "y", "x"], row=[1, 2, 3]
    )
    trace = read(path)
    assert trace.labels["domain"].tolist() == ["x", "x", "y"]
    assert trace.tokens is not None
    np.testing.assert_array_equal(trace.tokens.ids, IDS[[0, 4, 1, 2, 3]])
    windows = read(path, window_tokens=2)
    assert windows.labels["domain"].tolist() == ["x", "y", "y"]


def test_negative_ids_mark_no_choice(tmp_path: Path) -> None:
    ids = np.array([[[0, -1]], [[1, 0]]])
    trace = read(save(tmp_path / "a.npz", topk_ids=ids, seq_lens=[2]))
    assert trace.counts.tolist() == [[[2, 1]]]


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"counts": np.ones((2, 2))}, {"window_tokens": 5}, "holds counts, not tokens"),
        ({"counts": np.ones((2, 2)), "layers": [1]}, {}, "1 layer ids for 2 layers"),
        ({"counts": np.ones((2, 2)), "layers": [2, 1]}, {}, "ascending"),
        ({"counts": np.ones(3)}, {}, r"shape \(3,\)"),
        ({"counts": np.full((1, 2), 0.5)}, {}, "fractions"),
        ({"counts": np.full((1, 2), np.nan)}, {}, "NaN"),
        ({"counts": np.full((1, 2), -1)}, {}, "has count -1"),
        ({"counts": np.array([["a"]])}, {}, "type <U1"),
        ({"counts": np.ones((2, 2, 2)), "domains": ["a"]}, {}, "domains has 1 names"),
        ({"counts": np.ones((2, 2, 2)), "domains": [1, 2]}, {}, "expected a list of strings"),
        ({"counts": np.ones((2, 2, 2)), "tokens": [1]}, {}, "tokens has shape"),
        ({"counts": np.ones((2, 2, 2)), "top_k": [1, 2]}, {}, "top_k has shape"),
        ({"topk_ids": IDS}, {}, "give window_tokens"),
        ({"topk_ids": IDS}, {"window_tokens": 0}, "expected at least 1"),
        ({"topk_ids": IDS, "seq_lens": [4]}, {}, "adds up to 4 tokens"),
        ({"topk_ids": IDS, "seq_lens": [6, -1]}, {}, "non-negative"),
        ({"topk_ids": IDS, "seq_lens": [5]}, {"num_experts": 2}, "Expert 2 occurs"),
        ({"topk_ids": IDS * 10**9, "seq_lens": [5]}, {}, "at most 65536 are read"),
        ({"topk_ids": IDS[0], "seq_lens": [5]}, {}, "expected whole numbers with 3 axes"),
        ({"topk_ids": IDS * 0.5, "seq_lens": [5]}, {}, "type float64"),
        ({"topk_ids": IDS, "seq_lens": [5], "domain": ["a", "b"]}, {}, "labels 2 sequences"),
        ({"topk_ids": IDS, "a_topk_ids": IDS}, {}, "expected counts, or"),
        ({"a_topk_ids": IDS, "b_topk_ids": np.ones((1, 2, 2), int)}, {"window_tokens": 1}, "same"),
        ({"other": IDS}, {}, "expected counts, or"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_file_name(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    path = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(FormatError, match=said) as caught:
        read(path, **options)
    assert "a.npz" in str(caught.value)


def npz_with_header(path: Path, header: str, data: bytes) -> Path:
    """An archive whose array ``counts`` has this header, whatever its data."""
    raw = header.encode().ljust(118) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("counts.npy", npy)
    return path


def test_a_shape_larger_than_the_stored_data_is_refused_before_allocating(tmp_path: Path) -> None:
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 8), }"
    path = npz_with_header(tmp_path / "a.npz", header, b"\0" * 64)
    with pytest.raises(FormatError, match="but 64 are stored"):
        read(path)


def test_a_shape_that_overflows_is_refused(tmp_path: Path) -> None:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**62}, 4), }}"
    path = npz_with_header(tmp_path / "a.npz", header, b"")
    with pytest.raises(FormatError, match="it is damaged"):
        read(path)


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipoise.engines.tabular.npy.MAX_BYTES", 1 << 20)
    path = save(tmp_path / "a.npz", counts=np.zeros((1 << 10, 1 << 8), np.int64))
    assert path.stat().st_size < 1 << 14
    with pytest.raises(FormatError, match="unpacks to"):
        read(path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, counts=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="Python objects"):
        read(path)


def test_damage_is_a_format_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, counts=np.ones((2, 3), int))
    data = buffer.getvalue()
    for end in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "a.npz").write_bytes(data[:end])
        with pytest.raises(FormatError, match=r"a\.npz"):
            read(tmp_path / "a.npz")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_flipped_byte_never_escapes_as_another_error(
    tmp_path: Path, position: int, value: int
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, counts=np.arange(12).reshape(3, 4), top_k=2)
    data = bytearray(buffer.getvalue())
    data[position % len(data)] = value
    (tmp_path / "a.npz").write_bytes(data)
    FORMAT.matches(tmp_path / "a.npz")
    assert "a.npz" in outcome(tmp_path / "a.npz")


def outcome(path: Path) -> str:
    """What reading a file says."""
    try:
        return repr(read(path))
    except EquipoiseError as error:
        return str(error)


def test_a_directory_with_one_recording_is_read_and_with_two_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("words")
    assert not FORMAT.matches(tmp_path)
    with pytest.raises(FormatError, match="holds 0 archives"):
        read(tmp_path)
    save(tmp_path / "other.npz", weights=[1])
    save(tmp_path / "b.npz", counts=np.ones((2, 3), int))
    assert FORMAT.matches(tmp_path)
    assert read(tmp_path).num_experts == 3
    save(tmp_path / "a.npz", topk_ids=IDS)
    assert FORMAT.matches(tmp_path)
    with pytest.raises(FormatError, match=r"a\.npz, b\.npz\); name one"):
        read(tmp_path)


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    assert not FORMAT.matches(tmp_path / "none.npz")
    with pytest.raises(FormatError, match="cannot be read"):
        read(tmp_path / "none.npz")


@pytest.mark.shared_data
def test_glm52_is_56_steps_of_seven_domains(shared_data: Path) -> None:
    trace = read(shared_data / "glm52")
    assert trace.counts.shape == (56, 75, 256)
    assert trace.layer_ids == tuple(range(3, 78))
    assert trace.top_k == 8
    assert list(dict.fromkeys(trace.labels["domain"].tolist())) == (
        ["code_raw", "math", "science", "reasoning", "chat", "web", "wiki"]
    )
    with np.load(shared_data / "glm52" / "windows.npz") as archive:
        np.testing.assert_array_equal(trace.counts[8], archive["counts"][1, 0])
    assert trace.provenance.notes == ()


@pytest.mark.shared_data
def test_esft_tokens_are_one_step_a_sequence(shared_data: Path) -> None:
    trace = read(shared_data / "esft_tokens" / "topk_ids.npz", layer_ids=tuple(range(1, 27)))
    assert trace.counts.shape == (173, 26, 64)
    assert trace.layer_ids[0] == 1
    domains = trace.labels["domain"].tolist()
    assert [domains.count(n) for n in ("intent", "law", "summary")] == [127, 33, 13]
    assert (trace.total.sum(axis=1) == 6 * 25_028).all()


@pytest.mark.shared_data
def test_gptoss_tokens_and_steps(shared_data: Path) -> None:
    tokens = read(shared_data / "gptoss_decode_sample" / "topk_ids.npz", num_experts=32)
    assert tokens.counts.shape == (60, 24, 32)
    assert (tokens.total.sum(axis=1) == 4 * 17_228).all()
    assert set(tokens.labels) == {"domain"}
    steps = read(shared_data / "gptoss_decode_sample" / "step_counts.npz")
    assert steps.counts.shape == (511, 24, 32)
    assert steps.top_k == 4
    np.testing.assert_array_equal(steps.total, tokens.total)
    with pytest.raises(FormatError, match=r"step_counts\.npz, topk_ids\.npz"):
        read(shared_data / "gptoss_decode_sample")


def one_layer(tokens: int = 80) -> np.ndarray:
    """Different choices of one layer, ``(tokens, 2)``; an empty row ends each of four requests."""
    ids = np.random.default_rng(2).random((tokens, 6)).argsort(axis=1)[:, :2]
    ids[tokens // 4 - 1 :: tokens // 4] = 0
    return ids


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_one_array_of_one_layer_is_read_as_choices(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    ids = one_layer()
    np.savez(path, routes=ids) if suffix == "npz" else np.save(path, ids)
    trace = read_trace(path)
    assert (trace.num_steps, trace.num_layers, trace.top_k) == (4, 1, 2)
    np.testing.assert_array_equal(trace.tokens.ids[:19, 0], ids[:19])
    assert "was read as choices (tokens, top_k) of one layer" in trace.provenance.notes[0]
    windows = read_trace(path, TraceOptions(window_tokens=10, layer_ids=(7,)))
    assert (windows.num_steps, windows.layer_ids) == (8, (7,))


def test_one_array_that_may_be_something_else_is_not_recognised(tmp_path):
    path = tmp_path / "a.npz"
    for arrays in (
        {"weights": np.random.default_rng(0).random((80, 2))},
        {"words": np.array([["a", "b"]] * 80)},
        {"none": np.zeros((0, 2), int)},
        {"routes": one_layer(), "other": np.arange(3)},
    ):
        np.savez(path, **arrays)
        with pytest.raises(FormatError, match="known format"):
            read_trace(path)
