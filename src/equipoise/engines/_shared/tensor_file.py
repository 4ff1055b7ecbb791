"""Safetensors files without copies: the header parsed and checked, the data mapped.

The safetensors library copies every tensor and reads them one call each; a dump of 5,800 small
vectors a file, or a trace larger than memory, wants a view of the data instead.

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
_MAX_AXIS = 1 << 48  # beyond any file; keeps shapes with a 0 in them harmless
HALF = {"F16": "float16", "BF16": "bfloat16"}
"""Types whose numbers have to be made of their bits (``half_precision``)."""

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
    """The header's entry of one tensor: type, shape, and bytes ``[begin, end)`` of the data."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The type as numpy names it; half precision has the bits only."""
        return _DTYPES[self.dtype]


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A safetensors file whose header is sound.

    Parameters
    ----------
    path
        The file.
    metadata
        Its ``__metadata__``.
    tensors
        Header entries by name, in header order.
    data
        The data section, a read-only mapping of bytes.
    data_begin
        Where it begins in the file, in bytes.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    data: NDArray[np.uint8]
    data_begin: int

    def array(self, name: str) -> NDArray[np.generic]:
        """A tensor as a read-only view of the file, half precision as float32.

        Raises
        ------
        FormatError
            There is none, or it holds numbers that half precision rounds.
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
    """Parse and check a safetensors header, and map the data; nothing else is read.

    Raises
    ------
    FormatError
        Not a safetensors file, cut off, or offsets that do not tile the data section.
    """
    with naming(path):
        size = path.stat().st_size
        raw, length = _read_header(path, size)
        metadata, tensors = _parse_header(path, raw)
        _check_offsets(path, tensors, size - 8 - length)
        return TensorFile(path, metadata, tensors, map_bytes(path)[8 + length :], 8 + length)


def map_bytes(path: Path) -> NDArray[np.uint8]:
    """A file that is not empty as a read-only mapping; unmapped with its last view."""
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)


def looks_like_tensor_file(path: Path) -> bool:
    """Whether the first bytes could open a safetensors file; reads nine of them."""
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
    """Metadata and tensors; parsed twice, since msgspec would lose one of two equal names."""
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
