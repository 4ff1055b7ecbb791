"""A bare NumPy array: counts, or the tokens' own choices.

Two properties tell them apart. In counts, all layers of a step have the same number of
assignments. In choices, the experts of one token differ. If an array shows neither, it is refused,
and the message asks for a named one.
"""

from __future__ import annotations

import io
import warnings
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import MAX_BYTES, MAX_EXPERTS, agreed_layer_ids, naming
from equipoise.engines._shared.choices import Sequences, trace_of_choices
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.trace import Provenance, Trace

_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAGIC = b"\x93NUMPY"
_ROWS_TO_TELL = 64
_MOST_CHOICES = 32  # top-k of a model; counts have a column for each expert


def matches(path: Path) -> bool:
    """Whether a file begins as an array that NumPy saved."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read an array ``(steps, layers, experts)``, ``(layers, experts)`` or ``(tokens, layers, K)``.

    Raises
    ------
    FormatError
        The file holds no such array, or one that could be counts as well as choices.
    """
    size = path.stat().st_size
    with naming(path):
        if size > MAX_BYTES:
            raise EquipoiseError(
                f"{size / 2**30:.1f} GiB; at most {MAX_BYTES / 2**30:.0f} GiB are read at once."
            )
        array = load_npy(path.read_bytes(), str(path))
        progress(size, size)
        if options.window_tokens is not None or are_choices(array):
            note = read_as_choices(array.shape)
            array = of_layers(array)
            provenance = Provenance("npy", str(path), (note,))
            return trace_of_choices([Sequences("", array)], options, provenance)
        return _counts(path, array, options)


def load_npy(data: bytes, where: str) -> NDArray[Any]:
    """Return the array in bytes that NumPy saved; nothing is unpickled.

    Raises
    ------
    FormatError
        The bytes are damaged, or the array does not hold numbers.
    """
    file = io.BytesIO(data)
    try:
        check_header(file, len(data), where)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FormatError:
        raise
    except Exception as error:  # numpy's words quote whatever stands there, of many types
        raise FormatError(f"{where} is a damaged .npy array; save it again.") from error
    if array.dtype.kind not in "iuf" or not array.size:
        raise FormatError(
            f"{where} has shape {array.shape} and type {array.dtype}; expected numbers."
        )
    return array


def check_header(file: IO[bytes], stored: int, where: str) -> None:
    """Check what an array declares against the ``stored`` bytes, before any is allocated.

    Raises
    ------
    FormatError
        The version is unknown, it holds Python objects, or its size is too large or not stored.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READ_HEADER:
        raise FormatError(f"{where} has .npy version {version}; save it again.")
    try:
        with warnings.catch_warnings(action="error"):  # numpy warns of what it can hardly read
            shape, _, dtype = _READ_HEADER[version](file)
    except Exception as error:  # numpy's words quote whatever stands there
        raise FormatError(f"{where} has a damaged header; save it again.") from error
    if dtype.hasobject:
        raise FormatError(
            f"{where} holds Python objects, which are never unpickled; save it as numbers or "
            "strings."
        )
    declared = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared != stored - file.tell():
        raise FormatError(
            f"{where} declares shape {shape}, {declared} bytes, but "
            f"{stored - file.tell()} are stored; it is damaged."
        )
    if declared > MAX_BYTES:
        raise FormatError(
            f"{where} unpacks to {declared / 2**30:.1f} GiB; at most "
            f"{MAX_BYTES / 2**30:.0f} GiB are read. Split the recording."
        )


def are_choices(array: NDArray[Any]) -> bool:
    """Whether rows are the different choices of a token, or blank, and no row of counts.

    Choices are ``(tokens, layers, top_k)``, or ``(tokens, top_k)`` of one layer.
    """
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or not array.size:
        return False
    if not 1 < array.shape[-1] <= _MOST_CHOICES or array.max() >= MAX_EXPERTS:
        return False
    ids = of_layers(array)
    ordered = np.sort(ids, axis=2)
    same = ordered[:, :, 1:] == ordered[:, :, :-1]
    blank = same.all(axis=2)
    sums = ids.sum(axis=2, dtype=np.int64)
    equal_layers = ids.shape[1] > 1 and bool((sums == sums[:, :1]).all())
    told = int((~blank).sum()) >= _ROWS_TO_TELL  # few rows of counts may differ by chance
    return told and not same[~blank].any() and not equal_layers


def of_layers(choices: NDArray[Any]) -> NDArray[Any]:
    """Return choices with an axis of layers, ``(tokens, layers, top_k)``.

    Raises
    ------
    EquipoiseError
        The array has neither two nor three axes.
    """
    if choices.ndim not in (2, 3):
        raise EquipoiseError(f"Choices have shape {choices.shape}; expected 3 axes.")
    return choices if choices.ndim == 3 else choices[:, None, :]


def read_as_choices(shape: tuple[int, ...]) -> str:
    """Return the note for an array that was read as choices."""
    axes = "(tokens, layers, top_k)" if len(shape) == 3 else "(tokens, top_k) of one layer"
    return f"The array {shape} was read as choices {axes}."


def _counts(path: Path, array: NDArray[Any], options: TraceOptions) -> Trace:
    if array.ndim not in (2, 3):
        raise EquipoiseError(
            f"An array of shape {array.shape}; expected counts (steps, layers, experts) or choices "
            "(tokens, layers, top_k). Save it under a name: numpy.savez(FILE, counts=...)."
        )
    cube = array if array.ndim == 3 else array[None]
    by_rank = options.first_axis == "rank"
    notes = [f"The array {array.shape} was read as counts ({_axes(array.ndim, by_rank)})."]
    if array.ndim == 3 and options.first_axis is None and len(array) > 1:
        notes.append(
            Message(
                f"If its first axis is ranks, give {argument('first_axis')} rank; if it holds "
                f"choices of tokens, {argument('window_tokens')}."
            )
        )
    return Trace(
        counts=cube.sum(axis=0)[None] if by_rank else cube,
        source_counts=cube[None].astype(np.int64) if by_rank else None,
        layer_ids=agreed_layer_ids(None, options.layer_ids, cube.shape[1]),
        provenance=Provenance("npy", str(path), tuple(notes)),
    )


def _axes(ndim: int, by_rank: bool) -> str:
    first = "source ranks" if by_rank else "steps"
    return f"{first}, layers, experts" if ndim == 3 else "layers, experts"


FORMAT = TraceFormat(
    name="npy",
    summary="a bare NumPy array of counts or of the tokens' own choices (.npy)",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "window_tokens", "first_axis"}),
)
