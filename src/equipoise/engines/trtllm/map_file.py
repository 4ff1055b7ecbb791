"""TensorRT-LLM's placement file: the YAML that ``moe_config.load_balancer`` names or holds.

Rules T1 to T7: ``docs/formats/maps.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.engines.files import write_text
from equipoise.engines.formats import Finding, MapContext, MapFormat, RawMap
from equipoise.engines.map_checks import (
    NOTHING_KNOWN,
    Rules,
    build,
    check_layer_keys,
    check_rows,
    describe,
    is_int,
    read_text,
    repeated_keys,
    shape_of,
    unchecked,
    unknown_keys,
)
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_SLOTS = 32767  # the routing kernel stores slots as int16
MAX_EXPERTS = 1024
_MAX_DEPTH = 32
_MAX_DIGITS = 64
_KEYS = ("initial_global_assignments", "layer_updates_per_iter", "num_slots")
_OTHER_FORMATS = {"record_type", "format"}  # vLLM's record and our own file are YAML as well
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
        Not needed: the layer keys are the placement's layer ids.
    layer_updates_per_iter
        Layers the engine re-plans per iteration; 0 keeps the placement as it is.
    """
    del context
    if not is_int(layer_updates_per_iter) or layer_updates_per_iter < 0:
        raise EquipoiseError(
            f"layer_updates_per_iter is {describe(layer_updates_per_iter)}; expected 0 or more."
        )
    rows = zip(placement.layer_ids, placement.slots.tolist(), strict=True)
    text = "".join(f"  {layer}: {row}\n" for layer, row in rows)
    write_text(
        path,
        f"initial_global_assignments:\n{text}"
        f"layer_updates_per_iter: {layer_updates_per_iter}\n"
        f"num_slots: {placement.num_slots}\n",
    )


class _Loader(SafeLoader):
    """The safe loader that also remembers keys given twice, of which YAML keeps the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[Any] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    self.repeated.append(key)
                seen.add(key)
        return mapping


def _construct_int(loader: SafeLoader, node: yaml.ScalarNode) -> int:
    """Refuse numbers so long (0xfff...) that Python would not print them in a message."""
    if len(node.value) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(node.value)} digits")
    return int(loader.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _load(path: Path) -> tuple[Any, list[Any]]:
    """The document and the keys given twice."""
    text = read_text(path)
    try:
        _refuse_tricks(text, path)
        loader = _Loader(text)
        try:
            return loader.get_single_data(), loader.repeated
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "unknown" if mark is None else mark.line + 1
        raise FormatError(f"{path}: is not safe YAML, line {line}: {error.problem}.") from error
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise FormatError(f"{path}: is not safe YAML ({message}).") from error
    except FormatError:
        raise
    except ValueError as error:  # 2001-99-99, 0b_, an endless number
        raise FormatError(f"{path}: holds a value that cannot be read ({error}).") from error


def _refuse_tricks(text: str, path: Path) -> None:
    """Refuse what a placement never needs and an attack does: aliases, tags, deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "a YAML anchor or alias; write every list out"
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
            problem = f"the YAML tag {event.tag}; write plain values"
        elif depth > _MAX_DEPTH:
            problem = f"more than {_MAX_DEPTH} levels of nesting"
        else:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            continue
        raise FormatError(f"{path}: line {_line(event)} has {problem}.")


def _line(event: yaml.Event) -> int | str:
    return "unknown" if event.start_mark is None else event.start_mark.line + 1


def _section(document: Any) -> Any:
    """The load balancer's own section, where the document is a whole options file."""
    if isinstance(document, dict) and isinstance(document.get("moe_config"), dict):
        return document["moe_config"].get("load_balancer")
    return document


def _matches(path: Path) -> bool:
    try:
        if not any(key in read_text(path) for key in ("num_slots", "initial_global_assignments")):
            return False  # without parsing a large file of another kind as YAML
        section = _section(_load(path)[0])
    except FormatError:
        return False
    if not isinstance(section, dict) or _OTHER_FORMATS & section.keys():
        return False
    return "num_slots" in section or "initial_global_assignments" in section


def _parse(path: Path) -> RawMap:
    document, repeated = _load(path)
    section = _section(document)
    if isinstance(section, str) and section is not document:
        raise FormatError(f"{path}: moe_config.load_balancer names {section}; give that file.")
    if not isinstance(section, dict):
        raise FormatError(f"{path}: holds {describe(section)}; expected a mapping with num_slots.")
    assignments = section.get("initial_global_assignments")
    if not isinstance(assignments, dict) or not assignments:
        raise FormatError(
            f"{path}: initial_global_assignments is {describe(assignments)}; expected a list of "
            "experts per layer. Without it the engine uses its own default layout."
        )
    updates = section.get("layer_updates_per_iter", 0)
    return RawMap(
        rows=list(assignments.values()),
        layer_keys=[key if is_int(key) else str(key) for key in assignments],
        num_slots=section["num_slots"] if is_int(section.get("num_slots")) else None,
        findings=(
            *repeated_keys(repeated, "T1"),
            *unknown_keys(section, _KEYS, "T1", "The load balancer's section"),
            *_check_num_slots(section.get("num_slots")),
            *_check_keys(assignments),
            *_check_updates(updates),
        ),
        notes=_notes(updates, inline=section is not document),
    )


def _check_num_slots(num_slots: object) -> list[Finding]:
    if is_int(num_slots):
        return []
    return [
        Finding(
            code="T2",
            message=f"num_slots is {describe(num_slots)}; expected an integer.",
            remedy="Give the length of the lists as a plain integer.",
        )
    ]


def _check_keys(assignments: dict[Any, Any]) -> list[Finding]:
    return [
        Finding(
            code="T5",
            message=f"The layer key is {describe(key)}; expected an integer from 0.",
            remedy="Write the decoder layer's number without quotes.",
            layer=key if is_int(key) else str(key),
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
        )
    ]


def _notes(updates: object, *, inline: bool) -> tuple[str, ...]:
    notes = ["Read from moe_config.load_balancer."] if inline else []
    if updates:
        notes.append(
            f"layer_updates_per_iter is {updates}: the engine re-plans while it runs and this "
            "placement is only the start."
        )
    return tuple(notes)


def _check(raw: RawMap, context: MapContext) -> list[Finding]:
    return [
        *check_rows(raw, context, _RULES),
        *check_layer_keys(raw, context.layer_ids, "T5", _LAYERS_REMEDY),
        *_check_limits(raw, context),
        *unchecked(raw, context, "layer_ids"),
    ]


def _check_limits(raw: RawMap, context: MapContext) -> list[Finding]:
    shape = shape_of(raw, context)
    return [
        Finding(
            code="T7",
            message=f"{count} {what}; the engine's routing kernels take at most {limit}.",
            remedy=f"Use at most {limit} {what}.",
        )
        for count, limit, what in (
            (shape.num_slots, MAX_SLOTS, "slots"),
            (shape.num_experts, MAX_EXPERTS, "experts"),
        )
        if count > limit
    ]


def _to_placement(raw: RawMap, context: MapContext) -> Placement:
    by_layer = sorted((int(key), row) for key, row in zip(raw.layer_keys, raw.rows, strict=True))
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
)
