"""Reading, checking and writing placement files of every engine."""

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
    """The format of a placement file, by its content.

    A damaged file is known by words that only its format has; reading it then says what is wrong.

    Raises
    ------
    FormatError
        No such file, several formats that fit, or none; the message says what the file is, as far
        as that is certain.
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
    """Whether a file is a placement of some format, by its content."""
    return path.is_file() and any(known.matches(path) for known in map_formats())


def _by_signature(path: Path) -> MapFormat:
    """The format of a damaged map; if there is none, ``FormatError`` says what the file is."""
    _refuse_bombs(path)
    _refuse_recording(path)
    content = _content(path)
    if isinstance(content, str):
        for known in map_formats():
            if known.signature and re.search(known.signature, content, re.MULTILINE):
                return known
        if _looks_like_json(content):
            parse_map_json(content, path)  # raises: it begins like JSON, and here is where it ends
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
    """Refuse JSON that nests too deeply, or has endless numbers, before others try to read it."""
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
    """The root of a JSON document or a torch archive, else the text; ``None`` if it is no text."""
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
    """A few words in brackets on what a file holds, as far as that can be seen."""
    if isinstance(content, np.ndarray):
        return f" (one tensor {content.shape} of {content.dtype})"
    if isinstance(content, dict):
        return f" (a mapping of {shown_names(list(content)) or 'nothing'})"
    return ""


@dataclass(frozen=True, kw_only=True)
class MapInspection:
    """What is known of a placement file before anybody reads it.

    Parameters
    ----------
    format
        Name of its format.
    findings
        Every defect.
    notes
        As ``map_notes``.
    """

    format: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def inspect_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> MapInspection:
    """As ``validate_map``, with the format's name and the notes."""
    path = _existing(path)
    chosen = _choose(path, format)
    raw = _parse(path, chosen, context)
    return MapInspection(
        format=chosen.name, findings=tuple(chosen.check(raw, context)), notes=raw.notes
    )


def validate_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> list[Finding]:
    """Every defect of a placement file, all of them in one run.

    Parameters
    ----------
    path
        The file.
    context
        What the deployment knows; what is missing limits the checks, and a warning says so.
    format
        A name in ``equipoise explain maps``; found by content if not given.

    Returns
    -------
    Errors, warnings and notes; the engine can use the map if none is an error.

    Raises
    ------
    FormatError
        A file of which nothing can be made.
    """
    return list(inspect_map(path, context, format=format).findings)


def read_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> Placement:
    """Read a placement file of any format.

    Parameters
    ----------
    path
        The file.
    context
        What the file does not say: the ranks for nearly every format, the model's layer ids for
        those that number layers from 0.
    format
        A name in ``equipoise explain maps``; found by content if not given.

    Raises
    ------
    FormatError
        A map with defects that leave its meaning in doubt; the message says how many and names the
        first. What only an engine would refuse does not keep a map from being read.
    EquipoiseError
        The context lacks what the file does not say.
    """
    return examine_map(path, context, format=format).placement


@dataclass(frozen=True, kw_only=True)
class MapReading:
    """All that one reading of a placement file gives.

    Parameters
    ----------
    placement
        What the file holds.
    findings
        Its warnings and notes, and the errors that leave no doubt about the placement: an engine
        would refuse the file, and another format of it is right.
    notes
        As ``map_notes``.
    """

    placement: Placement
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def examine_map(
    path: str | PathLike[str], context: MapContext = NOTHING_KNOWN, *, format: str | None = None
) -> MapReading:
    """As ``read_map``, with the warnings and notes that come with the placement."""
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
    """What is doubtful about a placement that was read, one sentence or two for each kind."""
    return [
        finding.text
        for finding in by_kind(reading.findings)
        if finding.severity is not Severity.NOTE
    ]


def map_notes(path: str | PathLike[str], *, format: str | None = None) -> tuple[str, ...]:
    """What a placement file says beyond the placement, and conversion to another format loses.

    Provenance, online re-planning, one list shared by all layers: sentences for the user.
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
        Facts of the deployment; SGLang's map needs ``num_hidden_layers``.

    Returns
    -------
    What the file does not say of the placement, one sentence each.

    Raises
    ------
    EquipoiseError
        A wrong suffix, a path that is no place for a file, a failure to write, a context that
        contradicts the placement, or a placement that the engine would refuse.
    """
    check_map_path(Path(path), format)
    return write_as(placement, Path(path), map_format(format), context)


def write_as(
    placement: Placement, path: Path, chosen: MapFormat, context: MapContext = NOTHING_KNOWN
) -> list[str]:
    """As ``write_map``, in a format that is given, such as one whose writer was told more.

    The name of the file is the caller's to check.
    """
    with replacing(path) as temporary:
        _write_proven(placement, path, temporary, chosen, _complete(context, placement))
    return chosen.losses(placement)


def write_maps(
    placements: Mapping[Path, Placement], *, format: str, context: MapContext = NOTHING_KNOWN
) -> list[list[str]]:
    """Write several placements for an engine as ``write_map`` does: all files or none.

    A folder that does not exist is made, inside one that does.

    Returns
    -------
    What each file does not say of its placement.

    Raises
    ------
    EquipoiseError
        As ``write_map``, for the first that fails.
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
    """Raise ``EquipoiseError`` for an unknown format, or a file name its engine would not take."""
    chosen = map_format(format)
    if chosen.write is None:
        written = ", ".join(known.name for known in map_formats() if known.write is not None)
        raise EquipoiseError(f"Maps of the format {format} are only read; choose one of {written}.")
    if path.suffix not in chosen.suffixes:
        raise EquipoiseError(
            f"{path}: a map for {chosen.name} needs a name that ends in exactly "
            f"{' or '.join(chosen.suffixes)}."
        )


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
    """The folder of an output, made where only that is missing, and gone again on failure."""
    folder = path.parent.resolve()  # where a link leads, if it is one
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
    """Name the file in errors that do not, since several are written."""
    try:
        yield
    except EquipoiseError as error:
        if f"{path}" in str(error):
            raise
        raise EquipoiseError(f"{path}: {error.message.marked}") from error


def _write_proven(
    placement: Placement, path: Path, temporary: Path, chosen: MapFormat, context: MapContext
) -> None:
    """Write, check by the format's own validator, read back and compare; messages name ``path``."""
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
    """The context with all that the placement knows; raises where the two disagree."""
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
    raw = _of_model(chosen.parse(path), context.model_key, path)
    if len(raw.rows) > MAX_LAYERS:
        raise FormatError(f"{path}: has {len(raw.rows):,} layers, more than any model.")
    return raw


def _of_model(raw: RawMap, key: str | None, path: Path) -> RawMap:
    """The map of the model asked for, where a file holds those of several."""
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
