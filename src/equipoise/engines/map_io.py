"""Reading, checking and writing the placement files of all engines."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.findings import by_kind, shown_names
from equipoise.engines._shared.map_rows import MAX_LAYERS
from equipoise.engines._shared.map_text import WAY_IN, parse_map_json, read_text, stated
from equipoise.engines.files import check_readable, replacing
from equipoise.engines.formats import (
    NOTHING_KNOWN,
    Finding,
    MapContext,
    MapFormat,
    RawMap,
    Severity,
)
from equipoise.engines.registry import map_format, map_formats, trace_formats
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.placement import Placement


def detect_map(path: str | PathLike[str]) -> MapFormat:
    """Detect the format of a placement file by its content.

    A damaged file is recognised by words that only its format has; reading it then says what is
    wrong.

    Raises
    ------
    FormatError
        A missing file, or one that fits several formats or none. The message says what the file is,
        as far as that is certain.
    """
    path = _existing(path)
    found = [known for known in map_formats() if known.matches(path)]
    if not found:
        return _by_signature(path)
    if len(found) == 1:
        return found[0]
    names = " or ".join(known.name for known in found)
    raise FormatError(
        f"{path}: may be {names}, which have the same form; name the format with "
        f"{argument('format')}."
    )


def is_map(path: Path) -> bool:
    """Tell by its content whether a file is a placement of some format."""
    return path.is_file() and any(known.matches(path) for known in map_formats())


def _by_signature(path: Path) -> MapFormat:
    """Detect the format of a damaged map, or raise ``FormatError`` that says what the file is."""
    _refuse_bombs(path)
    _refuse_recording(path)
    content = _content(path)
    if isinstance(content, str):
        for known in map_formats():
            if known.signature and re.search(known.signature, content, re.MULTILINE):
                return known
        if _looks_like_json(content):
            parse_map_json(content, path)  # raises an error that says where the JSON breaks
    words = stated(content)
    if words is not None:
        raise FormatError(
            f"{path}: states the {words}, which is not known here: another program's file. {WAY_IN}"
        )
    raise FormatError(
        f"{path}: is neither a map nor a recording{_kind(content)}. {WAY_IN} The simplest "
        "recording is a CSV file with the columns layer,expert,tokens, or numpy.savez(counts=...)."
    )


def _refuse_recording(path: Path) -> None:
    recording = next((known for known in trace_formats() if known.matches(path)), None)
    if recording is not None:
        raise FormatError(
            f"{path}: is a recording ({recording.name}), not a map; equipoise plan makes a map "
            "from a recording."
        )


def _refuse_bombs(path: Path) -> None:
    """Refuse JSON with deep nesting or huge numbers before other readers try it."""
    try:
        text = read_text(path)
        if _looks_like_json(text):
            parse_map_json(text, path)
    except FormatError as error:
        if type(error.__cause__) in (RecursionError, ValueError):  # not the syntax, as of JSONL
            raise


def _looks_like_json(text: str) -> bool:
    return re.match(r"\s*[\[{]", text) is not None


def _content(path: Path) -> Any:
    """Return the root of a JSON document or torch archive, else the text, else ``None``."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith((b"PK\x03\x04", b"\x80")):  # torch's archives, and its pickles of old
        return torch_archive.outline(path)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    text = read_text(path)
    try:
        return parse_map_json(text, path)[0]
    except FormatError:
        return text


def _kind(content: Any) -> str:
    """Describe the content of a file in a few words in brackets, if it can be seen."""
    if isinstance(content, np.ndarray):
        return f" (one tensor {content.shape} of {content.dtype})"
    if isinstance(content, dict):
        return f" (a mapping of {shown_names(list(content)) or 'nothing'})"
    return ""


@dataclass(frozen=True, kw_only=True)
class MapInspection:
    """The result of checking a placement file.

    Parameters
    ----------
    format
        Name of the format.
    findings
        Findings, all defects among them.
    notes
        Notes, as ``map_notes`` returns them.
    """

    format: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def inspect_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> MapInspection:
    """Check a placement file like ``validate_map``; also return the format's name and notes."""
    path = _existing(path)
    chosen = _choose(path, format)
    raw = _parse(path, chosen, context)
    return MapInspection(
        format=chosen.name, findings=tuple(chosen.check(raw, context)), notes=raw.notes
    )


def validate_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> list[Finding]:
    """Find all defects of a placement file in one run.

    Parameters
    ----------
    path
        Path of the file.
    context
        Facts of the deployment. Missing facts limit the checks, and a warning says so.
    format
        Name of the format, from ``equipoise explain maps``; detected by content if ``None``.

    Returns
    -------
    Errors, warnings and notes. The engine can use the map if there is no error.

    Raises
    ------
    FormatError
        A file that cannot be parsed at all.
    """
    return list(inspect_map(path, context, format=format).findings)


def read_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> Placement:
    """Read a placement file of any format.

    Parameters
    ----------
    path
        Path of the file.
    context
        Facts that the file does not contain: the number of ranks for nearly every format, and the
        model's layer numbers for formats that number layers from 0.
    format
        Name of the format, from ``equipoise explain maps``; detected by content if ``None``.

    Raises
    ------
    FormatError
        A map with defects that make its meaning uncertain. The message says how many and names the
        first. A map that only an engine would refuse can still be read.
    EquipoiseError
        A context without a fact that is needed.
    """
    return examine_map(path, context, format=format).placement


@dataclass(frozen=True, kw_only=True)
class MapReading:
    """The result of reading a placement file.

    Parameters
    ----------
    placement
        Placement in the file.
    findings
        Warnings, notes, and those errors that leave no doubt about the placement: an engine would
        refuse the file, but the placement is certain.
    notes
        Notes, as ``map_notes`` returns them.
    """

    placement: Placement
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def examine_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> MapReading:
    """Read a placement file like ``read_map``; also return warnings and notes."""
    path = _existing(path)
    chosen = _choose(path, format)
    raw = _parse(path, chosen, context)
    findings = chosen.check(raw, context)
    _refuse_errors([finding for finding in findings if not finding.readable], f"{path}")
    try:
        placement = chosen.to_placement(raw, context)
    except EquipoiseError as error:
        raise EquipoiseError(f"{path}: {error.message.marked}") from error
    return MapReading(placement=placement, findings=tuple(findings), notes=raw.notes)


def reading_warnings(reading: MapReading) -> list[Message]:
    """Write what is doubtful about a placement that was read, once for each kind of finding."""
    return [
        finding.text
        for finding in by_kind(reading.findings)
        if finding.severity is not Severity.NOTE
    ]


def map_notes(path: str | PathLike[str], *, format: str | None = None) -> tuple[str, ...]:
    """Write what a placement file says in addition to the placement, which conversion loses.

    The sentences are about its origin, online re-planning, or one list shared by all layers.
    """
    path = _existing(path)
    return _choose(path, format).parse(path).notes


def write_map(
    placement: Placement,
    path: str | PathLike[str],
    *,
    format: str,
    context: MapContext = NOTHING_KNOWN,
) -> list[str]:
    """Write a placement for an engine, checked before it replaces a file.

    The file is written next to ``path``, checked by the format's own validator, read back and
    compared with the placement; only then does it replace ``path``.

    Parameters
    ----------
    placement
        Placement to write.
    path
        Path of the file; its suffix must be one of the format's.
    format
        Name of the format, from ``equipoise explain maps``.
    context
        Facts of the deployment; SGLang's maps need ``num_hidden_layers``.

    Returns
    -------
    Sentences on what the file does not say about the placement.

    Raises
    ------
    EquipoiseError
        A wrong suffix, a path that cannot be written, a context that contradicts the placement, or
        a placement that the engine would refuse.
    """
    check_map_path(Path(path), format)
    return write_as(placement, Path(path), map_format(format), context)


def write_as(
    placement: Placement, path: Path, chosen: MapFormat, context: MapContext = NOTHING_KNOWN
) -> list[str]:
    """Write a placement like ``write_map``, in a format object, whose writer may know more.

    The caller must check the name of the file.
    """
    with replacing(path) as temporary:
        _write_proven(placement, path, temporary, chosen, _complete(context, placement))
    return chosen.losses(placement)


def write_maps(
    placements: Mapping[Path, Placement], *, format: str, context: MapContext = NOTHING_KNOWN
) -> list[list[str]]:
    """Write several placements like ``write_map``: all files or none.

    A missing folder is made if its parent exists.

    Returns
    -------
    Sentences on what each file does not say about its placement.

    Raises
    ------
    EquipoiseError
        Whatever ``write_map`` refuses, for the first that fails.
    """
    chosen = map_format(format)
    with ExitStack() as stack:
        for path in placements:
            check_map_path(path, format)
            stack.enter_context(_folder_of(path))
        for path, placement in placements.items():
            temporary = stack.enter_context(replacing(path))
            with _naming(path):
                _write_proven(placement, path, temporary, chosen, _complete(context, placement))
    return [chosen.losses(placement) for placement in placements.values()]


def check_map_path(path: Path, format: str) -> None:
    """Raise ``EquipoiseError`` for an unknown format, or a file name that its engine refuses."""
    chosen = map_format(format)
    if chosen.write is None:
        written = ", ".join(known.name for known in map_formats() if known.write is not None)
        raise EquipoiseError(f"Maps of the format {format} are only read; choose one of {written}.")
    if path.suffix not in chosen.suffixes:
        raise EquipoiseError(
            f"{path}: a map for {chosen.name} needs a name that ends in exactly "
            f"{' or '.join(chosen.suffixes)}."
        )


def placeholder_name(target: str) -> str:
    """Return a name that stands for a map still to be written, with the ending the engine needs."""
    endings = {known.name: known.suffixes for known in map_formats()}
    return "".join(("MAP", *endings.get(target, ())[:1]))


def target_of(path: Path, target: str | None = None) -> str:
    """The format to write a map in: the one asked for, or the only one whose names end so.

    Raises
    ------
    EquipoiseError
        None was asked for, and names of several formats end so, or of none.
    """
    if target is not None:
        return target
    written = [known for known in map_formats() if known.write is not None]
    fitting = [known.name for known in written if path.suffix in known.suffixes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = f"{', '.join(fitting[:-1])} or {fitting[-1]}"
        raise EquipoiseError(
            f"{path}: may be a map for {names}; name one of them with {argument('target')}."
        )
    endings = sorted({suffix for known in written for suffix in known.suffixes})
    raise EquipoiseError(f"{path}: names of maps end in {', '.join(endings)}; give another name.")


@contextmanager
def _folder_of(path: Path) -> Iterator[None]:
    """Make the folder of an output if only that is missing; remove it again on failure."""
    folder = path.parent.resolve()  # follows links
    if folder.exists() or not folder.parent.is_dir():
        yield
        return
    folder.mkdir()
    try:
        yield
    except BaseException:
        folder.rmdir()
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors without it, because several files are written."""
    try:
        yield
    except EquipoiseError as error:
        if f"{path}" in str(error):
            raise
        raise EquipoiseError(f"{path}: {error.message.marked}") from error


def _write_proven(
    placement: Placement, path: Path, temporary: Path, chosen: MapFormat, context: MapContext
) -> None:
    """Write, validate, read back and compare; messages name ``path``."""
    assert chosen.write is not None  # it has suffixes
    chosen.write(placement, temporary, context)
    raw = chosen.parse(temporary)
    _refuse_errors(chosen.check(raw, context), f"{path}: not written")
    if chosen.to_placement(raw, context) != placement:
        raise EquipoiseError(
            f"{path}: not written, since what was read back is not the placement. "
            "This is a defect of equipoise; please report it."
        )


def _complete(context: MapContext, placement: Placement) -> MapContext:
    """Complete the context with facts of the placement; raise an error where they disagree."""
    known = {
        "num_ranks": placement.num_ranks,
        "num_experts": placement.num_experts,
        "num_redundant": placement.num_redundant,
        "layer_ids": placement.layer_ids,
    }
    for field in fields(context):
        given = getattr(context, field.name)
        if given is not None and field.name in known and given != known[field.name]:
            raise EquipoiseError(
                f"The placement has {field.name} {known[field.name]}, the deployment {given}; "
                "plan for this deployment, or correct what was given."
            )
    return replace(context, **known)  # type: ignore[arg-type]


def _parse(path: Path, chosen: MapFormat, context: MapContext) -> RawMap:
    try:
        parsed = chosen.parse(path)
    except FormatError as error:
        others = [known.name for known in map_formats() if known.matches(path)]
        if not others or chosen.name in others:
            raise
        raise FormatError(
            f"{error.message.marked} It is a map for {' or '.join(others)}."
        ) from error
    raw = _of_model(parsed, context.model_key, path)
    if len(raw.rows) > MAX_LAYERS:
        raise FormatError(f"{path}: has {len(raw.rows):,} layers, more than any model.")
    return raw


def _of_model(raw: RawMap, key: str | None, path: Path) -> RawMap:
    """Choose the map of a model if a file holds the maps of several."""
    if not raw.models:
        return raw
    names = list(raw.models)
    if key is None and len(names) == 1:
        key = names[0]
    if key is None or key not in raw.models:
        asked = "" if key is None else f", and none of {key!r}"
        raise EquipoiseError(
            f"{path}: holds the maps of {len(names)} models ({shown_names(names)}){asked}; "
            f"give {argument('model_key')}. equipoise convert takes it and writes a file with one "
            "map."
        )
    chosen = raw.models[key]
    return replace(
        chosen,
        findings=(*raw.findings, *chosen.findings),
        notes=(f"The map of {key}.", *raw.notes, *chosen.notes),
    )


def _refuse_errors(findings: list[Finding], where: str) -> None:
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        first = errors[0]
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors, the first"
        raise FormatError(f"{where}: {count} ({first.code}): {first.text.marked}")


def _choose(path: Path, name: str | None) -> MapFormat:
    return detect_map(path) if name is None else map_format(name)


def _existing(path: str | PathLike[str]) -> Path:
    path = Path(path)
    check_readable(path)
    if path.is_dir():
        raise FormatError(f"{path} is a folder; a placement is one file.")
    return path
