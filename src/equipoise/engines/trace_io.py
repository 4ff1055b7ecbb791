"""Reading and writing recordings of all known formats."""

from __future__ import annotations

import zipfile
from pathlib import Path

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.fitting import fitted
from equipoise.engines.files import check_readable
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions, no_progress
from equipoise.engines.registry import TOKEN_TABLE, map_formats, trace_format, trace_formats
from equipoise.errors import EquipoiseError, FormatError
from equipoise.invariants import checked
from equipoise.trace import Trace


def detect_trace(path: Path, *, columns_named: bool = False) -> TraceFormat:
    """Detect the format of a recording by its content.

    Parameters
    ----------
    columns_named
        Flag that the user named columns, so that the file is a token table.

    Raises
    ------
    FormatError
        A path that cannot be read, or a file that fits several formats or none.
    """
    check_readable(path)
    if columns_named:
        return trace_format(TOKEN_TABLE)
    found = [f for f in trace_formats() if f.matches(path)]
    if len(found) == 1:
        return found[0]
    if not found and _is_cut_zip(path):
        raise FormatError(
            f"{path} begins like a zip archive (.pt, .npz), but is cut off or damaged; "
            "record or copy it again."
        )
    if not found:
        raise FormatError(_unknown(path))
    names = ", ".join(f.name for f in found)
    raise FormatError(f"{path} could be any of {names}; name its format.")


def _unknown(path: Path) -> str:
    """Describe a file that no reader knows."""
    maps = [known.name for known in map_formats() if path.is_file() and known.matches(path)]
    if maps:
        return f"{path} is a map ({' or '.join(maps)}), not a recording."
    known = ", ".join(f.name for f in trace_formats())
    return (
        f"{path} is neither a map nor a recording of a known format ({known}); if it is "
        f"damaged, name its format to see what is wrong.{_content(path)} The simplest recording is "
        "a CSV file with the columns layer,expert,tokens, or numpy.savez(path, counts=...)."
    )


def _content(path: Path) -> str:
    """Describe the content of a torch archive, or say why it is not read."""
    try:
        root = torch_archive.outline(path) if _begins_as_zip(path) else None
    except FormatError as error:
        return "" if torch_archive.NO_PROGRAM in str(error) else f" {error}"
    match root:
        case None:
            return ""
        case dict():
            return f" It is a torch archive with the keys {', '.join(map(str, root))[:120]}."
    return f" It is a torch archive of one {type(root).__name__}."


def _begins_as_zip(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_cut_zip(path: Path) -> bool:
    return _begins_as_zip(path) and not zipfile.is_zipfile(path)


def read_trace(
    path: str | Path,
    options: TraceOptions | None = None,
    *,
    format: str | None = None,
    progress: Progress = no_progress,
) -> Trace:
    """Read a recording, and check that it can be MoE routing.

    The notes in ``trace.provenance`` say what the reader found.

    Parameters
    ----------
    path
        Path of a file or folder that an engine, or this package, wrote.
    options
        Facts that the recording does not contain. An option that its format does not use is
        refused.
    format
        Name of the format, from ``equipoise explain traces``; detected by content if ``None``.
    progress
        Function that is called with (done, total) while a long file is read.

    Raises
    ------
    FormatError
        A file that cannot be read; the message names it and says what to do.
    """
    path, options = Path(path), options or TraceOptions()
    named = options.columns is not None
    chosen = trace_format(format) if format else detect_trace(path, columns_named=named)
    check_readable(path)
    chosen.check_options(options)
    trace = chosen.read(path, chosen.own(options), progress)
    with naming(path):
        return checked(
            fitted(trace, options),
            layers_given=chosen.complete or options.layer_ids is not None,
            experts_given=chosen.complete or options.num_experts is not None,
        )


def write_trace(trace: Trace, path: str | Path, *, format: str = "equipoise") -> list[str]:
    """Write a recording, completely or not at all.

    Parameters
    ----------
    trace
        Trace to write.
    path
        Path of the file or folder.
    format
        Name of the format, from ``equipoise explain traces``.

    Returns
    -------
    Sentences on what the format cannot express of this trace.

    Raises
    ------
    EquipoiseError
        A format that only its engine writes, or a path that cannot be written.
    """
    chosen = trace_format(format)
    if chosen.write is None:
        able = ", ".join(f.name for f in trace_formats() if f.write is not None)
        raise EquipoiseError(f"Recordings are not written as {format}; choose one of {able}.")
    chosen.write(trace, Path(path))
    return chosen.losses(trace)
