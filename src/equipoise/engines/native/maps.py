"""Our own placement file: self-describing JSON with a checksum.

Rules N1 to N7: ``equipoise explain maps``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.engines._shared.findings import (
    describe,
    has_errors,
    is_int,
    repeated_keys,
    unknown_keys,
)
from equipoise.engines._shared.map_layers import check_layer_keys
from equipoise.engines._shared.map_rows import build
from equipoise.engines._shared.map_slots import Rules, check_rows
from equipoise.engines._shared.map_text import parse_map_json, peek_json, read_text
from equipoise.engines.files import write_text
from equipoise.engines.formats import NOTHING_KNOWN, Finding, MapContext, MapFormat, RawMap
from equipoise.errors import FormatError
from equipoise.placement import Placement

_FORMAT = "equipoise.map"
_VERSION = 1
_COUNTS = ("num_ranks", "num_experts", "num_slots")
_KEYS = ("format", "version", *_COUNTS, "checksum", "provenance", "layers")
_PROVENANCE = ("created_by", "planner", "trace")
_RULES = Rules(ids="N5", missing="N5", width="N4", slots="N3", stated="N3", redundancy="N3")


def write(placement: Placement, path: Path, context: MapContext = NOTHING_KNOWN) -> None:
    """Write a placement; equal placements and provenances give equal bytes.

    Only ``planner`` and ``trace`` of the context are used; the placement has all other facts.
    """
    provenance = {
        "created_by": f"equipoise {__version__}",
        "planner": context.planner,
        "trace": context.trace,
    }
    head: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "num_ranks": placement.num_ranks,
        "num_experts": placement.num_experts,
        "num_slots": placement.num_slots,
        "checksum": placement.checksum,
        "provenance": {key: value for key, value in provenance.items() if value is not None},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    layers = [
        json.dumps({"id": layer, "slots": row})
        for layer, row in zip(placement.layer_ids, placement.slots.tolist(), strict=True)
    ]
    text = "\n".join(["{", *lines, '"layers": [', ",\n".join(layers), "]", "}", ""])
    write_text(path, text)


def _matches(path: Path) -> bool:
    document = peek_json(path)
    return isinstance(document, dict) and document.get("format") == _FORMAT


def _parse(path: Path) -> RawMap:
    document, repeated = parse_map_json(read_text(path), path)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FormatError(f'{path}: expected a JSON object with "format": "{_FORMAT}".')
    layers = document.get("layers")
    if not isinstance(layers, list) or not layers:
        raise FormatError(f"{path}: layers is {describe(layers)}; expected a list of layers.")
    findings = [
        *repeated_keys(repeated, "N1"),
        *_check_keys(document),
        *_check_version(document.get("version")),
    ]
    counts = {name: _count(document, name, findings) for name in _COUNTS}
    keys, rows = _layers(layers, findings)
    raw = RawMap(
        rows=rows,
        layer_keys=keys,
        findings=tuple(findings),
        notes=_provenance_notes(document.get("provenance")),
        num_ranks=counts["num_ranks"],
        num_experts=counts["num_experts"],
        num_slots=counts["num_slots"],
    )
    return replace(raw, findings=(*findings, *_check_checksum(raw, document.get("checksum"))))


def _check_keys(document: dict[str, Any]) -> list[Finding]:
    findings = unknown_keys(document, _KEYS, "N1", "The file")
    provenance = document.get("provenance")
    if isinstance(provenance, dict):
        findings += unknown_keys(provenance, _PROVENANCE, "N1", "provenance")
    elif "provenance" in document:
        findings.append(
            Finding(
                code="N1",
                message=f"provenance is {describe(provenance)}; expected a mapping.",
                remedy=f"Write a mapping of {', '.join(_PROVENANCE)}, or an empty one.",
            )
        )
    absent = [key for key in _KEYS if key not in document]
    if absent:
        findings.append(
            Finding(
                code="N1",
                message=f"The file has no {', '.join(absent)}.",
                remedy="Write the file again; every key is needed.",
            )
        )
    return findings


def _check_version(version: object) -> list[Finding]:
    if is_int(version) and version == _VERSION:
        return []
    return [
        Finding(
            code="N2",
            message=f"version is {describe(version)}; this release knows {_VERSION}.",
            remedy="Read the file with the release of equipoise that wrote it, or a later one.",
        )
    ]


def _count(document: dict[str, Any], name: str, findings: list[Finding]) -> int | None:
    value = document.get(name)
    if is_int(value) and value > 0:
        return int(value)
    if name in document:  # _check_keys reports an absent key
        findings.append(
            Finding(
                code="N3",
                message=f"{name} is {describe(value)}; expected a positive integer.",
                remedy="Write the count as a plain integer.",
            )
        )
    return None


def _layers(layers: list[Any], findings: list[Finding]) -> tuple[list[int | str], list[Any]]:
    keys: list[int | str] = []
    rows: list[Any] = []
    for position, layer in enumerate(layers):
        where = f"Layer entry {position}"
        if not isinstance(layer, dict):
            findings.append(_bad_entry(f"{where} is {describe(layer)}; expected a mapping."))
            continue
        findings += unknown_keys(layer, ("id", "slots"), "N1", where)
        key = layer.get("id")
        if not is_int(key) or key < 0 or (keys and is_int(keys[-1]) and key <= keys[-1]):
            findings.append(
                _bad_entry(f"{where} has the id {describe(key)}; ids are integers that ascend.")
            )
            key = where
        keys.append(key)
        rows.append(layer.get("slots"))
    return keys, rows


def _bad_entry(message: str) -> Finding:
    return Finding(
        code="N6",
        message=message,
        remedy='Write {"id": the model\'s layer number, "slots": [...]}, ascending by id.',
    )


def _check_checksum(raw: RawMap, checksum: object) -> list[Finding]:
    """Compare the checksum with the content, if the content is a placement."""
    if has_errors(check_rows(raw, MapContext(), _RULES)):
        return []
    actual = _to_placement(raw, MapContext()).checksum
    if actual == checksum:
        return []
    return [
        Finding(
            code="N7",
            message=f"The content has the checksum {actual[:12]}..., the file states "
            f"{describe(checksum)}: it was changed after it was written.",
            remedy="Use the file as it was written; edit a plan by planning again.",
        )
    ]


def _provenance_notes(provenance: object) -> tuple[str, ...]:
    if not isinstance(provenance, dict):
        return ()
    return tuple(f"{key}: {provenance[key]}" for key in _PROVENANCE if key in provenance)


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    return [
        *check_rows(raw, context, _RULES),
        *check_layer_keys(
            raw, context.layer_ids, "N6", "Plan for this model, or correct the layers given."
        ),
    ]


def _to_placement(raw: RawMap, context: MapContext) -> Placement:
    return build(raw.rows, [int(key) for key in raw.layer_keys], raw, context)


FORMAT = MapFormat(
    name="equipoise",
    summary="neutral, self-describing JSON with a checksum",
    suffixes=(".json",),
    matches=_matches,
    parse=_parse,
    check=_check,
    to_placement=_to_placement,
    write=write,
    signature=f'"{_FORMAT}"',
)
