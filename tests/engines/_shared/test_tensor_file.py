"""Mapped safetensors files: the same values as the library reads, and sound headers only."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from equipoise.engines._shared.tensor_file import looks_like_tensor_file, open_tensor_file
from equipoise.errors import FormatError


def raw_file(path: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin: int, end: int, shape: Any = (4,), dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_every_type_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8"]
    arrays = {f"t{i}": rng.integers(0, 2, (i, 3)).astype(kind) for i, kind in enumerate(kinds)}
    save_file(arrays, tmp_path / "f", {"note": "é"})
    file = open_tensor_file(tmp_path / "f")
    assert file.metadata == {"note": "é"}
    for name, wanted in load_file(tmp_path / "f").items():
        got = file.array(name)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
        assert not got.flags.owndata
    with pytest.raises(FormatError, match="no tensor 'none'"):
        file.array("none")


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    values = np.arange(3, dtype="<i8")
    header = {"a": entry(0, 24, (3,), "I64")}
    for spaces in range(8):
        raw = json.dumps(header).encode() + b" " * spaces
        path = raw_file(tmp_path / "f", raw, values.tobytes())
        np.testing.assert_array_equal(open_tensor_file(path).array("a"), values)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{", "damaged safetensors header"),
        (b"[]", "damaged safetensors header"),
        (b"\xff{}", "damaged safetensors header"),
        (b"[" * 200_000, "damaged safetensors header"),
        ({"a": {"dtype": "U8"}}, "damaged safetensors header"),
        ({"__metadata__": {"x": 1}}, "damaged safetensors header"),
        ({"a": entry(0, 4), "b": entry(5, 9)}, "'b' claims bytes 5 to 9"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, "'b' claims bytes 2 to 6"),
        ({"a": entry(0, 4, (5,))}, "'a' claims bytes 0 to 4"),
        ({"a": entry(-4, 0)}, "'a' claims bytes -4 to 0"),
        ({"a": entry(0, 4, (-2, -2))}, "impossible shape"),
        ({"a": entry(0, 0, (0, 1 << 60))}, "impossible shape"),
        ({"a": entry(0, 1 << 62, (1 << 30, 1 << 32))}, "holds 8 bytes of data"),
        ({"a": entry(0, 8, (4,), "F8_E4M3")}, "unusable type F8_E4M3"),
        (
            b'{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, '
            b'"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}',
            "'a' appears twice",
        ),
        ({"a": entry(0, 4)}, "holds 8 bytes of data, its header describes 4"),
    ],
)
def test_unsound_headers_are_refused_with_the_file(tmp_path: Path, header: Any, said: str) -> None:
    path = raw_file(tmp_path / "f.safetensors", header, bytes(8))
    with pytest.raises(FormatError, match=said) as caught:
        open_tensor_file(path)
    assert "f.safetensors" in str(caught.value)


def test_a_huge_header_length_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert not looks_like_tensor_file(tmp_path / "f")
    with pytest.raises(FormatError, match="announces a header"):
        open_tensor_file(tmp_path / "f")
    with pytest.raises(FormatError, match="cannot be read"):
        open_tensor_file(tmp_path / "none")


@pytest.mark.parametrize(("kind", "largest"), [("BF16", 255), ("F16", 2047)])
def test_half_precision_is_read_where_whole_numbers_are_exact(
    tmp_path: Path, kind: str, largest: int
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}[kind]
    path = tmp_path / "f.safetensors"
    save_torch({"a": torch.arange(largest + 1).to(dtype)}, path)
    values = open_tensor_file(path).array("a")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.arange(largest + 1))
    save_torch({"a": torch.tensor([1, largest + 1]).to(dtype)}, path)
    with pytest.raises(FormatError, match=f"'a': it holds {largest + 1} in .*exact below"):
        open_tensor_file(path).array("a")
