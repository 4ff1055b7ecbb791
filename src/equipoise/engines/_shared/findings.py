"""Helpers for findings about placement files, and their form for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from equipoise.checks import brief
from equipoise.engines.formats import Finding, Severity
from equipoise.layer_ids import format_ids

LIMIT = 20  # findings of one kind in a layer that are listed; the rest are counted
SHOWN = 3  # findings of one kind that people see; see ``by_kind``


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is an integer and not a boolean, which Python counts as an integer."""
    return type(value) is int


def describe(value: object) -> str:
    """Describe a value in a file briefly, with its type unless it is an integer."""
    names = {bool: "boolean", float: "float", str: "string", list: "list", dict: "mapping"}
    if value is None:
        return "nothing (null)"
    if is_int(value):
        return str(value) if abs(value) < 10**20 else "an enormous number"
    return f"the {names.get(type(value), type(value).__name__)} {brief(value)}"


def shown_names(keys: Sequence[Any]) -> str:
    """Quote the first keys, and count the others."""
    names = ", ".join(map(brief, keys[:5]))
    return names if len(keys) <= 5 else f"{names} and {len(keys) - 5} more"


def numbered(ids: Sequence[int]) -> str:
    """Write layer numbers as ``layer 3`` or ``layers 3-60``."""
    return f"{'layer' if len(ids) == 1 else 'layers'} {format_ids(ids)}"


def capped(items: Sequence[int], what: str, finding: Callable[[int], Finding]) -> list[Finding]:
    """Make a finding for each of the first items, and one that counts the rest."""
    findings = [finding(item) for item in items[:LIMIT]]
    rest = len(items) - LIMIT
    if rest > 0:
        message = f"Layer {findings[0].layer}: {rest} more {what} ({len(items)} in all)."
        findings.append(replace(findings[0], message=message, slot=None, expert=None, count=rest))
    return findings


def repeated_keys(keys: Iterable[Any], code: str) -> list[Finding]:
    """Make a finding that names the keys that appear twice in one mapping, if any."""
    names = list(dict.fromkeys(keys))
    if not names:
        return []
    subject = "The key" if len(names) == 1 else "The keys"
    verb = "appears" if len(names) == 1 else "appear"
    return [
        Finding(
            code=code,
            message=f"{subject} {shown_names(names)} {verb} twice in one mapping; most programs "
            "silently take the last.",
            remedy="Keep the one that is meant.",
            count=len(names),
        )
    ]


def unknown_keys(
    mapping: dict[Any, Any], known: Iterable[str], code: str, where: str
) -> list[Finding]:
    """Make a finding that names the keys that the format does not know, if any.

    The placement is certain without these keys, so the file can still be read.
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
    """Sort findings for people, errors first, and merge many of one kind into one with a count."""
    kinds: dict[tuple[object, ...], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: list(Severity).index(f.severity)):
        kinds.setdefault(_kind(finding), []).append(finding)
    return [shown for same in kinds.values() for shown in _merged(same)]


def has_errors(findings: Iterable[Finding]) -> bool:
    """Tell whether one of the findings is an error."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def _kind(finding: Finding) -> tuple[object, ...]:
    """Return what findings of one kind share: the rule, and the remedy without its numbers."""
    if finding.layer is None:
        return (finding.code, finding.severity, finding.message)
    return (finding.code, finding.severity, re.sub(r"\d+", "#", finding.remedy))


def _merged(same: list[Finding]) -> list[Finding]:
    first, total = same[0], sum(finding.count for finding in same)
    if first.layer is None or total <= SHOWN:
        return same
    keys = list(dict.fromkeys(finding.layer for finding in same))
    ids = sorted(key for key in keys if is_int(key))
    where = numbered(ids) if len(ids) == len(keys) else f"layers {shown_names(keys)}"
    message = f"{first.message} In all there are {total} of this kind, in {where}."
    return [replace(first, message=message, count=total)]
