"""The native trace file: what is written is read, views stay in the file, damage is named."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.native.traces import FORMAT
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, TokenIds, Trace


def read(path: Path) -> Trace:
    return FORMAT.read(path, TraceOptions(), no_progress)


def write(trace: Trace, path: Path) -> None:
    assert FORMAT.write is not None
    FORMAT.write(trace, path)


def full_trace(seed: int = 0, steps: int = 4, top: int = 300) -> Trace:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, top, (steps, 3, 2, 5))
    ids = rng.integers(-1, 5, (7 * steps, 2, 2))
    return Trace(
        counts=source.sum(axis=1),
        layer_ids=(3, 7),
        step_ids=np.arange(steps) * 10 + 5,
        top_k=2,
        source_counts=source,
        tokens=TokenIds(ids, np.arange(steps + 1) * 7),
        labels={"phase": np.array(["décode", "prefill"] * steps)[:steps]},
        provenance=Provenance("trtllm", "dump/", ("a note",)),
    )


def assert_equal(got: Trace, wanted: Trace) -> None:
    np.testing.assert_array_equal(got.counts, wanted.counts)
    np.testing.assert_array_equal(got.steps, wanted.steps)
    assert (got.layer_ids, got.top_k) == (wanted.layer_ids, wanted.top_k)
    assert got.provenance == wanted.provenance
    assert got.labels.keys() == wanted.labels.keys()
    for name in wanted.labels:
        assert got.labels[name].tolist() == wanted.labels[name].tolist()
    assert (got.source_counts is None) == (wanted.source_counts is None)
    if wanted.source_counts is not None:
        np.testing.assert_array_equal(got.source_counts, wanted.source_counts)
    assert (got.tokens is None) == (wanted.tokens is None)
    if wanted.tokens is not None and got.tokens is not None:
        np.testing.assert_array_equal(got.tokens.ids, wanted.tokens.ids)
        np.testing.assert_array_equal(got.tokens.offsets, wanted.tokens.offsets)


def patch_header(path: Path, change: dict[str, str]) -> None:
    """Rewrite some of the metadata, leaving the data as it is."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"].update(change)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 5),
    top=st.sampled_from([2, 200, 60_000, 1 << 31, 1 << 40]),
)
def test_a_trace_survives_the_round_trip(tmp_path: Path, seed: int, steps: int, top: int) -> None:
    trace = full_trace(seed, steps, top)
    write(trace, tmp_path / "t.trace")
    assert FORMAT.matches(tmp_path / "t.trace")
    assert_equal(read(tmp_path / "t.trace"), trace)


def test_a_minimal_trace_survives(tmp_path: Path) -> None:
    trace = Trace(counts=np.array([[[1, 0]]]), provenance=Provenance("array", str(tmp_path / "t")))
    write(trace, tmp_path / "t")
    assert_equal(read(tmp_path / "t"), trace)


@pytest.mark.parametrize(
    ("top", "stored"), [(255, "U8"), (256, "U16"), (65_536, "U32"), (1 << 32, "I64")]
)
def test_counts_are_stored_in_the_smallest_type(tmp_path: Path, top: int, stored: str) -> None:
    write(Trace(counts=np.array([[[top, 0]]])), tmp_path / "t")
    with safe_open(tmp_path / "t", framework="numpy") as file:
        assert file.get_slice("counts").get_dtype() == stored
        assert file.metadata()["format"] == "equipoise.trace"


def test_arrays_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    write(full_trace(), tmp_path / "t")
    trace = read(tmp_path / "t")
    assert trace.tokens is not None
    assert trace.source_counts is not None
    for array in (trace.counts, trace.source_counts, trace.tokens.ids):
        assert not array.flags.writeable
        assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        trace.counts[0] = 1


def test_a_large_file_opens_without_being_read(tmp_path: Path) -> None:
    save_trace_of_zeros(tmp_path / "t", steps=50_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace = read(tmp_path / "t")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert trace.counts.nbytes > 700 << 20
    assert grown < 50 << 10  # KiB


def save_trace_of_zeros(path: Path, steps: int) -> None:
    """A sparse file of the native layout: large to the reader, small on disk."""
    write(Trace(counts=np.ones((1, 58, 256), np.uint8)), path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    size = steps * 58 * 256
    header["counts"] = {
        "dtype": "U8",
        "shape": [steps, 58, 256],
        "data_offsets": [steps * 8, steps * 8 + size],
    }
    header["step_ids"] = {"dtype": "I64", "shape": [steps], "data_offsets": [0, steps * 8]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + steps * 8 + size)


def test_a_newer_version_is_refused_with_advice(tmp_path: Path) -> None:
    write(full_trace(), tmp_path / "t")
    patch_header(tmp_path / "t", {"version": "2"})
    assert FORMAT.matches(tmp_path / "t")
    with pytest.raises(FormatError, match=r"t has version 2.*Upgrade"):
        read(tmp_path / "t")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "new"}, "states version 'new'"),
        ({"version": "9" * 5000}, "states version"),
        ({"format": "other"}, "without the mark"),
        ({"trace": "{"}, "damaged trace header"),
        ({"trace": "[" * 100_000}, "damaged trace header"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, change: dict[str, str], said: str) -> None:
    write(full_trace(), tmp_path / "t")
    patch_header(tmp_path / "t", change)
    with pytest.raises(FormatError, match=said):
        read(tmp_path / "t")


def test_every_truncation_is_a_format_error(tmp_path: Path) -> None:
    write(full_trace(), tmp_path / "t")
    data = (tmp_path / "t").read_bytes()
    for end in (0, 5, 8, 9, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(FormatError, match="cut"):
            read(tmp_path / "cut")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 900), value=st.integers(0, 255))
def test_a_flipped_byte_never_escapes_as_another_error(
    tmp_path: Path, position: int, value: int
) -> None:
    write(full_trace(), tmp_path / "t")
    data = bytearray((tmp_path / "t").read_bytes())
    data[position] = value
    (tmp_path / "t").write_bytes(data)
    FORMAT.matches(tmp_path / "t")
    message = failure(tmp_path / "t")
    assert message is None or str(tmp_path / "t") in message


def failure(path: Path) -> str | None:
    """What reading a file complains about."""
    try:
        read(path)
    except EquipoiseError as error:
        return str(error)
    return None


def test_token_offsets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(full_trace(), tmp_path / "t")
    with safe_open(tmp_path / "t", framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["token_offsets"] = tensors["token_offsets"][::-1].copy()
    save_file(tensors, tmp_path / "t", metadata)
    with pytest.raises(FormatError, match="token_offsets do not rise"):
        read(tmp_path / "t")


def test_writing_into_a_missing_directory_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EquipoiseError, match="there is no folder"):
        write(full_trace(), tmp_path / "none" / "t")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"counts": 1}')
    save_file({"counts": np.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    assert not any(FORMAT.matches(path) for path in tmp_path.iterdir())
    assert not FORMAT.matches(tmp_path)
    assert not FORMAT.matches(tmp_path / "missing")


def test_what_was_in_no_file_is_called_by_its_first_one(tmp_path):
    trace = Trace(counts=np.ones((2, 1, 4), np.int64))
    assert trace.provenance.source == "memory"
    write(trace, tmp_path / "first")
    first = read(tmp_path / "first")
    assert first.provenance.source == str(tmp_path / "first")
    write(first, tmp_path / "second")
    assert read(tmp_path / "second").provenance == first.provenance
