"""vllm-ascend's ``expert_map.json`` and the tables its ranks derive from it.

Model Runner V1 only; V2 has no map file. Rules A1 to A8: ``equipoise explain maps``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.findings import describe, is_int, repeated_keys, unknown_keys
from equipoise.engines._shared.map_layers import check_ordered
from equipoise.engines._shared.map_rows import build_ordered
from equipoise.engines._shared.map_slots import Rules, shape_of
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
from equipoise.errors import EquipoiseError, FormatError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement

TOKEN_ROWS = 1024
"""Rows of Model Runner V2's table; token ``t`` uses row ``t % 1024``."""

_COUNT, _LAYERS, _DEVICES = "moe_layer_count", "layer_list", "device_list"
_FILE_KEYS = (_COUNT, _LAYERS)
_LAYER_KEYS = ("layer_id", "device_count", _DEVICES)
_DEVICE_KEYS = ("device_id", "device_expert")
_NOT_READ = "The engine never reads it: it goes by the order of the lists, and so does equipoise."
_IN_ORDER = f"{_NOT_READ} If the numbers are meant, put the entries in their order."


def write(placement: Placement, path: Path, context: MapContext = NOTHING_KNOWN) -> None:
    """Write a map as the engine's recorder does; layers are numbered in MoE order."""
    del context
    document = {
        "moe_layer_count": placement.num_layers,
        "layer_list": [
            {
                "layer_id": layer,
                "device_count": placement.num_ranks,
                "device_list": [
                    {"device_id": rank, "device_expert": experts}
                    for rank, experts in enumerate(by_rank)
                ],
            }
            for layer, by_rank in enumerate(placement.by_rank.tolist())
        ],
    }
    write_text(path, json.dumps(document, indent=4))


def _matches(path: Path) -> bool:
    document = peek_json(path)
    layers = document.get(_LAYERS) if isinstance(document, dict) else None
    if not isinstance(layers, list) or stated(document) is not None:
        return False
    return _COUNT in document or any(isinstance(e, dict) and _DEVICES in e for e in layers)


def _parse(path: Path) -> RawMap:
    document, repeated = parse_map_json(read_text(path), path)
    refuse_foreign(document, path, "vllm-ascend's expert_map.json")
    layers = document.get(_LAYERS) if isinstance(document, dict) else None
    if not isinstance(layers, list) or not layers:
        raise FormatError(
            f"{path}: expected {_COUNT} and a {_LAYERS} that is not empty; "
            f"{_LAYERS} is {describe(layers)}."
        )
    findings = [
        *repeated_keys(repeated, "A1"),
        *_unread(document, _FILE_KEYS, "The file"),
        *_check_layer_count(document, len(layers)),
    ]
    devices = [_devices(layer, position, findings) for position, layer in enumerate(layers)]
    return RawMap(
        rows=[[expert for device in layer for expert in device] for layer in devices],
        layer_keys=range(len(layers)),
        num_ranks=len(devices[0]) or None,
        findings=(*findings, *_check_device_counts(devices)),
    )


def _devices(layer: Any, position: int, findings: list[Finding]) -> list[list[Any]]:
    """The experts of each device in a layer; defects are added to ``findings``."""
    where = f"Layer {position}"
    if not isinstance(layer, dict) or not isinstance(layer.get(_DEVICES), list):
        findings.append(_absent(where, _DEVICES, position))
        return []
    findings += _unread(layer, _LAYER_KEYS, where)
    findings += _check_number(layer, "layer_id", position, where, position)
    entries = layer[_DEVICES]
    findings += _check_number(layer, "device_count", len(entries), where, position)
    devices = [_experts(entry, d, position, findings) for d, entry in enumerate(entries)]
    findings += _check_lengths(devices, position)
    return devices


def _experts(device: Any, position: int, layer: int, findings: list[Finding]) -> list[Any]:
    where = f"Layer {layer}, device {position}"
    if not isinstance(device, dict) or not isinstance(device.get("device_expert"), list):
        findings.append(_absent(where, "device_expert", layer))
        return []
    findings += _unread(device, _DEVICE_KEYS, where)
    findings += _check_number(device, "device_id", position, where, layer)
    experts: list[Any] = device["device_expert"]
    return experts


def _unread(mapping: dict[str, Any], known: tuple[str, ...], where: str) -> list[Finding]:
    """Warn of keys that the format does not have: the engine does not read them."""
    return [
        replace(found, severity=Severity.WARNING, remedy=_NOT_READ)
        for found in unknown_keys(mapping, known, "A1", where)
    ]


def _absent(where: str, key: str, layer: int) -> Finding:
    return Finding(
        code="A1",
        message=f"{where} has no list {key}.",
        remedy=f"Give {key} as a list.",
        layer=layer,
    )


def _check_layer_count(document: dict[str, Any], actual: int) -> list[Finding]:
    """Check the only count that the engine reads: it expects this number of layers."""
    value = document.get(_COUNT)
    if is_int(value) and value == actual:
        return []
    return [
        Finding(
            code="A1" if _COUNT not in document or is_int(value) else "A2",
            message=f"The file: {_COUNT} is {describe(value)}; the list has {actual} entries.",
            remedy=f"Write {actual}, or complete the list.",
            readable=_COUNT not in document,
        )
    ]


def _check_number(
    mapping: dict[str, Any], key: str, actual: int, where: str, layer: int
) -> list[Finding]:
    """Warn of a count or an id that differs from the lists: the engine never reads it."""
    value = mapping.get(key)
    if is_int(value) and value == actual:
        return []
    is_count = key == "device_count"
    what = "the list has that many entries" if is_count else "that is its position"
    return [
        Finding(
            code="A1" if key not in mapping or (is_count and is_int(value)) else "A2",
            message=f"{where}: {key} is {describe(value)}; expected {actual}, since {what}.",
            remedy=_NOT_READ if is_count or key not in mapping else _IN_ORDER,
            severity=Severity.WARNING,
            layer=layer,
        )
    ]


def _check_lengths(devices: list[list[Any]], layer: int) -> list[Finding]:
    lengths = [len(device) for device in devices]
    if len(set(lengths)) <= 1:
        return []
    return [
        Finding(
            code="A3",
            message=f"Layer {layer}: the devices hold {lengths} slots; expected equal numbers.",
            remedy="Give every device the same number of slots.",
            layer=layer,
        )
    ]


def _check_device_counts(devices: list[list[list[Any]]]) -> list[Finding]:
    first = len(devices[0])
    return [
        Finding(
            code="A4",
            message=f"Layer {layer} has {len(of_layer)} devices, layer 0 has {first}.",
            remedy="List every device of the deployment in every layer.",
            layer=layer,
        )
        for layer, of_layer in enumerate(devices)
        if len(of_layer) != first
    ]


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    rules = Rules(
        ids="A5",
        missing="A6",
        width="A3",
        slots="A3",
        stated="A4",
        redundancy="A8",
        duplicates="A7",
        duplicates_severity=Severity.ERROR,
        place=_place(raw, context),
    )
    return check_ordered(raw, context, rules, "A4")


def _place(raw: RawMap, context: MapContext) -> Callable[[int | str, int], str]:
    """Name slots by device and position, if all devices of the layer have the same number."""
    shape = shape_of(raw, context)
    uneven = {f.layer for f in raw.findings if f.severity is Severity.ERROR}
    per_device = shape.num_slots // raw.num_ranks if raw.num_ranks else 0

    def place(layer: int | str, slot: int) -> str:
        if layer in uneven or not per_device:
            return f"physical slot {slot}"
        return f"device {slot // per_device}, slot {slot % per_device}"

    return place


def _losses(placement: Placement) -> list[str]:
    if placement.layer_ids == tuple(range(placement.num_layers)):
        return []
    return [
        "The file numbers the MoE layers from 0; that they are the model's layers "
        f"{format_ids(placement.layer_ids)} is not in it."
    ]


# Tables derived from a map ------------------------------------------------------------------------


def local_expert_map(placement: Placement, rank: int) -> NDArray[np.int64]:
    """Return each expert's position among one rank's slots, or -1, ``(L, E)``."""
    _check_usable(placement, rank)
    table = np.full((placement.num_layers, placement.num_experts), -1, dtype=np.int64)
    local = np.broadcast_to(np.arange(placement.slots_per_rank), placement.by_rank[:, rank].shape)
    np.put_along_axis(table, placement.by_rank[:, rank], local, axis=1)
    return table


def log2phy(placement: Placement, rank: int, *, tp_size: int = 1) -> NDArray[np.int64]:
    """Return the slot to which a rank sends each expert's tokens, ``(L, E)`` (Model Runner V1).

    Rank ``r`` takes copy number ``r % n`` of an expert's ``n`` copies in slot order; with tensor
    parallelism it takes number ``(r % tp + r // tp + expert) % n``.

    Raises
    ------
    EquipoiseError
        There is no such rank, ``tp_size`` does not divide the ranks, or an expert is twice on one
        rank, which makes the engine number all slots wrongly.
    """
    _check_usable(placement, rank)
    if tp_size < 1 or placement.num_ranks % tp_size:
        raise EquipoiseError(
            f"tp_size is {tp_size}; expected a divisor of {placement.num_ranks} ranks."
        )
    experts = np.arange(placement.num_experts)
    if tp_size == 1:
        wanted = np.full_like(experts, rank)
    else:
        wanted = rank % tp_size + rank // tp_size + experts
    return _pick(placement, wanted)


def log2phy_by_token(placement: Placement, rank: int, row: int) -> NDArray[np.int64]:
    """Return the slots for a token, ``(L, E)``: a row of Model Runner V2's periodic table."""
    _check_usable(placement, rank)
    return _pick(placement, row % TOKEN_ROWS + rank + np.arange(placement.num_experts))


def _pick(placement: Placement, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the slot of copy ``wanted`` modulo the copies, for each expert, ``(L, E)``."""
    index = wanted[None, :] % placement.copies
    return np.take_along_axis(placement.slots_of_experts(), index[..., None], axis=2)[..., 0]


def _check_usable(placement: Placement, rank: int) -> None:
    if not 0 <= rank < placement.num_ranks:
        raise EquipoiseError(
            f"There is no rank {rank}; the placement has ranks 0 to {placement.num_ranks - 1}."
        )
    if placement.duplicates.any():
        layer = placement.layer_ids[int(np.flatnonzero(placement.duplicates)[0])]
        raise EquipoiseError(
            f"Layer {layer} has an expert twice on one rank, which vllm-ascend cannot run; "
            "plan without copies on the same rank."
        )


FORMAT = MapFormat(
    name="ascend",
    summary="vllm-ascend's expert_map.json (Model Runner V1)",
    suffixes=(".json",),
    matches=_matches,
    parse=_parse,
    check=_check,
    to_placement=build_ordered,
    write=write,
    losses=_losses,
    signature=r'"(?:moe_layer_count|device_expert)"',
)
