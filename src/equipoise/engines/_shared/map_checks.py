"""What all placement files share: reading text strictly, and the defects any map can have.

Every function here reports all it finds. An engine passes the codes its documentation gives to the
rules (``Rules``); the words are the same for all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from equipoise.engines.formats import Finding, MapContext, RawMap, Severity
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement, check_slot_count

LIMIT = 20  # findings of one kind in one layer that are listed singly; the rest are counted
SHOWN = 3  # findings of one kind that people are shown singly; see ``by_kind``
MAX_BYTES = 32 << 20  # 128 layers of 2048 slots take 9 MB in the wordiest format
MAX_ENTRIES = 1 << 20  # commas, colons and lines; 128 layers of 2048 slots have half as many
MAX_LAYERS = 1 << 12  # ten times as many as any model has
MAX_CELLS = 1 << 27  # layers x ranks x experts of a placement's copy counts: 1 GiB

NOTHING_KNOWN = MapContext()
"""The context of a caller who gives none."""

WAY_IN = (
    'The simplest map is two lines of YAML, "num_slots: 4" and "initial_global_assignments: '
    '{3: [0, 1, 2, 0]}": the experts of each layer, slot by slot.'
)
"""What to do with a file of which no map can be made."""

SAME_RANK = "W1"
NOT_CHECKED = "W2"
GUESSED_LAYERS = "W4"

_LAYER_CHECKS = {
    "layer_ids": "whether the layers are the model's MoE layers",
    "num_hidden_layers": "whether every decoder layer has a row",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """An engine's codes for the defects every map can have.

    Parameters
    ----------
    ids
        Something that is not an integer, or not in ``[0, E)``.
    missing
        An expert without a slot.
    width
        A row that is no list or has a wrong length.
    slots
        ``S < E``, or ``R`` does not divide ``S``.
    stated
        Ranks or experts the file states and the deployment contradicts.
    redundancy
        ``S - E`` other than the engine is configured for.
    duplicates
        A second copy of an expert on its own rank.
    duplicates_severity
        An error where the engine breaks on it.
    place
        Names a slot the way the file does: ``place(layer_key, slot)``.
    """

    ids: str
    missing: str
    width: str
    slots: str
    stated: str
    redundancy: str
    duplicates: str = SAME_RANK
    duplicates_severity: Severity = Severity.WARNING
    place: Callable[[int | str, int], str] = lambda _key, slot: f"slot {slot}"


@dataclass(frozen=True)
class Shape:
    """The sizes a map is checked against; ``num_ranks`` is ``None`` where nobody said."""

    num_ranks: int | None
    num_experts: int
    num_slots: int


def read_text(path: Path, *, max_entries: int = MAX_ENTRIES) -> str:
    """The text of a map file; ``FormatError`` if it cannot be read, is no UTF-8, or is huge.

    ``max_entries`` bounds the commas, colons and lines of the text: what stands between them
    becomes a Python object each, which takes far more memory than the text.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FormatError(
                f"{path}: {size} bytes; a placement file has at most {MAX_BYTES}. "
                "Is it a recording? Recordings are read as traces."
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    entries = sum(map(text.count, ",:\n"))
    if entries > max_entries:
        raise FormatError(
            f"{path}: has {entries:,} values or more; 128 layers of 2,048 slots are 262,144, and a "
            "placement file of many more is not read. Is it a recording?"
        )
    return text


def parse_json(text: str, path: Path) -> tuple[Any, list[str]]:
    """A JSON document and the keys that occur twice in one object.

    Python's parser keeps the last of equal keys and says nothing; a layer given twice would be
    lost that way.
    """
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key, count in counts.items() if count > 1)
        return unique

    try:
        return json.loads(text, object_pairs_hook=note_repeated), repeated
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{path}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg})."
        ) from error
    except ValueError as error:  # Python's limit on the digits of a number
        raise FormatError(f"{path}: holds a number of thousands of digits.") from error
    except RecursionError as error:
        raise FormatError(f"{path}: is nested too deeply to be read.") from error


def peek_json(path: Path) -> Any:
    """The JSON document in a file, or ``None``; for ``matches``, which never raises."""
    try:
        text = read_text(path)
        return parse_json(text, path)[0] if re.match(r"\s*[\[{]", text) else None
    except FormatError:
        return None


def stated(root: object) -> str | None:
    """The format and version that a file states, in words; ``None`` where it states neither.

    No engine's map has such keys. A file with one of them is of the program that wrote it, whatever
    else it looks like, and what its rows mean is for that program to say.
    """
    if not isinstance(root, dict) or not {"format", "version"} & root.keys():
        return None
    return " and ".join(f"{k} {_short(root[k])}" for k in ("format", "version") if k in root)


def refuse_foreign(root: object, path: Path, owner: str) -> None:
    """Raise ``FormatError`` for a file that states another program's format or version."""
    words = stated(root)
    if words is not None:
        raise FormatError(
            f"{path}: states the {words}: another program's file, not {owner}. "
            f"Have that program write a format that is known here. {WAY_IN}"
        )


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer and not a boolean, which Python counts as one."""
    return type(value) is int


def describe(value: object) -> str:
    """A value found in a file, short enough for a message, and its type unless an integer."""
    names = {bool: "boolean", float: "float", str: "string", list: "list", dict: "mapping"}
    if value is None:
        return "nothing (null)"
    if is_int(value):
        return str(value) if abs(value) < 10**20 else "an enormous number"
    return f"the {names.get(type(value), type(value).__name__)} {_short(value)}"


def shown_names(keys: Sequence[Any]) -> str:
    """The first keys, quoted, and how many more there are."""
    names = ", ".join(map(_short, keys[:5]))
    return names if len(keys) <= 5 else f"{names} and {len(keys) - 5} more"


def shape_of(raw: RawMap, context: MapContext) -> Shape:
    """Sizes to check against: the deployment's, else the file's, else what the slots show.

    Experts are then one more than the highest id, which cannot reveal that the last experts are
    missing everywhere: see ``unchecked``.
    """
    widths = Counter(len(row) for row in raw.rows if isinstance(row, list))
    common = widths.most_common(1)[0][0] if widths else 0
    experts = context.num_experts if context.num_experts is not None else raw.num_experts
    return Shape(
        num_ranks=context.num_ranks if context.num_ranks is not None else raw.num_ranks,
        num_experts=experts if experts is not None else infer_experts(raw.rows),
        num_slots=raw.num_slots if raw.num_slots is not None else common,
    )


def infer_experts(rows: Iterable[Sequence[Any]]) -> int:
    """One more than the highest id below its row's length (``E <= S``); 0 if there is none."""
    return max(
        (
            1 + value
            for row in rows
            if isinstance(row, list)
            for value in row
            if is_int(value) and 0 <= value < len(row)
        ),
        default=0,
    )


def check_rows(raw: RawMap, context: MapContext, rules: Rules) -> list[Finding]:
    """Every defect of sizes and slots, after the structural ones met while parsing."""
    shape = shape_of(raw, context)
    findings = [*raw.findings, *_check_sizes(raw, context, shape, rules)]
    for key, row in zip(raw.layer_keys, raw.rows, strict=True):
        findings += _check_row(key, row, shape, rules)
    return findings


def check_ordered(raw: RawMap, context: MapContext, rules: Rules, row_count: str) -> list[Finding]:
    """Every defect of a map whose rows are the MoE layers in order; ``row_count`` is a code."""
    num_layers = None if context.layer_ids is None else len(context.layer_ids)
    return [
        *check_rows(raw, context, rules),
        *check_row_count(raw, num_layers, row_count, "MoE layers"),
        *guessed_order(raw, context),
        *unchecked(raw, context),
    ]


def check_row_count(raw: RawMap, expected: int | None, code: str, what: str) -> list[Finding]:
    """A finding if the file has more or fewer rows than the engine has layers."""
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
    """Findings for layers the model lacks and layers the file lacks."""
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
    """A finding if a row per decoder layer leaves MoE layers of the model without one."""
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
    """One warning that names what could not be checked because nobody said it.

    ``layers`` are the context fields this format's layers are checked against.
    """
    unknown = {name: _LAYER_CHECKS[name] for name in layers if getattr(context, name) is None}
    if context.num_experts is None and raw.num_experts is None:
        highest = infer_experts(raw.rows) - 1
        unknown["num_experts"] = (
            f"whether experts above {highest} are missing everywhere"
            if raw.rows
            else "whether the slots hold all experts"
        )
    if context.num_ranks is None and raw.num_ranks is None:
        unknown["num_ranks"] = "whether the slots divide over the ranks and repeat on one"
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
    """A warning where rows are numbered by order and nobody said which layers they are."""
    if context.layer_ids is not None:
        return []
    return [
        Finding(
            code=GUESSED_LAYERS,
            message="The file does not say which layers of the model its rows are; they are taken "
            f"as {_numbered(range(len(raw.rows)))}, in order.",
            remedy=Message(f"Give {argument('layer_ids')}, the model's numbers of its MoE layers."),
            severity=Severity.WARNING,
        )
    ]


def guessed_decoder_rows(raw: RawMap, context: MapContext) -> list[Finding]:
    """A warning where a file has rows for dense layers too and nobody said which these are."""
    if context.layer_ids is not None:
        return []
    return [
        Finding(
            code=GUESSED_LAYERS,
            message="The file has a row for every decoder layer and does not say which are dense; "
            f"{_numbered(range(len(raw.rows)))} are all taken as MoE layers.",
            remedy=Message(f"Give {argument('layer_ids')}, the model's numbers of its MoE layers."),
            severity=Severity.WARNING,
        )
    ]


def repeated_keys(keys: Iterable[Any], code: str) -> list[Finding]:
    """A finding if keys stand twice in one mapping, which names them."""
    names = list(dict.fromkeys(keys))
    if not names:
        return []
    subject = "The key" if len(names) == 1 else "The keys"
    verb = "stands" if len(names) == 1 else "stand"
    return [
        Finding(
            code=code,
            message=f"{subject} {shown_names(names)} {verb} twice in one mapping; most programs "
            "take the last without a word.",
            remedy="Keep the one that is meant.",
            count=len(names),
        )
    ]


def unknown_keys(
    mapping: dict[Any, Any], known: Iterable[str], code: str, where: str
) -> list[Finding]:
    """A finding if a mapping has keys that the format does not have, which names them.

    The placement is certain without them, so they do not keep a file from being read.
    """
    allowed = tuple(known)
    extra = [key for key in mapping if key not in allowed]
    if not extra:
        return []
    subject = "the key" if len(extra) == 1 else "the keys"
    return [
        Finding(
            code=code,
            message=f"{where} has {subject} {shown_names(extra)}, which the format does not know.",
            remedy=f"The format has {', '.join(allowed)} and nothing else: equipoise convert "
            "writes such a file from this one.",
            readable=True,
        )
    ]


def by_kind(findings: Iterable[Finding]) -> list[Finding]:
    """The findings for people, errors first; more than a few of one kind are one with a count."""
    kinds: dict[tuple[object, ...], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: list(Severity).index(f.severity)):
        kinds.setdefault(_kind(finding), []).append(finding)
    return [shown for same in kinds.values() for shown in _merged(same)]


def _kind(finding: Finding) -> tuple[object, ...]:
    """What findings of one kind share: the rule and, but for its numbers, the remedy."""
    if finding.layer is None:
        return (finding.code, finding.severity, finding.message)
    return (finding.code, finding.severity, re.sub(r"\d+", "#", finding.remedy))


def _merged(same: list[Finding]) -> list[Finding]:
    first, total = same[0], sum(finding.count for finding in same)
    if first.layer is None or total <= SHOWN:
        return same
    keys = list(dict.fromkeys(finding.layer for finding in same))
    ids = sorted(key for key in keys if is_int(key))
    where = _numbered(ids) if len(ids) == len(keys) else f"layers {shown_names(keys)}"
    message = f"{first.message} In all there are {total} of this kind, in {where}."
    return [replace(first, message=message, count=total)]


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether one of the findings is an error."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def default_row(num_slots: int, num_experts: int) -> NDArray[np.int64]:
    """``s % E``, the row of a layer without experts, ``(S,)``."""
    return np.arange(num_slots, dtype=np.int64) % num_experts


def rows_by_layer(placement: Placement, num_rows: int) -> NDArray[np.int64]:
    """One row per decoder layer, dense ones filled with ``s % E``, ``(num_rows, S)``.

    Raises
    ------
    EquipoiseError
        A layer of the placement that has no row, or rows that would not fit into memory.
    """
    if num_rows * placement.num_slots > MAX_CELLS:
        raise EquipoiseError(
            f"{num_rows} decoder layers are more than any model has; "
            f"correct {argument('num_hidden_layers')}."
        )
    outside = [layer for layer in placement.layer_ids if layer >= num_rows]
    if outside:
        raise EquipoiseError(
            f"The placement has layer {format_ids(outside)}, the file has rows 0 to "
            f"{num_rows - 1}. Leave draft layers out, or correct {argument('num_hidden_layers')}."
        )
    rows = np.tile(default_row(placement.num_slots, placement.num_experts), (num_rows, 1))
    rows[list(placement.layer_ids)] = placement.slots
    return rows


def format_rows(rows: NDArray[np.int64]) -> str:
    """A JSON list of rows, one row a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows.tolist()) + "\n]"


def build(
    rows: Sequence[Sequence[Any]], layer_ids: Sequence[int], raw: RawMap, context: MapContext
) -> Placement:
    """The placement of rows that have passed the checks.

    Raises
    ------
    EquipoiseError
        Nobody said how many ranks there are, or the sizes would not fit into memory.
    """
    shape = shape_of(raw, context)
    if shape.num_ranks is None:
        raise EquipoiseError(
            "The file does not say over how many ranks its slots are spread; "
            f"give {argument('num_ranks')}."
        )
    if len(rows) * shape.num_ranks * shape.num_experts > MAX_CELLS:
        raise EquipoiseError(
            f"{len(rows)} layers, {shape.num_ranks} ranks and {shape.num_experts} experts are more "
            "than any deployment; are the numbers right?"
        )
    return Placement(
        np.array(rows, dtype=np.int64),
        num_ranks=shape.num_ranks,
        num_experts=shape.num_experts,
        layer_ids=layer_ids,
    )


def build_ordered(raw: RawMap, context: MapContext) -> Placement:
    """``build`` for rows that are the MoE layers in order."""
    return build(raw.rows, context.layer_ids or range(len(raw.rows)), raw, context)


def _check_sizes(raw: RawMap, context: MapContext, shape: Shape, rules: Rules) -> list[Finding]:
    findings = [
        Finding(
            code=rules.stated,
            message=f"The file is for {stated} {what}; the deployment has {wanted}.",
            remedy=f"Plan for {wanted} {what}, or correct the number given.",
        )
        for stated, wanted, what in (
            (raw.num_ranks, context.num_ranks, "ranks"),
            (raw.num_experts, context.num_experts, "experts"),
        )
        if stated is not None and wanted is not None and stated != wanted
    ]
    try:
        check_slot_count(
            shape.num_slots,
            num_ranks=1 if shape.num_ranks is None else shape.num_ranks,
            num_experts=max(shape.num_experts, 1),  # 0 where no id can be one, told of each
        )
    except EquipoiseError as error:
        findings.append(
            Finding(code=rules.slots, message=str(error), remedy="Plan with a legal slot count.")
        )
    redundant = shape.num_slots - shape.num_experts
    if context.num_redundant is not None and redundant != context.num_redundant:
        findings.append(
            Finding(
                code=rules.redundancy,
                message=f"{shape.num_slots} slots for {shape.num_experts} experts are {redundant} "
                f"redundant; the engine is configured for {context.num_redundant}.",
                remedy=f"Configure {redundant} redundant experts, or plan with "
                f"{shape.num_experts + context.num_redundant} slots.",
            )
        )
    return findings


def _check_row(key: int | str, row: object, shape: Shape, rules: Rules) -> list[Finding]:
    if not isinstance(row, list):
        return [
            Finding(
                code=rules.width,
                message=f"Layer {key} holds {describe(row)}; expected a list of expert ids.",
                remedy=f"Give a list of {shape.num_slots} expert ids.",
                layer=key,
            )
        ]
    return [
        *_check_width(key, row, shape, rules),
        *_check_ids(key, row, shape, rules),
        *_check_missing(key, row, shape, rules),
        *_check_duplicates(key, row, shape, rules),
    ]


def _check_width(key: int | str, row: list[Any], shape: Shape, rules: Rules) -> list[Finding]:
    if len(row) == shape.num_slots:
        return []
    return [
        Finding(
            code=rules.width,
            message=f"Layer {key} has {len(row)} slots; expected {shape.num_slots}.",
            remedy="Every layer needs the same slots; write the row again.",
            layer=key,
        )
    ]


def _check_ids(key: int | str, row: list[Any], shape: Shape, rules: Rules) -> list[Finding]:
    def finding(slot: int, problem: str, remedy: str) -> Finding:
        return Finding(
            code=rules.ids,
            message=f"Layer {key}, {rules.place(key, slot)} holds {describe(row[slot])}{problem}",
            remedy=remedy,
            layer=key,
            slot=slot,
            expert=row[slot] if is_int(row[slot]) else None,
        )

    strange = [slot for slot, value in enumerate(row) if not is_int(value)]
    outside = [
        slot
        for slot, value in enumerate(row)
        if is_int(value) and not 0 <= value < shape.num_experts
    ]
    last = (shape.num_experts or shape.num_slots) - 1
    return [
        *_capped(
            strange,
            "slots that hold no integer",
            lambda slot: finding(
                slot, "; expected an integer.", "Write the id as a plain integer."
            ),
        ),
        *_capped(
            outside,
            "slots outside the range",
            lambda slot: finding(
                slot, f"; expert ids are 0 to {last}.", f"Use a logical expert id from 0 to {last}."
            ),
        ),
    ]


def _check_missing(key: int | str, row: list[Any], shape: Shape, rules: Rules) -> list[Finding]:
    if shape.num_experts > shape.num_slots:  # reported as a size; do not allocate for it
        return []
    ids = _known_ids(row, shape)
    absent = np.flatnonzero(np.bincount(ids[ids >= 0], minlength=shape.num_experts) == 0)
    remedy = "Give every expert at least one slot; a token routed to it has no place to go."
    held = shape.num_experts - len(absent)
    if len(absent) and absent[0] == held > 0:  # it holds the lower ids, all of them
        remedy += (
            f" If the layer has only experts 0 to {held - 1}: all layers of a map have the same "
            "experts, so give its layers a map of their own."
        )
    return _capped(
        absent.tolist(),
        "experts without a slot",
        lambda expert: Finding(
            code=rules.missing,
            message=f"Layer {key}: expert {expert} has no slot.",
            remedy=remedy,
            layer=key,
            expert=expert,
        ),
    )


def _check_duplicates(key: int | str, row: list[Any], shape: Shape, rules: Rules) -> list[Finding]:
    """Second copies on one rank; skipped where the sizes do not say which slots are a rank's."""
    ranks = shape.num_ranks
    if ranks is None or ranks < 1 or not row or len(row) != shape.num_slots or len(row) % ranks:
        return []
    if shape.num_experts > shape.num_slots:
        return []
    ids = _known_ids(row, shape)
    rank = np.arange(len(row)) // (len(row) // ranks)
    slots = np.flatnonzero(ids >= 0)
    cell = rank[slots] * shape.num_experts + ids[slots]
    _, first, group = np.unique(cell, return_index=True, return_inverse=True)
    first_slot = slots[first[group]]
    again = first_slot != slots
    earlier = dict(zip(slots[again].tolist(), first_slot[again].tolist(), strict=True))
    return _capped(
        list(earlier),
        "second copies on one rank",
        lambda slot: Finding(
            code=rules.duplicates,
            message=f"Layer {key}, {rules.place(key, slot)} holds expert {ids[slot]} again: "
            f"rank {rank[slot]} has it in {rules.place(key, earlier[slot])}.",
            remedy="Put the copy on another rank; two copies on one rank share the same device.",
            severity=rules.duplicates_severity,
            readable=True,
            layer=key,
            slot=slot,
            expert=int(ids[slot]),
        ),
    )


def _known_ids(row: list[Any], shape: Shape) -> NDArray[np.int64]:
    """The row with -1 for whatever is no expert id, ``(S,)``."""
    known = (v if is_int(v) and 0 <= v < shape.num_experts else -1 for v in row)
    return np.fromiter(known, dtype=np.int64, count=len(row))


def _capped(items: Sequence[int], what: str, finding: Callable[[int], Finding]) -> list[Finding]:
    """A finding for each of the first items, and one that counts the rest."""
    findings = [finding(item) for item in items[:LIMIT]]
    rest = len(items) - LIMIT
    if rest > 0:
        message = f"Layer {findings[0].layer}: {rest} more {what} ({len(items)} in all)."
        findings.append(replace(findings[0], message=message, slot=None, expert=None, count=rest))
    return findings


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _layers(ids: Sequence[int]) -> str:
    return f"{_numbered(ids).capitalize()} {'is' if len(ids) == 1 else 'are'}"


def _numbered(ids: Sequence[int]) -> str:
    """``layer 3`` or ``layers 3-60``."""
    return f"{'layer' if len(ids) == 1 else 'layers'} {format_ids(ids)}"
