"""Checks of the slots of any map.

Every function reports all defects that it finds. An engine passes the codes of its rules
(``Rules``); the texts are the same for all engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.findings import capped, describe, is_int
from equipoise.engines.formats import Finding, MapContext, RawMap, Severity
from equipoise.errors import EquipoiseError
from equipoise.placement import check_slot_count

SAME_RANK = "W1"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """An engine's codes for the defects that every map can have.

    Parameters
    ----------
    ids
        Code for an id that is not an integer, or not in ``[0, E)``.
    missing
        Code for an expert without a slot.
    width
        Code for a row that is not a list or has a wrong length.
    slots
        Code for ``S < E``, or an ``R`` that does not divide ``S``.
    stated
        Code for ranks or experts in the file that contradict the deployment.
    redundancy
        Code for an ``S - E`` that differs from the engine's configuration.
    duplicates
        Code for a second copy of an expert on the same rank.
    duplicates_severity
        Severity of duplicates: an error if the engine cannot handle them.
    place
        Function that names a slot as the file does: ``place(layer_key, slot)``.
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
    """The sizes that a map is checked against; ``num_ranks`` is ``None`` if unknown."""

    num_ranks: int | None
    num_experts: int
    num_slots: int


def shape_of(raw: RawMap, context: MapContext) -> Shape:
    """Choose the sizes to check against: the deployment's, else the file's, else from the slots.

    From the slots, the number of experts is the highest id plus one. This cannot reveal that the
    last experts are missing everywhere: see ``unchecked``.
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
    """Return the highest id below its row's length (``E <= S``) plus one; 0 if there is none."""
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
    """Find all defects of sizes and slots, after the structural ones found while parsing."""
    shape = shape_of(raw, context)
    findings = [*raw.findings, *_check_sizes(raw, context, shape, rules)]
    if raw.num_ranks is not None:  # whose slots they are is as the file says
        shape = replace(shape, num_ranks=raw.num_ranks)
    for key, row in zip(raw.layer_keys, raw.rows, strict=True):
        findings += _check_row(key, row, shape, rules)
    return findings


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
            num_experts=max(shape.num_experts, 1),  # 0 if no id is valid; each is reported
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
            remedy="Every layer needs the same number of slots; write the row again.",
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
        *capped(
            strange,
            "slots that hold no integer",
            lambda slot: finding(
                slot, "; expected an integer.", "Write the id as a plain integer."
            ),
        ),
        *capped(
            outside,
            "slots outside the range",
            lambda slot: finding(
                slot, f"; expert ids are 0 to {last}.", f"Use a logical expert id from 0 to {last}."
            ),
        ),
    ]


def _check_missing(key: int | str, row: list[Any], shape: Shape, rules: Rules) -> list[Finding]:
    if shape.num_experts > shape.num_slots:  # already reported as a size; do not allocate
        return []
    ids = _known_ids(row, shape)
    absent = np.flatnonzero(np.bincount(ids[ids >= 0], minlength=shape.num_experts) == 0)
    remedy = "Give every expert at least one slot; a token routed to it has no place to go."
    held = shape.num_experts - len(absent)
    if len(absent) and absent[0] == held > 0:  # the layer holds exactly the lower ids
        remedy += (
            f" If the layer has only experts 0 to {held - 1}: all layers of a map have the same "
            "experts, so give its layers a map of their own."
        )
    return capped(
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
    """Find second copies on one rank, if the sizes say which slots belong to which rank."""
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
    return capped(
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
    """Return the row with -1 for everything that is not an expert id, ``(S,)``."""
    known = (v if is_int(v) and 0 <= v < shape.num_experts else -1 for v in row)
    return np.fromiter(known, dtype=np.int64, count=len(row))
