"""First-era TensorRT-LLM dumps: pickles of ``{(iteration, layer): tensor}``, read without torch.

A pickle is a program. This reader first goes through it and refuses every instruction that dicts
of tensors do not need. The pickle can then call three harmless things only: an ordered dict, and
our own replacements of the two functions with which torch rebuilds a tensor.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.pickle_program import checked_instructions
from equipoise.errors import FormatError

_STORAGE_DTYPES = {
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}

# What pickle writes for dicts of tensors in protocols 2 to 5. Left out on purpose: instructions
# that set attributes, build objects or look names up elsewhere.
_OPCODES = frozenset(
    [
        *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID"),
        *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS"),
    ]
)


def load_vectors(path: Path) -> dict[tuple[int, int], NDArray[np.generic]]:
    """Return the vectors of a rank by (iteration, layer).

    Raises
    ------
    FormatError
        The pickle names something other than plain tensors, is damaged or has other content.
    """
    try:
        with path.open("rb") as file:
            content = _load(_Unpickler, file)
    except Exception as error:  # a damaged pickle can fail in any call it makes
        what = str(error)[:100] or type(error).__name__
        raise FormatError(f"{path} is refused or damaged: {what}.") from error
    return _checked(path, content)


def _load(unpickler: type[pickle.Unpickler], stream: BinaryIO) -> Any:
    """Check the next pickle of a stream, then run it."""
    begin = stream.tell()
    # Walking through also compares every announced length with the bytes that are there.
    for _ in checked_instructions(stream, _OPCODES):
        pass
    stream.seek(begin)
    return unpickler(stream).load()


def _checked(path: Path, content: object) -> dict[tuple[int, int], NDArray[np.generic]]:
    if not isinstance(content, Mapping):
        raise FormatError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    for key, vector in content.items():
        pair = isinstance(key, tuple) and len(key) == 2 and all(type(n) is int for n in key)
        if (
            not pair
            or not 0 <= min(key) <= max(key) < 1 << 48
            or not isinstance(vector, np.ndarray)
        ):
            raise FormatError(
                f"{path}: the entry {str(key)[:80]} is not a vector under an (iteration, layer) "
                "pair."
            )
    if sum(vector.nbytes for vector in content.values()) > path.stat().st_size:
        raise FormatError(f"{path} refers to the same numbers again and again; record it again.")
    return dict(content)


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): _load_storage,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return allowed[module, name]


class _StorageUnpickler(pickle.Unpickler):
    """Unpickler of the parts of a storage: plain values and one persistent id."""

    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in _STORAGE_DTYPES:
            raise pickle.UnpicklingError(f"it wants a storage of type {module}.{name}")
        return name

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _load_storage(data: bytes) -> NDArray[np.generic]:
    """Read a storage's values: five pickles (the first three a preamble), a length, the bytes."""
    stream = io.BytesIO(data)
    _, _, system, described, _ = (_load(_StorageUnpickler, stream) for _ in range(5))
    if not system["little_endian"]:
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    _, storage_type, _, _, length, _ = described
    (stored,) = struct.unpack("<q", stream.read(8))
    # A view: many tensors may refer to the same bytes.
    values = np.frombuffer(data, dtype=_STORAGE_DTYPES[storage_type], offset=stream.tell())
    if not stored == length == len(values):
        raise pickle.UnpicklingError(f"a storage of {length} values holds {len(values)}")
    return values


def _rebuild_tensor(
    storage: NDArray[np.generic],
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    *_: object,
) -> NDArray[np.generic]:
    """Return a contiguous vector of a storage; these dumps hold nothing else."""
    if len(size) != 1 or stride != (1,) or not 0 <= offset <= offset + size[0] <= len(storage):
        raise pickle.UnpicklingError(f"it holds a tensor of shape {size} and stride {stride}")
    return storage[offset : offset + size[0]]
