"""Our own trace file: one safetensors file that is mapped into memory.

Counts are stored in the smallest unsigned type that holds them, and are read only when they are
used, so a trace larger than memory opens at once. The layout: ``equipoise explain traces``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from equipoise.engines._shared.arrays import compact, naming, refuse_long_labels
from equipoise.engines._shared.tensor_file import (
    TensorFile,
    looks_like_tensor_file,
    open_tensor_file,
)
from equipoise.engines.files import replacing
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_json
from equipoise.trace import MEMORY, Provenance, TokenIds, Trace

_FORMAT = "equipoise.trace"
_VERSION = 1


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header's facts other than tensors: JSON under the metadata key ``trace``."""

    layer_ids: tuple[int, ...]
    top_k: int | None
    labels: dict[str, tuple[str, ...]]  # values of the codes in ``label.<name>``
    provenance: Provenance


def matches(path: Path) -> bool:
    """Tell whether a file is our trace file, of any version, or a damaged safetensors file."""
    if not path.is_file() or not looks_like_tensor_file(path):
        return False
    try:
        return open_tensor_file(path).metadata.get("format") == _FORMAT
    except FormatError:
        return True  # no other recording is a single safetensors file; reading says what is wrong


def read(path: Path, _options: TraceOptions, _progress: Progress) -> Trace:
    """Open a trace file; the arrays are read-only views of it.

    The provenance is that of the recording from which the trace was first read. A trace that was
    in no file before has this file as its source.

    Raises
    ------
    FormatError
        A file that is not a trace file, is damaged, or has a newer version.
    """
    file = open_tensor_file(path)
    _check_version(file)
    try:
        text = file.metadata.get("trace", "").encode("utf-8", "surrogatepass")
        head = msgspec.convert(parse_json(text, "metadata"), _Head)
    except (FormatError, msgspec.ValidationError, UnicodeEncodeError) as error:
        what = f"{error}".removesuffix(".")
        raise FormatError(f"{path} has a damaged trace header: {what}.") from error
    with naming(path):
        return Trace(
            counts=_integers(file, "counts", 3),
            layer_ids=head.layer_ids,
            step_ids=_integers(file, "step_ids", 1).astype(np.int64),
            top_k=head.top_k,
            source_counts=_integers(file, "source_counts", 4)
            if "source_counts" in file.tensors
            else None,
            tokens=_tokens(file),
            labels={name: _labels(file, name, values) for name, values in head.labels.items()},
            provenance=_of_file(head.provenance, path),
        )


def write(trace: Trace, path: Path) -> None:
    """Write a trace file completely or not at all.

    Raises
    ------
    EquipoiseError
        A path that cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {
        "counts": compact(trace.counts),
        "step_ids": trace.steps,
    }
    if trace.source_counts is not None:
        tensors["source_counts"] = compact(trace.source_counts)
    if trace.tokens is not None:
        tensors["token_ids"] = _compact_ids(trace.tokens.ids)
        tensors["token_offsets"] = trace.tokens.offsets
    values: dict[str, tuple[str, ...]] = {}
    for name, column in trace.labels.items():
        unique, codes = np.unique(column, return_inverse=True)
        refuse_long_labels(unique.tolist(), 1, 1)  # or what is written could not be read
        values[name] = tuple(unique.tolist())
        tensors[f"label.{name}"] = compact(codes)
    head = _Head(trace.layer_ids, trace.top_k, values, trace.provenance.named({}))
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "trace": msgspec.json.encode(head).decode(),
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(contiguous, temporary, metadata)
    except SafetensorError as error:
        raise EquipoiseError(f"{path} cannot be written: {error}.") from error


def _of_file(known: Provenance, path: Path) -> Provenance:
    return replace(known, source=str(path)) if known.source == MEMORY else known


def _check_version(file: TensorFile) -> None:
    if file.metadata.get("format") != _FORMAT:
        raise FormatError(
            f"{file.path} is a safetensors file without the mark {_FORMAT!r}; "
            "expected a trace file written by equipoise."
        )
    version = file.metadata.get("version", "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise FormatError(f"{file.path} states version {version!r}; expected a number from 1.")
    if int(version) > _VERSION:
        raise FormatError(
            f"{file.path} has version {version} of the trace format; this equipoise reads up to "
            f"version {_VERSION}. Upgrade it, or write the trace again with this one."
        )


def _integers(file: TensorFile, name: str, ndim: int) -> NDArray[np.integer]:
    array = file.array(name)
    if array.ndim != ndim or not np.issubdtype(array.dtype, np.integer):
        raise FormatError(
            f"{file.path}: {name} has shape {array.shape} and type {array.dtype}; "
            f"expected integers with {ndim} axes."
        )
    return array  # type: ignore[return-value]


def _tokens(file: TensorFile) -> TokenIds | None:
    if "token_ids" not in file.tensors:
        return None
    ids = _integers(file, "token_ids", 3)
    offsets = _integers(file, "token_offsets", 1).astype(np.int64)
    ends = (offsets[0], offsets[-1]) if len(offsets) else None
    if ends != (0, len(ids)) or (np.diff(offsets) < 0).any():
        raise FormatError(
            f"{file.path}: token_offsets do not rise from 0 to the {len(ids)} tokens; "
            "the file is damaged."
        )
    return TokenIds(ids, offsets)


def _labels(file: TensorFile, name: str, values: tuple[str, ...]) -> NDArray[np.str_]:
    codes = _integers(file, f"label.{name}", 1)
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(values):
        raise FormatError(
            f"{file.path}: label.{name[:80]} holds codes without a value; it is damaged."
        )
    refuse_long_labels(values, len(codes), file.path.stat().st_size)
    column: NDArray[np.str_] = np.array(values, dtype=np.str_)[codes]
    return column


def _compact_ids(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """Convert ids to the smallest type, signed if negative ids mark missing choices."""
    if not ids.size or ids.min() >= 0:
        return compact(ids)
    bound = max(int(ids.max()), -int(ids.min()) - 1)
    return ids.astype(np.min_scalar_type(-bound - 1), copy=False)


FORMAT = TraceFormat(
    name="equipoise",
    summary="our own trace file (safetensors), mapped instead of loaded",
    matches=matches,
    read=read,
    options=frozenset(),
    complete=True,
    write=write,
)
