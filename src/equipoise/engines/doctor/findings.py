"""Findings of the doctor's checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from equipoise.engines.doctor.command import Change, LaunchCommand
from equipoise.errors import Message


class Kind(Enum):
    """The kind of a finding, by its meaning for the operator."""

    WRONG = "wrong"  # the engine refuses it, stops, or gives wrong results
    IGNORED = "ignored"  # the engine accepts it and ignores it
    DEPRECATED = "deprecated"  # it works, but the name or place will be removed
    WASTEFUL = "wasteful"  # it works, but costs more than necessary
    ADVICE = "advice"  # nothing is wrong; a useful number or practice

    @property
    def fails(self) -> bool:
        """Whether the launch does not do what it says."""
        return self in (Kind.WRONG, Kind.IGNORED)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of a check.

    Parameters
    ----------
    kind
        Kind of finding.
    flag
        Flag, key or variable that it is about, as users write it.
    text
        Sentences on what is wrong.
    remedy
        Sentences on what to do.
    fix
        Changes of the command that do it; empty if only the user can choose.
    """

    kind: Kind
    flag: str
    text: str
    remedy: str
    fix: tuple[Change, ...] = ()


def wrong(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """Make a finding: the engine refuses it, stops, or gives wrong results."""
    return Finding(kind=Kind.WRONG, flag=flag, text=text, remedy=remedy, fix=fix)


def ignored(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """Make a finding: the engine accepts it and ignores it."""
    return Finding(kind=Kind.IGNORED, flag=flag, text=text, remedy=remedy, fix=fix)


def deprecated(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """Make a finding: it works, but the name or place will be removed."""
    return Finding(kind=Kind.DEPRECATED, flag=flag, text=text, remedy=remedy, fix=fix)


def wasteful(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """Make a finding: it works, but costs more than necessary."""
    return Finding(kind=Kind.WASTEFUL, flag=flag, text=text, remedy=remedy, fix=fix)


def advice(flag: str, text: str, remedy: str) -> Finding:
    """Make a finding: a useful number or practice."""
    return Finding(kind=Kind.ADVICE, flag=flag, text=text, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The diagnosis of one launch.

    Parameters
    ----------
    name
        Name of the launch (a service, a number); empty if it is the only one.
    engine
        Name of the engine.
    version
        Release that it was judged by.
    assumed
        Flag that this is only the newest known release.
    findings
        Findings, the worst first.
    not_checked
        Sentences on what could not be checked, and why.
    corrected
        Command with all fixes, if there are any.
    """

    name: str
    engine: str
    version: str
    assumed: bool
    findings: tuple[Finding, ...]
    not_checked: tuple[Message, ...] = ()
    corrected: LaunchCommand | None = None

    @property
    def fails(self) -> bool:
        """Whether something will not work or is ignored, by any finding."""
        return any(finding.kind.fails for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Return the diagnosis for a JSON document."""
        fixed = self.corrected
        return {
            "name": self.name,
            "engine": self.engine,
            "version": self.version,
            "version_assumed": self.assumed,
            "findings": [
                {"kind": f.kind.value, "flag": f.flag, "text": f.text, "remedy": f.remedy}
                for f in self.findings
            ],
            "not_checked": self.not_checked,
            "corrected": None if fixed is None else fixed.text(),
            "corrected_files": (
                {}
                if fixed is None
                else {n: fixed.file_text(n) for n in sorted(fixed.changed_files)}
            ),
        }
