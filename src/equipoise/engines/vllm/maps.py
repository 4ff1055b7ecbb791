"""The placement files proposed for vLLM. No release reads one; each proposal has its own format.

Named by pull request: 41141 (a JSONL record), 49572 and 53022 (JSON lists of the same form that
count layers differently). Rules X1 to X7: ``equipoise explain maps``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.engines._shared.findings import describe, is_int, repeated_keys, unknown_keys
from equipoise.engines._shared.map_layers import (
    check_layers_have_rows,
    check_row_count,
    guessed_decoder_rows,
    guessed_order,
    unchecked,
)
from equipoise.engines._shared.map_rows import build, build_ordered, format_rows, rows_by_layer
from equipoise.engines._shared.map_slots import Rules, check_rows, infer_experts, shape_of
from equipoise.engines._shared.map_text import parse_map_json, peek_json, read_text
from equipoise.engines.files import write_text
from equipoise.engines.formats import NOTHING_KNOWN, Finding, MapContext, MapFormat, RawMap
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement

MAX_REDUNDANT = 1023  # the engine's tables hold 1024 copies of an expert
_RECORD_TYPE = "eplb_initial_mapping"
_VERSION = 1
_RECORD_KEYS = (
    "record_type",
    "version",
    "num_redundant_experts",
    "num_slots",
    "initial_global_assignments",
)
_SHARED = "all"  # the key of a single row that serves every layer
_LIST_RULES = Rules(ids="X1", missing="X1", width="X2", slots="X3", stated="X3", redundancy="X2")
_RECORD_RULES = Rules(ids="X1", missing="X1", width="X2", slots="X3", stated="X3", redundancy="X6")


def _losses(placement: Placement) -> list[str]:
    losses = [f"The file does not say that its slots are spread over {placement.num_ranks} ranks."]
    if placement.layer_ids != tuple(range(placement.num_layers)):
        losses.append(
            f"The file numbers the MoE layers from 0; that they are the model's layers "
            f"{format_ids(placement.layer_ids)} is not in it."
        )
    return losses


def _check_limit(raw: RawMap, context: MapContext) -> list[Finding]:
    shape = shape_of(raw, context)
    redundant = shape.num_slots - shape.num_experts
    if redundant <= MAX_REDUNDANT:
        return []
    return [
        Finding(
            code="X4",
            message=f"{redundant} redundant slots; vLLM takes at most {MAX_REDUNDANT}.",
            remedy=f"Plan with at most {shape.num_experts + MAX_REDUNDANT} slots.",
            readable=True,
        )
    ]


def _moe_layers(context: MapContext) -> int | None:
    return None if context.layer_ids is None else len(context.layer_ids)


# The record of pull request 41141 -----------------------------------------------------------------


def write_record(placement: Placement, path: Path, context: MapContext = NOTHING_KNOWN) -> None:
    """Write the JSONL record of pull request 41141; layers are numbered in MoE order."""
    del context
    rows = placement.slots.tolist()
    record = {
        "record_type": _RECORD_TYPE,
        "version": _VERSION,
        "num_redundant_experts": placement.num_redundant,
        "num_slots": placement.num_slots,
        "initial_global_assignments": {str(i): row for i, row in enumerate(rows)},
    }
    write_text(path, json.dumps(record) + "\n")


def _matches_record(path: Path) -> bool:
    try:
        record = parse_map_json(_lines(path)[0], path)[0]
    except FormatError:
        return False
    return isinstance(record, dict) and record.get("record_type") == _RECORD_TYPE


def _lines(path: Path) -> list[str]:
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise FormatError(f"{path}: is empty; expected a record of type {_RECORD_TYPE}.")
    return lines


def _parse_record(path: Path) -> RawMap:
    lines = _lines(path)
    record, repeated = parse_map_json(lines[0], path)
    if not isinstance(record, dict) or record.get("record_type") != _RECORD_TYPE:
        raise FormatError(f'{path}: expected a record with "record_type": "{_RECORD_TYPE}".')
    assignments = record.get("initial_global_assignments")
    if not isinstance(assignments, dict) or not assignments:
        raise FormatError(
            f"{path}: initial_global_assignments is {describe(assignments)}; expected a list of "
            "experts per layer."
        )
    rows = list(assignments.values())
    findings = [
        *repeated_keys(repeated, "X6"),
        *unknown_keys(record, _RECORD_KEYS, "X6", "The record"),
        *_check_version(record.get("version")),
        *_check_single(lines),
        *_check_order(list(assignments)),
        *_check_counts(record, rows),
    ]
    return RawMap(
        rows=rows,
        layer_keys=list(assignments),
        num_experts=_stated_experts(record),
        num_slots=_stated_slots(record, rows),
        findings=tuple(findings),
    )


def _check_version(version: object) -> list[Finding]:
    if is_int(version) and version == _VERSION:
        return []
    return [
        Finding(
            code="X7",
            message=f"version is {describe(version)}; only {_VERSION} is known.",
            remedy="Write the record again in the version the engine reads.",
        )
    ]


def _check_single(lines: list[str]) -> list[Finding]:
    if len(lines) == 1:
        return []
    return [
        Finding(
            code="X6",
            message=f"{len(lines)} lines; a map is one record on one line.",
            remedy="Keep the one record that is meant.",
        )
    ]


def _check_order(keys: list[str]) -> list[Finding]:
    expected = [str(i) for i in range(len(keys))]
    if keys == expected:
        return []
    wrong = next(key for key, name in zip(keys, expected, strict=True) if key != name)
    return [
        Finding(
            code="X5",
            message=f"The layer key {wrong!r} breaks the order; expected the keys 0 to "
            f"{len(keys) - 1}, which number the MoE layers only.",
            remedy="Number the MoE layers from 0 in their order, dense layers left out.",
            layer=wrong,
        )
    ]


def _check_counts(record: dict[str, Any], rows: list[Any]) -> list[Finding]:
    findings = [
        Finding(
            code="X6",
            message=f"{name} is {describe(record.get(name))}; expected an integer from 0.",
            remedy="Write the count as a plain integer.",
        )
        for name in ("num_redundant_experts", "num_slots")
        if not _is_count(record.get(name))
    ]
    if _is_count(record.get("num_slots")) and _stated_slots(record, rows) is None:
        findings.append(
            Finding(
                code="X6",
                message=f"num_slots is {describe(record['num_slots'])}; no layer's list has that "
                "length.",
                remedy="Write the length of the lists.",
            )
        )
    return findings


def _is_count(value: object) -> bool:
    return is_int(value) and value >= 0


def _stated_slots(record: dict[str, Any], rows: list[Any]) -> int | None:
    """Return ``num_slots`` if it is the length of at least one list; else the lists decide."""
    slots = record.get("num_slots")
    lengths = {len(row) for row in rows if isinstance(row, list)}
    return slots if is_int(slots) and slots in lengths else None


def _stated_experts(record: dict[str, Any]) -> int | None:
    """Return ``E`` as the record's counts imply it."""
    slots, redundant = record.get("num_slots"), record.get("num_redundant_experts")
    return slots - redundant if is_int(slots) and is_int(redundant) else None


def _check_record(raw: RawMap, context: MapContext) -> list[Finding]:
    return [
        *check_rows(replace(raw, num_experts=None), context, _RECORD_RULES),
        *_check_stated_experts(raw, context),
        *check_row_count(raw, _moe_layers(context), "X5", "MoE layers"),
        *_check_limit(raw, context),
        *guessed_order(raw, context),
        *unchecked(raw, context),
    ]


def _check_stated_experts(raw: RawMap, context: MapContext) -> list[Finding]:
    known = context.num_experts
    experts = infer_experts(raw.rows) if known is None else known
    if raw.num_experts is None or raw.num_experts == experts:
        return []
    holder = "the lists hold" if known is None else "the model has"
    return [
        Finding(
            code="X6",
            message="num_slots minus num_redundant_experts is "
            f"{describe(raw.num_experts)} experts; {holder} {experts}.",
            remedy="Give the number of redundant slots that the lists have.",
        )
    ]


# The lists of pull requests 49572 and 53022 -------------------------------------------------------


def write_moe_list(placement: Placement, path: Path, context: MapContext = NOTHING_KNOWN) -> None:
    """Write the list of pull request 49572, a row per MoE layer."""
    del context
    write_text(path, format_rows(placement.slots) + "\n")


def write_decoder_list(
    placement: Placement, path: Path, context: MapContext = NOTHING_KNOWN
) -> None:
    """Write the list of pull request 53022, a row per decoder and draft layer.

    Parameters
    ----------
    context
        ``num_hidden_layers`` is needed; draft (MTP) layers in the placement add their rows. Layers
        the placement does not have are filled with ``s % E``.
    """
    if context.num_hidden_layers is None:
        raise EquipoiseError(
            "The list of vLLM's pull request 53022 has a row for every decoder and draft "
            f"layer; give {argument('num_hidden_layers')}."
        )
    num_rows = max(context.num_hidden_layers, placement.layer_ids[-1] + 1)
    write_text(path, format_rows(rows_by_layer(placement, num_rows)) + "\n")


def _matches_list(path: Path) -> bool:
    document = peek_json(path)
    if not isinstance(document, list) or not document:
        return False
    rows = document if all(isinstance(entry, list) for entry in document) else [document]
    values = [(value, len(row)) for row in rows for value in row]
    # Ids are below the number of slots, a few broken ones aside; a table of counts is not.
    ids = sum(is_int(value) and 0 <= value < slots for value, slots in values)
    return 2 * ids > len(values)


def _parse_list(path: Path) -> RawMap:
    document = parse_map_json(read_text(path), path)[0]
    if not isinstance(document, list) or not document:
        raise FormatError(
            f"{path}: holds {describe(document)}; expected a list of expert ids, or one per layer."
        )
    if not any(isinstance(entry, list) for entry in document):
        note = f"One list for all layers, {len(document)} slots."
        return RawMap(rows=[document], layer_keys=[_SHARED], notes=(note,))
    return RawMap(rows=document, layer_keys=range(len(document)))


def _is_shared(raw: RawMap) -> bool:
    return list(raw.layer_keys) == [_SHARED]


def _check_list(raw: RawMap, context: MapContext, num_rows: int | None, what: str) -> list[Finding]:
    return [
        *check_rows(raw, context, _LIST_RULES),
        *([] if _is_shared(raw) else check_row_count(raw, num_rows, "X5", what)),
        *_check_limit(raw, context),
    ]


def _check_moe_list(raw: RawMap, context: MapContext) -> list[Finding]:
    return [
        *_check_list(raw, context, _moe_layers(context), "MoE layers"),
        *([] if _is_shared(raw) else guessed_order(raw, context)),
        *unchecked(raw, context, *(["layer_ids"] if _is_shared(raw) else [])),
    ]


def _check_decoder_list(raw: RawMap, context: MapContext) -> list[Finding]:
    num_rows = context.num_hidden_layers
    if num_rows is not None and context.layer_ids:
        num_rows = max(num_rows, context.layer_ids[-1] + 1)
    return [
        *_check_list(raw, context, num_rows, "decoder and draft layers"),
        *([] if _is_shared(raw) else check_layers_have_rows(raw, context.layer_ids, "X5")),
        *([] if _is_shared(raw) else guessed_decoder_rows(raw, context)),
        *unchecked(raw, context, "num_hidden_layers", *(["layer_ids"] if _is_shared(raw) else [])),
    ]


def _shared_rows(raw: RawMap, context: MapContext) -> tuple[list[Any], tuple[int, ...]]:
    if context.layer_ids is None:
        raise EquipoiseError(
            f"The file holds one list for all MoE layers; give {argument('layer_ids')}."
        )
    return [raw.rows[0]] * len(context.layer_ids), context.layer_ids


def _moe_list_to_placement(raw: RawMap, context: MapContext) -> Placement:
    if _is_shared(raw):
        rows, layers = _shared_rows(raw, context)
        return build(rows, layers, raw, context)
    return build_ordered(raw, context)


def _decoder_list_to_placement(raw: RawMap, context: MapContext) -> Placement:
    if _is_shared(raw):
        rows, layers = _shared_rows(raw, context)
        return build(rows, layers, raw, context)
    chosen = range(len(raw.rows)) if context.layer_ids is None else context.layer_ids
    return build([raw.rows[layer] for layer in chosen], chosen, raw, context)


def _decoder_losses(placement: Placement) -> list[str]:
    return [
        f"The file does not say that its slots are spread over {placement.num_ranks} ranks.",
        "The file does not say which of its rows are MoE layers: it has one for every decoder and "
        "draft layer.",
    ]


FORMATS = (
    MapFormat(
        name="vllm-41141",
        version="pr-41141",
        summary="JSONL record proposed for vLLM in pull request 41141 (no release reads it)",
        suffixes=(".jsonl", ".json"),
        matches=_matches_record,
        parse=_parse_record,
        check=_check_record,
        to_placement=build_ordered,
        write=write_record,
        losses=_losses,
        signature=f'"{_RECORD_TYPE}"',
    ),
    MapFormat(
        name="vllm-49572",
        version="pr-49572",
        summary="JSON list proposed for vLLM in pull request 49572, a row per MoE layer "
        "(no release reads it)",
        suffixes=(".json",),
        matches=_matches_list,
        parse=_parse_list,
        check=_check_moe_list,
        to_placement=_moe_list_to_placement,
        write=write_moe_list,
        losses=_losses,
    ),
    MapFormat(
        name="vllm-53022",
        version="pr-53022",
        summary="JSON list proposed for vLLM in pull request 53022 for DeepSeek V4, a row per "
        "decoder and draft layer (no release reads it)",
        suffixes=(".json",),
        matches=_matches_list,
        parse=_parse_list,
        check=_check_decoder_list,
        to_placement=_decoder_list_to_placement,
        write=write_decoder_list,
        losses=_decoder_losses,
        decoder_rows=True,
    ),
)
