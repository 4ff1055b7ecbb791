"""Reading and writing of torch's zip archives (``.pt``) without torch.

The archive is a zip of uncompressed entries under one folder: ``data.pkl`` (a pickle of protocol 2
in which every tensor is a view of a numbered storage), ``data/<n>`` (the raw storages),
``byteorder`` and ``version``. Layout: the serialization notes of the PyTorch documentation.

A pickle is a program. This reader runs only the few instructions that ``torch.save`` writes for
containers, scalars and tensors; anything else in it is refused before any of it runs.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from equipoise.engines._shared.half_precision import widened
from equipoise.engines._shared.pickle_program import checked_instructions
from equipoise.engines.files import replacing
from equipoise.errors import EquipoiseError, FormatError

_SEARCHED_BYTES = 1 << 24
NO_PROGRAM = "it is a zip, but not one that torch.save wrote (no data.pkl in it)"


@dataclass(frozen=True)
class _Type:
    """The stored type of numbers, and the half-precision format of the bits, if any."""

    stored: np.dtype[Any]
    half: str = ""

    @property
    def loaded(self) -> np.dtype[Any]:
        """Type of the numbers after loading."""
        return np.dtype(np.float32) if self.half else self.stored


_STORAGES = {
    "BoolStorage": _Type(np.dtype(np.bool_)),
    "ByteStorage": _Type(np.dtype(np.uint8)),
    "CharStorage": _Type(np.dtype(np.int8)),
    "ShortStorage": _Type(np.dtype(np.int16)),
    "IntStorage": _Type(np.dtype(np.int32)),
    "LongStorage": _Type(np.dtype(np.int64)),
    "HalfStorage": _Type(np.dtype(np.uint16), "float16"),
    "BFloat16Storage": _Type(np.dtype(np.uint16), "bfloat16"),
    "FloatStorage": _Type(np.dtype(np.float32)),
    "DoubleStorage": _Type(np.dtype(np.float64)),
}

# Instructions that torch.save writes for containers, scalars and tensors. Others are excluded on
# purpose: they set attributes, build objects, or allocate memory by their operand alone.
_OPCODES = frozenset(
    [
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    ]
)


def load(path: Path) -> Any:
    """Read the object that ``torch.save`` wrote, tensors as NumPy arrays.

    Parameters
    ----------
    path
        A zip archive of dicts, lists, tuples, scalars and tensors of bool, uint8, int8, int16,
        int32, int64, float32 or float64, saved from any device; bfloat16 and float16 come back as
        float32.

    Returns
    -------
    The root object. Arrays are read-only and share memory where the tensors did; an
    ``OrderedDict`` comes back as a ``dict``.

    Raises
    ------
    FormatError
        A file that is not a zip archive, that contains other types, or whose sizes disagree.
    """
    return _read(path, _stored_values)


def outline(path: Path) -> Any:
    """Read an archive like ``load``, but with zeros in all tensors.

    It is for detecting what a file is. No tensor data is read, and untouched zeros take no memory.

    Raises
    ------
    FormatError
        As ``load``.
    """
    return _read(path, _zeros)


def save(path: Path, root: Any) -> None:
    """Write an archive that ``torch.load(path, weights_only=True)`` reads, whole or not at all.

    Parameters
    ----------
    path
        Path of the file; an existing file is replaced.
    root
        Nested dicts and lists of ``None``, bools, ints, floats, strings and arrays of int64, int32
        or float32; the arrays become CPU tensors.

    Raises
    ------
    EquipoiseError
        A value of another type.
    """
    storages: list[NDArray[Any]] = []
    program = pickle.PROTO + b"\x02" + _encode(root, storages) + pickle.STOP
    entries = {"data.pkl": program, "byteorder": b"little"}
    entries |= {f"data/{key}": array.tobytes() for key, array in enumerate(storages)}
    entries["version"] = b"3\n"
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, data in entries.items():
            # A new ZipInfo has a fixed date, so that equal content gives equal files.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


# Reading ---------------------------------------------------------------------------------------


class _Archive:
    """The entries of an open archive, whose sizes were checked against the file's."""

    def __init__(self, file: zipfile.ZipFile, file_size: int) -> None:
        self._file = file
        roots = [n for n in file.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise FormatError(NO_PROGRAM)
        prefix = roots[0].removesuffix("data.pkl")
        infos = [info for info in file.infolist() if info.filename.startswith(prefix)]
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise FormatError("its entries are compressed; torch.save stores them as they are")
        if sum(info.file_size for info in infos) > file_size:
            raise FormatError("its entries claim more bytes than the file has")
        self._infos = {info.filename.removeprefix(prefix): info for info in infos}

    def size(self, name: str) -> int | None:
        """Return the size of an entry in bytes, or ``None`` if there is none of this name."""
        info = self._infos.get(name)
        return None if info is None else info.file_size

    def read(self, name: str) -> bytes:
        return self._file.read(self._infos[name])


_Values = Callable[[_Archive, str, _Type, int], "NDArray[Any]"]


def _stored_values(archive: _Archive, name: str, kind: _Type, numel: int) -> NDArray[Any]:
    order = archive.read("byteorder") if archive.size("byteorder") is not None else b"little"
    if order not in (b"little", b"big"):
        raise FormatError(f"its byte order is {order[:16]!r}; expected little or big")
    stored = kind.stored.newbyteorder(">" if order == b"big" else "<")
    values = np.frombuffer(archive.read(name), stored, numel).astype(kind.stored, copy=False)
    return widened(values, kind.half) if kind.half else values


def _zeros(_archive: _Archive, _name: str, kind: _Type, numel: int) -> NDArray[Any]:
    return np.zeros(numel, kind.loaded)


def _read(path: Path, values: _Values) -> Any:
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"PK\x03\x04":
                raise FormatError(
                    "it is not a zip archive; a file in torch's older format has to be saved again "
                    "with a present torch: torch.save(torch.load(old), new)"
                )
            if path.stat().st_size <= _SEARCHED_BYTES and b"/data.pkl" not in stream.read():
                raise FormatError(NO_PROGRAM)  # without its list of entries, which may be long
            with zipfile.ZipFile(stream) as file:
                archive = _Archive(file, path.stat().st_size)
                program = archive.read("data.pkl")
                _check_program(program)
                return _Unpickler(program, archive, values).load()
    except FormatError as error:
        raise FormatError(f"Cannot read {path}: {error}.") from None
    except OSError as error:
        raise FormatError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # damaged zips and pickles may raise any built-in exception
        what = str(error)[:100] or type(error).__name__  # some messages quote the whole file
        raise FormatError(f"Cannot read {path} as a torch archive: {what}.") from error


def _check_program(program: bytes) -> None:
    """Refuse a pickle with an instruction that ``torch.save`` does not write."""
    for name, argument in checked_instructions(program, _OPCODES):
        if name == "GLOBAL":
            _known_global(*argument.split(" ", 1))


def _known_global(module: str, name: str = "") -> Any:
    """Return the replacement of a name that tensors and containers need; refuse other names."""
    match module, name:
        case "collections", "OrderedDict":
            return dict
        case "torch._utils", "_rebuild_tensor_v2":
            return _view
        case "torch", name if name in _STORAGES:
            return _STORAGES[name]
    raise FormatError(
        f"it holds a {module}.{name}"[:120] + "; only plain containers of tensors of bool, uint8, "
        "int8, int16, int32, int64, bfloat16, float16, float32 and float64 are read"
    )


@dataclass(frozen=True)
class _Storage:
    """Flat memory of tensors."""

    values: NDArray[Any]


class _Unpickler(pickle.Unpickler):
    """An unpickler for checked pickles that knows only tensors and their storages."""

    def __init__(self, program: bytes, archive: _Archive, values: _Values) -> None:
        super().__init__(io.BytesIO(program), fix_imports=False)
        self._archive = archive
        self._values = values
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _known_global(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        # The location (cpu, cuda:0) is ignored: all tensors are loaded to memory.
        what, kind, key, _location, numel = pid
        if what != "storage" or not isinstance(kind, _Type) or not isinstance(key, str):
            raise FormatError("it refers to something that is not a tensor storage")
        size = self._archive.size(f"data/{key}")
        if size is None:
            raise FormatError(f"the tensor storage data/{key[:40]} is missing")
        if not isinstance(numel, int) or numel * kind.stored.itemsize != size:
            raise FormatError(
                f"the storage data/{key[:40]} has {size} bytes, not {str(numel)[:40]} numbers of "
                f"type {kind.half or kind.stored}"
            )
        if key not in self._storages:
            values = self._values(self._archive, f"data/{key}", kind, numel)
            self._storages[key] = _Storage(values)
        return self._storages[key]


def _view(
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool,
    _hooks: dict[Any, Any],
) -> NDArray[Any]:
    """Make a tensor as a read-only array; offset and strides count elements, as in torch."""
    values = storage.values
    if math.prod(size) > values.size:
        raise FormatError(
            f"a tensor of shape {tuple(size)} lies in a storage of only {values.size} numbers; "
            "an expanded tensor has to be saved as tensor.contiguous()"
        )
    step = values.itemsize
    # NumPy itself refuses an offset or strides that would leave the storage.
    array: NDArray[Any] = np.ndarray(
        size, values.dtype, values, offset * step, tuple(s * step for s in stride)
    )
    array.flags.writeable = False
    return array


# Writing ---------------------------------------------------------------------------------------

_WRITABLE: dict[DTypeLike, bytes] = {
    np.dtype(np.int64): b"LongStorage",
    np.dtype(np.int32): b"IntStorage",
    np.dtype(np.float32): b"FloatStorage",
}


def _encode(value: Any, storages: list[NDArray[Any]]) -> bytes:
    """Write the pickle instructions that push ``value``; its arrays are added to ``storages``."""

    def join(values: Any) -> bytes:
        return b"".join(_encode(v, storages) for v in values)

    if value is None or type(value) in (bool, int, float, str):  # no subclass: NumPy has some
        return pickle.dumps(value, protocol=2)[2:-1]  # without its PROTO and STOP
    match value:
        case dict():
            items = (part for item in value.items() for part in item)
            return pickle.EMPTY_DICT + pickle.MARK + join(items) + pickle.SETITEMS
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + join(value) + pickle.APPENDS
        case tuple():  # only tensor shapes are tuples
            return pickle.MARK + join(value) + pickle.TUPLE
        case np.ndarray() if value.dtype.newbyteorder("=") in _WRITABLE:
            return _encode_tensor(value, storages)
    what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise EquipoiseError(
        f"Cannot write {what} to a torch archive; expected dicts, lists, numbers, strings, None "
        "and arrays of int64, int32 or float32."
    )


def _encode_tensor(array: NDArray[Any], storages: list[NDArray[Any]]) -> bytes:
    kind = _WRITABLE[array.dtype.newbyteorder("=")]
    key = str(len(storages))
    storages.append(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False))
    stride = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))

    def push(value: Any) -> bytes:
        return _encode(value, storages)

    storage = (
        pickle.MARK
        + push("storage")
        + _global(b"torch", kind)
        + push(key)
        + push("cpu")
        + push(array.size)
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    hooks = _global(b"collections", b"OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = storage + push(0) + push(array.shape) + push(stride) + push(False) + hooks
    rebuild = _global(b"torch._utils", b"_rebuild_tensor_v2")
    return rebuild + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE


def _global(module: bytes, name: bytes) -> bytes:
    return pickle.GLOBAL + module + b"\n" + name + b"\n"
