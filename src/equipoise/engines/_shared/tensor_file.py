"""Reading of safetensors files without copies: the header is checked, the data is mapped.

The safetensors library copies every tensor in a call of its own. Files with thousands of small
vectors, and traces larger than memory, need a view of the data instead.

Layout: 8 bytes little-endian header length, a JSON header, then the data without gaps.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.half_precision import widened
from equipoise.errors import FormatError
from equipoise.json_text import parse_json

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_AXIS = 1 << 48  # larger than any file; limits the other axes of shapes that contain a 0
HALF = {"F16": "float16", "BF16": "bfloat16"}
"""Types that are converted from their bits (``half_precision``)."""

_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "U16": "<u2",
        "I16": "<i2",
        "U32": "<u4",
        "I32": "<i4",
        "U64": "<u8",
        "I64": "<i8",
        "F16": "<u2",  # as bits, see `array`
        "BF16": "<u2",
        "F32": "<f4",
        "F64": "<f8",
    }.items()
}


class TensorInfo(msgspec.Struct, frozen=True):
    """The header entry of one tensor: type, shape, and bytes ``[begin, end)`` of the data."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """Numpy type of the stored numbers; for half precision, that of the bits."""
        return _DTYPES[self.dtype]


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A safetensors file whose header was checked.

    Parameters
    ----------
    path
        Path of the file.
    metadata
        Content of ``__metadata__``.
    tensors
        Header entries by name, in header order.
    data
        Bytes of the data section, a read-only mapping.
    data_begin
        Position of the data section in the file, in bytes.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    data: NDArray[np.uint8]
    data_begin: int

    def array(self, name: str) -> NDArray[np.generic]:
        """Return a tensor as a read-only view of the file; half precision becomes float32.

        Raises
        ------
        FormatError
            An unknown name, or half-precision numbers that may be rounded.
        """
        if name not in self.tensors:
            raise FormatError(f"{self.path} has no tensor {name[:80]!r}; it is incomplete.")
        info = self.tensors[name]
        begin, end = info.data_offsets
        values = self.data[begin:end].view(info.numpy_dtype).reshape(info.shape)
        if info.dtype not in HALF:
            return values
        try:
            return widened(values, HALF[info.dtype])
        except FormatError as error:
            raise FormatError(f"{self.path}, tensor {name[:80]!r}: {error}.") from None


def open_tensor_file(path: Path) -> TensorFile:
    """Parse and check a safetensors header, and map the data without reading it.

    Raises
    ------
    FormatError
        A file that is not a safetensors file or is cut off, or offsets that leave gaps or overlap.
    """
    with naming(path):
        size = path.stat().st_size
        raw, length = _read_header(path, size)
        metadata, tensors = _parse_header(path, raw)
        _check_offsets(path, tensors, size - 8 - length)
        return TensorFile(path, metadata, tensors, map_bytes(path)[8 + length :], 8 + length)


def map_bytes(path: Path) -> NDArray[np.uint8]:
    """Map a non-empty file read-only; it is unmapped with its last view."""
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)


def looks_like_tensor_file(path: Path) -> bool:
    """Tell by the first nine bytes whether a file may be a safetensors file."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        return False
    return len(head) == 9 and head[8:] == b"{" and _header_length(head) <= _MAX_HEADER_BYTES


def _header_length(head: bytes) -> int:
    length: int = struct.unpack("<Q", head[:8])[0]
    return length


def _read_header(path: Path, size: int) -> tuple[bytes, int]:
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise FormatError(f"{path} has {size} bytes; expected a safetensors file.")
        length = _header_length(head)
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise FormatError(
                f"{path} announces a header of {length} bytes in a file of {size}; "
                "it is cut off or not a safetensors file."
            )
        return file.read(length), length


def _parse_header(path: Path, raw: bytes) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Parse metadata and tensors, twice, because msgspec would lose one of two equal names."""
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(
            entries.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str]
        )
        decode = msgspec.json.Decoder(TensorInfo).decode
        tensors = {name: decode(entry) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path} has a damaged safetensors header: {error}.") from error
    parse_json(raw, f"{path}, safetensors header")
    return metadata, tensors


def _check_offsets(path: Path, tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    expected = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, end = info.data_offsets
        where = f"{path}: tensor {name[:80]!r}"
        if info.dtype not in _DTYPES:
            raise FormatError(f"{where} has the unusable type {info.dtype[:20]}.")
        if info.shape and not 0 <= min(info.shape) <= max(info.shape) < _MAX_AXIS:
            shape = f"{info.shape}"[:80]
            raise FormatError(f"{where} has the impossible shape {shape}.")
        size = prod(info.shape) * _DTYPES[info.dtype].itemsize
        if begin != expected or end != begin + size:
            raise FormatError(
                f"{where} claims bytes {begin} to {end}, which do not fit its "
                f"shape {info.shape} and its neighbours; the file is damaged."
            )
        expected = end
    if expected != data_bytes:
        raise FormatError(
            f"{path} holds {data_bytes} bytes of data, its header describes {expected}; "
            "it is cut off or damaged. Record or copy it again."
        )
