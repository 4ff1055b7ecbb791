"""The map files of HYGON's plug-in for vLLM, which record a layout and load it at start; read only.

Version 1 holds one map, version 2 a map for each model (the drafter has its own) and, with pipeline
parallelism, each stage. Rules X1 to X7: ``equipoise explain maps``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equipoise.engines._shared.findings import describe, is_int, repeated_keys
from equipoise.engines._shared.map_layers import check_ordered
from equipoise.engines._shared.map_rows import build_ordered
from equipoise.engines._shared.map_slots import Rules
from equipoise.engines._shared.map_text import parse_map_json, peek_json, read_text
from equipoise.engines.formats import Finding, MapContext, MapFormat, RawMap
from equipoise.errors import FormatError, Message, argument

_FAMILY = "vllm_offline_eplb_"
_VERSIONS = {
    "vllm_offline_eplb_physical_to_logical": 1,
    "vllm_offline_eplb_physical_to_logical_by_model": 2,
}
_ROWS, _MODELS = "physical_to_logical_map", "model_maps"
_COUNTS = (
    "num_moe_layers",
    "num_logical_experts",
    "num_physical_experts",
    "num_redundant_experts",
)
_DRAFT_ROWS = Message(
    "The rows are MoE layers in order, and the file does not say whether the last ones are draft "
    f"(MTP) layers. If they are, give {argument('layer_ids')} with numbers for these too."
)
_RULES = Rules(ids="X1", missing="X1", width="X2", slots="X3", stated="X3", redundancy="X2")


def _format(document: Any) -> str:
    """Return the format that a document states, if the plug-in has it; else an empty text."""
    name = document.get("format") if isinstance(document, dict) else None
    return name if isinstance(name, str) and name.startswith(_FAMILY) else ""


def _matches(path: Path) -> bool:
    return bool(_format(peek_json(path)))


def _parse(path: Path) -> RawMap:
    document, repeated = parse_map_json(read_text(path), path)
    name = _format(document)
    if name not in _VERSIONS:
        found = document.get("format") if isinstance(document, dict) else document
        raise FormatError(
            f"{path}: the format is {describe(found)}; known are {' and '.join(_VERSIONS)}."
        )
    findings = [*repeated_keys(repeated, "X6"), *_check_version(document, _VERSIONS[name])]
    if _VERSIONS[name] == 1:
        return _entry(document, path, findings, (_DRAFT_ROWS,))
    models = document.get(_MODELS)
    if not isinstance(models, dict) or not models:
        raise FormatError(f"{path}: {_MODELS} is {describe(models)}; expected a map by model.")
    return RawMap(
        findings=tuple(findings),
        models={key: _entry(entry, path, [], (), key) for key, entry in models.items()},
    )


def _check_version(document: dict[str, Any], expected: int) -> list[Finding]:
    version = document.get("version")
    if is_int(version) and version == expected:
        return []
    return [
        Finding(
            code="X7",
            message=f"version is {describe(version)}; known with this format is {expected}.",
            remedy="Let the plug-in write the file again in that version.",
        )
    ]


def _entry(
    entry: Any, path: Path, findings: list[Finding], notes: tuple[str, ...], model: str = ""
) -> RawMap:
    """Return the map of one model."""
    rows = entry.get(_ROWS) if isinstance(entry, dict) else None
    if not isinstance(rows, list) or not rows:
        where = f" of {describe(model)}" if model else ""
        raise FormatError(
            f"{path}: {_ROWS}{where} is {describe(rows)}; expected a row of expert ids per layer."
        )
    counts = {key: entry[key] for key in _COUNTS if key in entry}
    if entry.get("record_kind") == "initial":
        notes = (*notes, "The layout the engine started with, not one it planned.")
    return RawMap(
        rows=rows,
        layer_keys=range(len(rows)),
        num_experts=_count(counts.get("num_logical_experts")),
        findings=(*findings, *_check_counts(counts, rows)),
        notes=notes,
    )


def _count(value: object) -> int | None:
    return value if is_int(value) and value > 0 else None


def _check_counts(counts: dict[str, Any], rows: list[Any]) -> list[Finding]:
    """Check the counts that a file states against its rows."""
    slots = next((len(row) for row in rows if isinstance(row, list)), 0)
    expected = {"num_moe_layers": len(rows), "num_physical_experts": slots}
    experts = counts.get("num_logical_experts")
    if is_int(experts):
        expected["num_redundant_experts"] = slots - experts
    return [
        Finding(
            code="X6",
            message=f"{name} is {describe(counts[name])}; the rows have {value}.",
            remedy="Let the plug-in write the file again; its counts and rows disagree.",
        )
        for name, value in expected.items()
        if name in counts and (not is_int(counts[name]) or counts[name] != value)
    ]


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    return check_ordered(raw, context, _RULES, "X5")


FORMAT = MapFormat(
    name="vllm-hygon",
    summary="JSON that HYGON's plug-in for vLLM records, one map or one a model (read only)",
    matches=_matches,
    parse=_parse,
    check=_check,
    to_placement=build_ordered,
    by_model=True,
    signature=f'"{_FAMILY}',
)
