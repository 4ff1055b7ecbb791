"""TensorRT-LLM's placement file: YAML that the option ``moe_config.load_balancer`` names or holds.

Rules T1 to T7: ``equipoise explain maps``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.checks import brief
from equipoise.engines._shared.findings import describe, is_int, repeated_keys, unknown_keys
from equipoise.engines._shared.map_layers import check_layer_keys, unchecked
from equipoise.engines._shared.map_rows import build
from equipoise.engines._shared.map_slots import Rules, check_rows, shape_of
from equipoise.engines._shared.map_text import WAY_IN, read_text, refuse_foreign, stated
from equipoise.engines._shared.yaml_text import parse_yaml
from equipoise.engines.files import replacing, write_text
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

MAX_SLOTS = 32767  # the routing kernel stores slots as int16
MAX_EXPERTS = 1024
_MAX_ENTRIES = 300_000  # 128 layers of 2048 slots; YAML is read value by value, 10 us each
_KEYS = ("initial_global_assignments", "layer_updates_per_iter", "num_slots")
OPTIONS_FILE_SECTIONS = (
    ("moe_config", "load_balancer"),
    ("pytorch_backend_config", "moe_load_balancer"),
)
"""Place of the balancer's section in a file of all the engine's options."""
_RECORD = "record_type"  # vLLM's record is YAML as well
_SIGNATURE = r"^\s*(?:initial_global_assignments|num_slots|layer_updates_per_iter)\s*:"
_RULES = Rules(ids="T4", missing="T4", width="T3", slots="T2", stated="T2", redundancy="T2")
_LAYERS_REMEDY = (
    "Plan for exactly the MoE layers the engine builds, draft (MTP) layers included when it "
    "speculates."
)


def write(
    placement: Placement,
    path: Path,
    context: MapContext = NOTHING_KNOWN,
    *,
    layer_updates_per_iter: int = 0,
) -> None:
    """Write a placement, byte for byte as the engine's own generator does.

    Parameters
    ----------
    context
        Not used: the layer keys are the placement's layer ids.
    layer_updates_per_iter
        Number of layers that the engine re-plans per iteration; 0 keeps the placement as it is.
    """
    del context
    rows = zip(placement.layer_ids, placement.slots.tolist(), strict=True)
    text = "".join(f"  {layer}: {row}\n" for layer, row in rows)
    sizes = _sizes(placement.num_slots, layer_updates_per_iter)
    write_text(path, f"initial_global_assignments:\n{text}{sizes}")


def write_online(path: Path, context: MapContext, *, layer_updates_per_iter: int) -> None:
    """Write a file without assignments, with which the engine places the experts while it runs.

    Parameters
    ----------
    context
        Deployment: ranks, experts and redundant slots.
    layer_updates_per_iter
        Number of layers that the engine re-plans per iteration, 1 or more.

    Raises
    ------
    EquipoiseError
        The engine would refuse the sizes, or there are no updates, so that nothing is balanced.
    """
    assert context.num_experts is not None
    assert context.num_redundant is not None
    if not layer_updates_per_iter:
        raise EquipoiseError(
            "Without assignments and without updates nothing would ever be balanced; give "
            f"{argument('layer_updates_per_iter')} 1 or more."
        )
    text = _sizes(context.num_experts + context.num_redundant, layer_updates_per_iter)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        found = _check(_parse(temporary), context)
        if found:
            raise EquipoiseError(f"{path}: not written: {found[0].text.marked}")


def _sizes(num_slots: int, layer_updates_per_iter: int) -> str:
    """Return the lines with sizes, which every file has."""
    if not is_int(layer_updates_per_iter) or layer_updates_per_iter < 0:
        raise EquipoiseError(
            f"layer_updates_per_iter is {describe(layer_updates_per_iter)}; expected 0 or more."
        )
    return f"layer_updates_per_iter: {layer_updates_per_iter}\nnum_slots: {num_slots}\n"


def iterations_to_refresh(num_layers: int, layer_updates_per_iter: int) -> int:
    """Return the number of iterations in which the engine re-plans every layer once."""
    groups = -(-num_layers // layer_updates_per_iter)
    return groups + (num_layers % groups == 0)  # equal groups are followed by an idle iteration


def _load(path: Path) -> tuple[Any, list[Any]]:
    """Return the document, and the keys that it has twice."""
    return parse_yaml(read_text(path, max_entries=_MAX_ENTRIES), str(path))


def _section(document: Any) -> Any:
    """Return the load balancer's section if the document is a whole options file."""
    for part, key in OPTIONS_FILE_SECTIONS:
        if isinstance(document, dict) and isinstance(document.get(part), dict):
            return document[part].get(key)
    return document


def _matches(path: Path) -> bool:
    try:
        text = read_text(path)
        if re.search(_SIGNATURE, text, re.MULTILINE):
            return True
        if not any(word in text for word in (*_KEYS, *(part for part, _ in OPTIONS_FILE_SECTIONS))):
            return False  # without parsing a large file of another kind as YAML
        document = _load(path)[0]
    except FormatError:
        return False
    section = _section(document)
    if section is not document:
        return True
    return (
        isinstance(section, dict)
        and any(key in section for key in _KEYS)
        and _RECORD not in section
        and stated(section) is None
    )


def _parse(path: Path) -> RawMap:
    document, repeated = _load(path)
    section = _section(document)
    inline = section is not document
    if inline and isinstance(section, str):
        raise FormatError(
            f"{path}: names the map in another file, {brief(section)}; give that file."
        )
    if inline and section is None:
        raise FormatError(f"{path}: is an options file without a load balancer, so without a map.")
    refuse_foreign(section, path, "TensorRT-LLM's load balancer")
    if not isinstance(section, dict) or not any(key in section for key in _KEYS):
        raise FormatError(
            f"{path}: holds {describe(section)}; expected a mapping with num_slots. {WAY_IN}"
        )
    assignments = section.get("initial_global_assignments")
    if assignments is not None and (not isinstance(assignments, dict) or not assignments):
        raise FormatError(
            f"{path}: initial_global_assignments is {describe(assignments)}; expected a list of "
            "experts per layer, or no such key, so that the engine places the experts itself."
        )
    updates = section.get("layer_updates_per_iter", 0)
    layers = assignments or {}
    keys = [_layer(key) for key in layers]
    twice = [key for key, count in Counter(keys).items() if count > 1]  # 3 and '3'
    return RawMap(
        rows=list(layers.values()),
        layer_keys=keys,
        num_slots=_num_slots(section.get("num_slots")),
        findings=(
            *repeated_keys([*repeated, *twice], "T1"),
            *_unknown_keys(section, online=not layers),
            *_check_num_slots(section.get("num_slots")),
            *_check_keys(layers),
            *_check_updates(updates),
        ),
        notes=_notes(updates, inline=inline, online=not layers),
    )


def _unknown_keys(section: dict[Any, Any], *, online: bool) -> list[Finding]:
    found = unknown_keys(section, _KEYS, "T1", "The load balancer's section")
    refused = f"The engine refuses a section with any key but {', '.join(_KEYS)}."
    return [replace(f, remedy=refused) for f in found] if online else found


def _layer(key: object) -> int | str:
    """Return a layer's number; like the engine, accept one in quotes."""
    if isinstance(key, str) and re.fullmatch(r"[0-9]{1,6}", key):
        return int(key)
    return key if is_int(key) else str(key)


def _num_slots(value: object) -> int | None:
    """Return the number of slots as the engine reads it: text and whole floats become integers."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**31:
        return int(value)
    return value if is_int(value) else None


def _check_num_slots(num_slots: object) -> list[Finding]:
    if is_int(num_slots):
        return []
    return [
        Finding(
            code="T2",
            message=f"num_slots is {describe(num_slots)}; expected an integer.",
            remedy="Give the length of the lists as a plain integer.",
            severity=Severity.ERROR if _num_slots(num_slots) is None else Severity.WARNING,
        )
    ]


def _check_keys(assignments: dict[Any, Any]) -> list[Finding]:
    def severity(key: object) -> Severity:
        return Severity.WARNING if is_int(_layer(key)) and not is_int(key) else Severity.ERROR

    return [
        Finding(
            code="T5",
            message=f"The layer key is {describe(key)}; expected an integer from 0.",
            remedy="Write the decoder layer's number without quotes.",
            severity=severity(key),
            layer=_layer(key),
        )
        for key in assignments
        if not is_int(key) or key < 0
    ]


def _check_updates(updates: object) -> list[Finding]:
    if is_int(updates) and updates >= 0:
        return []
    return [
        Finding(
            code="T6",
            message=f"layer_updates_per_iter is {describe(updates)}; expected an integer from 0.",
            remedy="Give 0 for a fixed placement, or the layers to re-plan per iteration.",
            severity=Severity.WARNING if isinstance(updates, int) else Severity.ERROR,
            readable=True,
        )
    ]


def _notes(updates: object, *, inline: bool, online: bool) -> tuple[str, ...]:
    notes = ["Read from the load balancer's section of an options file."] if inline else []
    replans = is_int(updates) and updates > 0
    if online:
        then = f"re-plans {updates} layers an iteration" if replans else "keeps its default layout"
        notes.append(f"No assignments: the engine places the experts itself and {then}.")
    elif replans:
        notes.append(
            f"layer_updates_per_iter is {updates}: the engine re-plans while it runs and this "
            "placement is only the start."
        )
    return tuple(notes)


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    if not raw.rows:
        return [*raw.findings, *_check_online(raw, context), *_check_limits(raw, context)]
    return [
        *check_rows(raw, context, _RULES),
        *_check_layers(raw, context.layer_ids),
        *_check_limits(raw, context),
        *unchecked(raw, context, "layer_ids"),
    ]


def _check_layers(raw: RawMap, layer_ids: tuple[int, ...] | None) -> list[Finding]:
    """Warn of a layer that the model does not have: the engine never reads it."""
    return [
        replace(finding, severity=Severity.WARNING) if finding.layer in raw.layer_keys else finding
        for finding in check_layer_keys(raw, layer_ids, "T5", _LAYERS_REMEDY)
    ]


def _check_online(raw: RawMap, context: MapContext) -> list[Finding]:
    """Check the sizes of a file without assignments, as far as they are known."""
    slots, ranks, experts = raw.num_slots, context.num_ranks, context.num_experts
    if slots is None:  # told by _check_num_slots
        return []
    problems = [
        (slots < 1, f"num_slots is {describe(slots)}; expected at least 1."),
        (experts is not None and slots < experts, f"{slots} slots cannot hold {experts} experts."),
        (bool(ranks) and slots % (ranks or 1), f"{slots} slots do not divide over {ranks} ranks."),
    ]
    remedy = "Give a multiple of the ranks that is not below the number of experts."
    found = [Finding(code="T2", message=text, remedy=remedy) for wrong, text in problems if wrong]
    return [*found, *unchecked(raw, context)]


def _check_limits(raw: RawMap, context: MapContext) -> list[Finding]:
    shape = shape_of(raw, context)
    return [
        Finding(
            code="T7",
            message=f"{count} {what}; the engine's routing kernels take at most {limit}.",
            remedy=f"Use at most {limit} {what}.",
            readable=True,
        )
        for count, limit, what in (
            (shape.num_slots, MAX_SLOTS, "slots"),
            (shape.num_experts, MAX_EXPERTS, "experts"),
        )
        if count > limit
    ]


def _to_placement(raw: RawMap, context: MapContext) -> Placement:
    """Return the layers of the file, or those of the model if these are known."""
    if not raw.rows:
        raise EquipoiseError(
            "holds no assignments, so it is not a map: the engine places the experts itself. "
            "equipoise plan writes a file with assignments."
        )
    wanted = raw.layer_keys if context.layer_ids is None else context.layer_ids
    by_layer = sorted(
        (int(key), row) for key, row in zip(raw.layer_keys, raw.rows, strict=True) if key in wanted
    )
    return build([row for _, row in by_layer], [key for key, _ in by_layer], raw, context)


def _losses(placement: Placement) -> list[str]:
    return [f"The file does not say that its slots are spread over {placement.num_ranks} ranks."]


FORMAT = MapFormat(
    name="trtllm",
    summary="TensorRT-LLM's load balancer YAML, alone or inside moe_config.load_balancer",
    suffixes=(".yaml", ".yml"),
    matches=_matches,
    parse=_parse,
    check=_check,
    to_placement=_to_placement,
    write=write,
    losses=_losses,
    signature=_SIGNATURE,
)
