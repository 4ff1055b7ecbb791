"""Reading, checking and writing placement files of every engine."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path

from equipoise.engines.ascend import expert_map
from equipoise.engines.files import check_readable, replacing
from equipoise.engines.formats import Finding, MapContext, MapFormat, Severity
from equipoise.engines.map_checks import NOTHING_KNOWN
from equipoise.engines.native import map_file as native_map
from equipoise.engines.sglang import location
from equipoise.engines.trtllm import map_file as trtllm_map
from equipoise.engines.vllm import map_files as vllm_maps
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

MAP_FORMATS: tuple[MapFormat, ...] = (
    native_map.FORMAT,
    trtllm_map.FORMAT,
    location.FORMAT,
    *vllm_maps.FORMATS,
    expert_map.FORMAT,
)
"""Every kind of placement file; a new one is added here."""


def map_format(name: str) -> MapFormat:
    """The format of a name, as users type it."""
    for known in MAP_FORMATS:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in MAP_FORMATS)
    raise EquipoiseError(f"There is no map format {name!r}; choose one of {names}.")


def detect_map(path: str | PathLike[str]) -> MapFormat:
    """The format of a placement file, by its content.

    Raises
    ------
    FormatError
        No such file, no known format, or several that fit; the message lists them.
    """
    path = _existing(path)
    found = [known for known in MAP_FORMATS if known.matches(path)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(known.name for known in found)
        raise FormatError(f"{path}: may be {names}, which look alike; name the format.")
    names = ", ".join(known.name for known in MAP_FORMATS)
    raise FormatError(
        f"{path}: is no placement file of a known format ({names}). If it is damaged, name the "
        "format to learn what is wrong with it."
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
        A name of ``MAP_FORMATS``; found by content if not given.

    Returns
    -------
    Errors and warnings; the engine can use the map if none is an error.

    Raises
    ------
    FormatError
        A file of which nothing can be made.
    """
    path = _existing(path)
    chosen = _choose(path, format)
    return chosen.check(chosen.parse(path), context)


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
        A name of ``MAP_FORMATS``; found by content if not given.

    Raises
    ------
    FormatError
        A map with defects; the message says how many and names the first.
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
        Its warnings; a file with errors is not read.
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
    raw = chosen.parse(path)
    findings = chosen.check(raw, context)
    _refuse_errors(findings, f"{path}")
    try:
        placement = chosen.to_placement(raw, context)
    except EquipoiseError as error:
        raise EquipoiseError(f"{path}: {error}") from error
    return MapReading(placement=placement, findings=tuple(findings), notes=raw.notes)


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
    """Write a placement for an engine, proven before it takes its name.

    The file is written beside ``path``, checked by the format's own validator, read back and
    compared with the placement; only then does it replace ``path``.

    Parameters
    ----------
    placement
        What to write.
    path
        The file; its suffix must be one of the format's.
    format
        A name of ``MAP_FORMATS``.
    context
        The deployment; SGLang's map needs ``num_hidden_layers``.

    Returns
    -------
    What the file does not say of the placement, one sentence each.

    Raises
    ------
    EquipoiseError
        A wrong suffix, a path that is no place for a file, a failure to write, a context that
        contradicts the placement, or a placement that the engine would refuse.
    """
    path, chosen = Path(path), map_format(format)
    check_map_path(path, format)
    _write_proven(placement, path, chosen, _complete(context, placement))
    return chosen.losses(placement)


def check_map_path(path: Path, format: str) -> None:
    """Raise ``EquipoiseError`` for an unknown format, or a file name its engine would not take."""
    chosen = map_format(format)
    if path.suffix not in chosen.suffixes:
        raise EquipoiseError(
            f"{path}: a map for {chosen.name} needs a name that ends in exactly "
            f"{' or '.join(chosen.suffixes)}."
        )


def _write_proven(placement: Placement, path: Path, chosen: MapFormat, context: MapContext) -> None:
    with replacing(path) as temporary:
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


def _refuse_errors(findings: list[Finding], where: str) -> None:
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        first = errors[0]
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors, the first"
        raise FormatError(f"{where}: {count} ({first.code}): {first.message} {first.remedy}")


def _choose(path: Path, name: str | None) -> MapFormat:
    return detect_map(path) if name is None else map_format(name)


def _existing(path: str | PathLike[str]) -> Path:
    path = Path(path)
    check_readable(path)
    if path.is_dir():
        raise FormatError(f"{path} is a folder; a placement is one file.")
    return path
