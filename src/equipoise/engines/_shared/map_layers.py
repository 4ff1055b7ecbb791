"""Checks of the layers of any map, and warnings about facts that were missing for a check."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.engines._shared.findings import numbered
from equipoise.engines._shared.map_slots import Rules, check_rows, infer_experts
from equipoise.engines.formats import Finding, MapContext, RawMap, Severity
from equipoise.errors import Message, argument
from equipoise.layer_ids import format_ids

NOT_CHECKED = "W2"
GUESSED_LAYERS = "W4"

_LAYER_CHECKS = {
    "layer_ids": "whether the layers are the model's MoE layers",
    "num_hidden_layers": "whether every decoder layer has a row",
}


def check_ordered(raw: RawMap, context: MapContext, rules: Rules, row_count: str) -> list[Finding]:
    """Find all defects of a map whose rows are the MoE layers in order; ``row_count`` is a code."""
    num_layers = None if context.layer_ids is None else len(context.layer_ids)
    return [
        *check_rows(raw, context, rules),
        *check_row_count(raw, num_layers, row_count, "MoE layers"),
        *guessed_order(raw, context),
        *unchecked(raw, context),
    ]


def check_row_count(raw: RawMap, expected: int | None, code: str, what: str) -> list[Finding]:
    """Make a finding if the number of rows is not the number of layers."""
    if expected is None or len(raw.rows) == expected:
        return []
    return [
        Finding(
            code=code,
            message=f"{len(raw.rows)} layer rows; the model has {expected} {what}.",
            remedy=f"Give one row for each of the {expected} {what}.",
        )
    ]


def check_layer_keys(
    raw: RawMap, layer_ids: tuple[int, ...] | None, code: str, remedy: str
) -> list[Finding]:
    """Make findings for layers that the model or the file lacks."""
    if layer_ids is None:
        return []
    present = {key for key in raw.layer_keys if isinstance(key, int)}
    extra = sorted(present - set(layer_ids))
    absent = sorted(set(layer_ids) - present)
    return [
        Finding(code=code, message=message, remedy=remedy, layer=ids[0])
        for ids, message in (
            (extra, f"{_layers(extra)} no MoE layer of the model ({format_ids(layer_ids)})."),
            (
                absent,
                f"{_layers(absent)} missing; the model has MoE layers {format_ids(layer_ids)}.",
            ),
        )
        if ids
    ]


def check_layers_have_rows(
    raw: RawMap, layer_ids: tuple[int, ...] | None, code: str
) -> list[Finding]:
    """Make a finding if MoE layers lie beyond the rows of a file with a row per decoder layer."""
    beyond = [layer for layer in layer_ids or () if layer >= len(raw.rows)]
    if not beyond:
        return []
    return [
        Finding(
            code=code,
            message=f"{_layers(beyond)} without a row; the file has {len(raw.rows)} rows, "
            "numbered from 0.",
            remedy="Give a row for every decoder layer, dense ones included.",
            layer=beyond[0],
        )
    ]


def unchecked(raw: RawMap, context: MapContext, *layers: str) -> list[Finding]:
    """Make one warning that names what could not be checked because a fact is missing.

    ``layers`` are the context fields this format's layers are checked against.
    """
    unknown = {name: _LAYER_CHECKS[name] for name in layers if getattr(context, name) is None}
    if context.num_experts is None and raw.num_experts is None:
        highest = infer_experts(raw.rows) - 1
        unknown["num_experts"] = (
            f"whether the model has experts above {highest}, which no slot holds"
            if raw.rows
            else "whether the slots hold all experts"
        )
    if context.num_ranks is None and raw.num_ranks is None:
        unknown["num_ranks"] = "whether the slots divide evenly over the ranks" + (
            ", and whether a rank holds an expert twice" if raw.rows else ""
        )
    if not unknown:
        return []
    return [
        Finding(
            code=NOT_CHECKED,
            message=f"Not checked: {'; '.join(unknown.values())}.",
            remedy=Message(f"Give {', '.join(map(argument, unknown))}."),
            severity=Severity.WARNING,
        )
    ]


def guessed_order(raw: RawMap, context: MapContext) -> list[Finding]:
    """Make a warning if rows are only numbered by order and the layer numbers are unknown."""
    if context.layer_ids is not None:
        return []
    return [
        Finding(
            code=GUESSED_LAYERS,
            message="The file does not say which layers of the model its rows are, or whether "
            "every MoE layer has one; they are taken as "
            f"{numbered(range(len(raw.rows)))}, in order.",
            remedy=Message(f"Give {argument('layer_ids')}, the model's numbers of its MoE layers."),
            severity=Severity.WARNING,
        )
    ]


def guessed_decoder_rows(raw: RawMap, context: MapContext) -> list[Finding]:
    """Make a warning if a file has rows for dense layers too and these are unknown."""
    if context.layer_ids is not None:
        return []
    return [
        Finding(
            code=GUESSED_LAYERS,
            message="The file has a row for every decoder layer and does not say which are dense; "
            f"{numbered(range(len(raw.rows)))} are all taken as MoE layers.",
            remedy=Message(f"Give {argument('layer_ids')}, the model's numbers of its MoE layers."),
            severity=Severity.WARNING,
        )
    ]


def _layers(ids: Sequence[int]) -> str:
    return f"{numbered(ids).capitalize()} {'is' if len(ids) == 1 else 'are'}"
