"""What a check says of a launch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from equipoise.engines.doctor.command import Change, LaunchCommand
from equipoise.errors import Message


class Kind(Enum):
    """What a finding means for whoever starts the engine."""

    WRONG = "wrong"  # the engine refuses it, stops, or answers wrongly
    IGNORED = "ignored"  # the engine takes it and does not act on it
    DEPRECATED = "deprecated"  # it works, under a name or in a place that goes away
    WASTEFUL = "wasteful"  # it works, and costs more than it has to
    ADVICE = "advice"  # nothing is the matter; a number or a habit worth knowing

    @property
    def fails(self) -> bool:
        """Whether the launch does not do what it says."""
        return self in (Kind.WRONG, Kind.IGNORED)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check has to say.

    Parameters
    ----------
    kind
        What it means.
    flag
        The flag, key or variable that it is about, as users write it.
    text
        What is the matter.
    remedy
        What to do about it.
    fix
        The changes of the command that do it; empty where only the user can choose.
    """

    kind: Kind
    flag: str
    text: str
    remedy: str
    fix: tuple[Change, ...] = ()


def wrong(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """The engine refuses it, stops, or answers wrongly."""
    return Finding(kind=Kind.WRONG, flag=flag, text=text, remedy=remedy, fix=fix)


def ignored(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """The engine takes it and does not act on it."""
    return Finding(kind=Kind.IGNORED, flag=flag, text=text, remedy=remedy, fix=fix)


def deprecated(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """It works, under a name or in a place that goes away."""
    return Finding(kind=Kind.DEPRECATED, flag=flag, text=text, remedy=remedy, fix=fix)


def wasteful(flag: str, text: str, remedy: str, *fix: Change) -> Finding:
    """It works, and costs more than it has to."""
    return Finding(kind=Kind.WASTEFUL, flag=flag, text=text, remedy=remedy, fix=fix)


def advice(flag: str, text: str, remedy: str) -> Finding:
    """A number or a habit worth knowing."""
    return Finding(kind=Kind.ADVICE, flag=flag, text=text, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What there is to say of one launch.

    Parameters
    ----------
    name
        Which of several it is (a service, a number); empty for the only one.
    engine
        The engine's own name.
    version
        The release that it was judged by.
    assumed
        Whether that is only the newest release that is known.
    findings
        What was found, the worst first.
    not_checked
        What could not be looked at, and why, one sentence each.
    corrected
        The command with all fixes, if there are any.
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
        """Whether a finding says that something will not work or is ignored."""
        return any(finding.kind.fails for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The same for a JSON document."""
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
