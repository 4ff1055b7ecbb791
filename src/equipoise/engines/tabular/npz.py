"""NumPy archives, understood by the names of their arrays: counts, or the tokens' own choices.

The conventions are in ``equipoise explain traces``. Every array's declared size is checked against
the archive's directory before a byte of it is unpacked, and nothing is ever unpickled.
"""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import agreed_layer_ids, naming, refuse_long_labels
from equipoise.engines._shared.choices import Sequences, trace_of_choices
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.npy import (
    are_choices,
    check_header,
    of_layers,
    read_as_choices,
)
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.trace import Provenance, Trace

_MOST_UNPACKED, _MOST_GROWTH = 1 << 30, 64
"""Bytes that an array may always have, and bytes that it may have for each packed byte."""
_IDS = "topk_ids"
_LENGTHS = "seq_lens"
_SEQUENCE_LABELS = ("domain", "dataset")  # both become the label ``domain``; the first one wins


def matches(path: Path) -> bool:
    """Whether a file, or at least one file of a directory, is an archive of counts or choices."""
    try:
        if path.is_dir():
            return any(_is_recording(file) for file in path.glob("*.npz"))
        return _is_recording(path)
    except OSError:
        return False


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read an archive, or the only one of a directory.

    Raises
    ------
    FormatError
        There is no archive of a known convention or several, or an array is damaged or oversized.
    """
    with naming(path):
        file = _only_recording(path) if path.is_dir() else path
    with naming(file):
        arrays = _Archive(file)
        if len(arrays.names()) < arrays.num_entries:
            raise FormatError(f"{file} holds two arrays of one name; keep one of them.")
        if "counts" in arrays:
            trace = _read_counts(arrays, options)
        elif arrays.only_choices():
            trace = _read_single(arrays, options)
        else:
            trace = _read_ids(arrays, options)
        progress(file.stat().st_size, file.stat().st_size)
        unused = arrays.unused()
        return trace.with_notes(f"Arrays not used: {', '.join(unused)}.") if unused else trace


class _Archive:
    """The arrays of an archive, each loaded on first use; it remembers which ones were used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._used: set[str] = set()
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except OSError:
            raise
        except Exception as error:  # damaged directories raise many types
            what = str(error)[:100]  # some quote all of the file
            raise FormatError(f"{path} is not an .npz archive: {what}.") from error
        self._entries = {info.filename.removesuffix(".npy"): info for info in infos}
        self.num_entries = len(infos)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        return list(self._entries)

    def unused(self) -> list[str]:
        return sorted(self._entries.keys() - self._used)

    def only_choices(self) -> bool:
        """Whether the archive has one array alone, of another name, that can only be choices."""
        if self.num_entries != 1 or _is_ids(self.names()[0]):
            return False
        return are_choices(self.load(self.names()[0]))

    def load(self, name: str) -> NDArray[np.generic]:
        """One array; the declared size is checked before anything is allocated for it."""
        self._used.add(name)
        entry = self._entries[name]
        if entry.file_size > max(_MOST_UNPACKED, _MOST_GROWTH * entry.compress_size):
            raise FormatError(
                f"{self.path}: array {name[:80]!r} unpacks from {entry.compress_size} bytes to "
                f"{entry.file_size / 2**30:.1f} GiB. Save it in a smaller type, or with "
                "numpy.savez, which does not compress."
            )
        try:
            with zipfile.ZipFile(self.path) as archive:
                with archive.open(entry) as file:
                    check_header(file, entry.file_size, f"{self.path}: array {name!r}")
                with archive.open(entry) as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        except (FormatError, OSError):
            raise
        except Exception as error:  # damaged headers and streams raise many types
            what = str(error)[:100]
            raise FormatError(f"{self.path}: array {name!r} is damaged: {what}.") from error


def _is_recording(path: Path) -> bool:
    """Whether the archive has arrays named after a convention, or one array of choices alone."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        archive = _Archive(path)
    except FormatError:
        return False
    names = set(archive.names())
    if "counts" in names or any(_is_ids(name) for name in names):
        return True
    try:
        return archive.only_choices()
    except FormatError:
        return False


def _is_ids(name: str) -> bool:
    return name == _IDS or name.endswith(f"_{_IDS}")


def _only_recording(directory: Path) -> Path:
    found = sorted(file for file in directory.glob("*.npz") if _is_recording(file))
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise FormatError(
        f"{directory} holds {len(found)} archives of counts or choices ({names}); name one of them."
    )


def _read_counts(arrays: _Archive, options: TraceOptions) -> Trace:
    """``counts`` ``(..., L, E)``: every leading axis runs over steps."""
    counts: NDArray[Any] = arrays.load("counts")
    if counts.ndim < 2 or not counts.size or counts.dtype.kind not in "iuf":
        raise EquipoiseError(
            f"counts has shape {counts.shape} and type {counts.dtype}; "
            "expected numbers (..., layers, experts)."
        )
    *leading, L, E = counts.shape
    if options.window_tokens is not None:
        raise EquipoiseError(
            f"The archive holds counts, not tokens; leave {argument('window_tokens')} out."
        )
    layers = _integers(arrays, "layers", 1).tolist() if "layers" in arrays else None
    top_k, notes = _top_k(arrays, counts)
    return Trace(
        counts=counts.reshape(-1, L, E),
        layer_ids=agreed_layer_ids(layers, options.layer_ids, L),
        top_k=top_k,
        labels=_domain_label(arrays, tuple(leading)),
        provenance=Provenance("npz", str(arrays.path), notes),
    )


def _domain_label(arrays: _Archive, leading: tuple[int, ...]) -> dict[str, NDArray[np.str_]]:
    """``domains`` names the entries of the first leading axis."""
    if "domains" not in arrays:
        return {}
    domains = _strings(arrays, "domains")
    if not leading or len(domains) != leading[0]:
        raise EquipoiseError(
            f"domains has {len(domains)} names; counts has leading axes {leading}, "
            "expected one name for each entry of the first."
        )
    refuse_long_labels(domains.tolist(), prod(leading), arrays.path.stat().st_size)
    return {"domain": np.repeat(domains, prod(leading[1:]))}


def _top_k(arrays: _Archive, counts: NDArray[np.integer]) -> tuple[int | None, tuple[str, ...]]:
    """``top_k`` as stated, else assignments per token where the archive counts the tokens."""
    stated = int(_integers(arrays, "top_k", 0)) if "top_k" in arrays else None
    name = next((n for n in ("tokens", "active_seqs") if n in arrays), None)
    if name is None:
        return stated, ()
    tokens = _integers(arrays, name, counts.ndim - 2)
    if tokens.shape != counts.shape[:-2]:
        raise EquipoiseError(
            f"{name} has shape {tokens.shape}; expected the leading axes of counts, "
            f"{counts.shape[:-2]}."
        )
    assignments = counts.sum(axis=-1)
    quotients = np.unique(assignments[tokens > 0] / tokens[tokens > 0][:, None])
    if stated is None and len(quotients) == 1 and float(quotients[0]).is_integer():
        return int(quotients[0]), (f"top_k {int(quotients[0])} follows from counts and {name}.",)
    if stated is not None and list(quotients) != [stated]:
        return stated, (f"counts do not add up to top_k {stated} times {name} in every layer.",)
    return stated, ()


def _read_ids(arrays: _Archive, options: TraceOptions) -> Trace:
    """``topk_ids`` ``(D, L, K)``, plain or several as ``<name>_topk_ids``, with ``seq_lens``."""
    layers = _integers(arrays, "layers", 1).tolist() if "layers" in arrays else None
    parts = _parts(arrays)
    first = parts[0]
    for part in parts:
        if part.ids.shape[1:] != first.ids.shape[1:]:
            raise EquipoiseError(
                f"{part.label}_{_IDS} has {part.ids.shape[1:]} (layers, choices), "
                f"{first.label}_{_IDS} has {first.ids.shape[1:]}; expected the same."
            )
    return trace_of_choices(parts, options, Provenance("npz", str(arrays.path)), layers)


def _read_single(arrays: _Archive, options: TraceOptions) -> Trace:
    """One array of choices under any name, of all layers or of one."""
    choices: NDArray[Any] = arrays.load(arrays.names()[0])
    provenance = Provenance("npz", str(arrays.path), (read_as_choices(choices.shape),))
    return trace_of_choices([Sequences("", of_layers(choices))], options, provenance)


def _parts(arrays: _Archive) -> list[Sequences]:
    """Return the tokens of each label, in the order in which the labels occur."""
    names = [name for name in arrays.names() if _is_ids(name)]
    if not names or (_IDS in names and len(names) > 1):
        raise FormatError(
            f"{arrays.path} has the arrays {', '.join(arrays.names())}; expected counts, or "
            f"{_IDS}, or <name>_{_IDS} with <name>_{_LENGTHS}."
        )
    if names == [_IDS]:
        return _by_sequence_label(arrays, _part(arrays, ""))
    return [_part(arrays, name.removesuffix(f"_{_IDS}")) for name in names]


def _part(arrays: _Archive, label: str) -> Sequences:
    prefix = f"{label}_" if label else ""
    ids = _whole(arrays, prefix + _IDS, 3)
    lengths = None
    if prefix + _LENGTHS in arrays:
        recorded = _whole(arrays, prefix + _LENGTHS, 1)
        total = sum(recorded.tolist())  # Python's numbers do not wrap
        if (recorded.size and int(recorded.min()) < 0) or total != len(ids):
            raise EquipoiseError(
                f"{prefix}{_LENGTHS} adds up to {total} tokens, {prefix}{_IDS} has "
                f"{len(ids)}; expected non-negative lengths of all sequences."
            )
        lengths = recorded.astype(np.int64)
    return Sequences(label, ids, lengths)


def _by_sequence_label(arrays: _Archive, part: Sequences) -> list[Sequences]:
    """Split tokens by the label of their sequence, if the archive has labels."""
    name = next((n for n in _SEQUENCE_LABELS if n in arrays), None)
    if name is None:
        return [part]
    labels = _strings(arrays, name)
    if part.lengths is None or len(labels) != len(part.lengths):
        raise EquipoiseError(
            f"{name} labels {len(labels)} sequences; expected {_LENGTHS} of the same length."
        )
    token_label = np.repeat(labels, part.lengths)
    return [
        Sequences(label, part.ids[token_label == label], part.lengths[labels == label])
        for label in dict.fromkeys(labels.tolist())
    ]


def _integers(arrays: _Archive, name: str, ndim: int) -> NDArray[np.int64]:
    return _whole(arrays, name, ndim).astype(np.int64)


def _whole(arrays: _Archive, name: str, ndim: int) -> NDArray[np.integer]:
    array = arrays.load(name)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise EquipoiseError(
            f"{name} has shape {array.shape} and type {array.dtype}; "
            f"expected whole numbers with {ndim} axes."
        )
    return array  # type: ignore[return-value]


def _strings(arrays: _Archive, name: str) -> NDArray[np.str_]:
    array = arrays.load(name)
    if array.ndim != 1 or array.dtype.kind != "U":
        raise EquipoiseError(
            f"{name} has shape {array.shape} and type {array.dtype}; expected a list of strings."
        )
    # NumPy keeps any 32 bits as a character; Python ends in odd errors on those that are none.
    native = array.astype(array.dtype.newbyteorder("="))
    codes = native.view(np.uint32) if native.nbytes else np.zeros(0, np.uint32)
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise EquipoiseError(f"{name} holds characters that do not exist; the file is damaged.")
    refuse_long_labels(array.tolist(), 1, 1)
    return array  # type: ignore[return-value]


FORMAT = TraceFormat(
    name="npz",
    summary="NumPy archive with counts, or with the tokens' own choices (topk_ids)",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "window_tokens"}),
)
