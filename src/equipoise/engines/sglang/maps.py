"""SGLang's expert location: the map that ``--init-expert-location`` names.

A row per decoder layer, dense ones included. Rules S1 to S5: ``equipoise explain maps``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.findings import describe, repeated_keys, unknown_keys
from equipoise.engines._shared.map_layers import (
    check_layers_have_rows,
    check_row_count,
    guessed_decoder_rows,
    unchecked,
)
from equipoise.engines._shared.map_rows import build, format_rows, rows_by_layer
from equipoise.engines._shared.map_slots import SAME_RANK, Rules, check_rows, shape_of
from equipoise.engines._shared.map_text import (
    parse_map_json,
    peek_json,
    read_text,
    refuse_foreign,
    stated,
)
from equipoise.engines.files import write_text
from equipoise.engines.formats import (
    NOTHING_KNOWN,
    Finding,
    MapContext,
    MapFormat,
    RawMap,
    Severity,
)
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.placement import Placement

KEY = "physical_to_logical_map"
_LOAD_KEY = "logical_count"
_COLLAPSE = "W3"
_OF_VLLM = "logical_replica_count"  # vLLM's state has the same key; SGLang's has no such neighbour
_RULES = Rules(ids="S4", missing="S4", width="S3", slots="S3", stated="S3", redundancy="S3")


def write(placement: Placement, path: Path, context: MapContext = NOTHING_KNOWN) -> None:
    """Write a map, ``.json`` or ``.pt`` by the file's suffix.

    Parameters
    ----------
    context
        ``num_hidden_layers`` is needed: the file has a row for every decoder layer, and those
        without experts are filled with ``s % E``.

    Raises
    ------
    EquipoiseError
        ``num_hidden_layers`` is not given, or a layer of the placement lies beyond it.
    """
    if context.num_hidden_layers is None:
        raise EquipoiseError(
            "SGLang's map has a row for every decoder layer, dense ones included; "
            f"give {argument('num_hidden_layers')}."
        )
    rows = rows_by_layer(placement, context.num_hidden_layers)
    if path.suffix == ".pt":
        torch_archive.save(path, {KEY: rows})
    else:
        write_text(path, f'{{"{KEY}": {format_rows(rows)}}}\n')


def _is_archive(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _matches(path: Path) -> bool:
    if _is_archive(path):
        try:
            root = torch_archive.outline(path)
        except FormatError:
            return False
    else:
        root = peek_json(path)
    if not isinstance(root, dict) or _OF_VLLM in root or stated(root) is not None:
        return False
    return root.get(KEY) is not None or (KEY in root and _LOAD_KEY not in root)


def _parse(path: Path) -> RawMap:
    archive = _is_archive(path)
    root, repeated = (
        (torch_archive.load(path), []) if archive else parse_map_json(read_text(path), path)
    )
    if isinstance(root, dict) and KEY not in root and _LOAD_KEY in root:
        raise FormatError(
            f"{path}: holds {_LOAD_KEY}, loads from which SGLang plans by itself, not a map; "
            "read it as a trace and plan from it."
        )
    refuse_foreign(root, path, "SGLang's --init-expert-location")
    if not isinstance(root, dict) or KEY not in root:
        raise FormatError(f"{path}: expected a mapping with the key {KEY}.")
    rows = _rows(root[KEY], path)
    return RawMap(
        rows=rows,
        layer_keys=range(len(rows)),
        findings=(
            *repeated_keys(repeated, "S1"),
            *unknown_keys(root, (KEY,), "S1", "The file"),
            *_check_suffix(path.suffix, ".pt" if archive else ".json"),
        ),
    )


def _rows(value: Any, path: Path) -> list[Any]:
    """Rows of whatever is in them; a tensor's elements become Python numbers of their own kind."""
    if isinstance(value, np.ndarray) and value.ndim == 2:
        value = value.tolist()
    if not isinstance(value, list) or not value:
        raise FormatError(
            f"{path}: {KEY} is {describe(value)}; expected a row of expert ids per layer."
        )
    return value


def _check_suffix(suffix: str, expected: str) -> list[Finding]:
    if suffix == expected:
        return []
    return [
        Finding(
            code="S5",
            message=f"The file name ends in {suffix!r}; SGLang would not read it as the "
            f"{expected} file it is.",
            remedy=f"Rename it to end in exactly {expected}.",
            readable=True,
        )
    ]


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    findings = check_rows(raw, context, _RULES)
    if context.layer_ids is not None:  # a dense row has no copies that could share a rank
        findings = [f for f in findings if f.code != SAME_RANK or f.layer in context.layer_ids]
    return [
        *findings,
        *check_row_count(raw, context.num_hidden_layers, "S2", "decoder layers"),
        *check_layers_have_rows(raw, context.layer_ids, "S2"),
        *_check_collapse(raw, context),
        *guessed_decoder_rows(raw, context),
        *unchecked(raw, context, "num_hidden_layers"),
    ]


def _check_collapse(raw: RawMap, context: MapContext) -> list[Finding]:
    shape = shape_of(raw, context)
    if shape.num_slots <= shape.num_experts:
        return []
    return [
        Finding(
            code=_COLLAPSE,
            message="With an all-to-all backend each rank keeps only its nearest copy of an expert "
            "of a map given as a file, under every dispatch algorithm.",
            remedy="Expect an even split over the copies only from --moe-a2a-backend none, or for "
            "experts without a copy on the token's own rank or node.",
            severity=Severity.NOTE,
        )
    ]


def _to_placement(raw: RawMap, context: MapContext) -> Placement:
    """All rows, or those of the model's MoE layers where these are known."""
    layers = range(len(raw.rows)) if context.layer_ids is None else context.layer_ids
    return build([raw.rows[layer] for layer in layers], layers, raw, context)


def _losses(placement: Placement) -> list[str]:
    return [
        f"The file does not say that its slots are spread over {placement.num_ranks} ranks.",
        "The file does not say which of its rows are MoE layers: it has one for every decoder "
        "layer.",
    ]


FORMAT = MapFormat(
    name="sglang",
    summary="SGLang's --init-expert-location, a row per decoder layer",
    suffixes=(".json", ".pt"),
    matches=_matches,
    parse=_parse,
    check=_check,
    to_placement=_to_placement,
    write=write,
    losses=_losses,
    decoder_rows=True,
    signature=rf'\A\s*{{\s*"{KEY}"',
)
