"""Examination of all launches in a command, script or file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from equipoise.checks import brief, check_count, check_number
from equipoise.engines.doctor.bounded import decoded, is_here, read_bounded
from equipoise.engines.doctor.case import Case, NotKnownError, Release
from equipoise.engines.doctor.checks import about, check_keys, check_names, check_values
from equipoise.engines.doctor.command import LaunchCommand
from equipoise.engines.doctor.findings import Diagnosis, Finding, Kind, ignored, wrong
from equipoise.engines.doctor.knowledge import Check
from equipoise.engines.doctor.sources import Launch, launches_of_file, launches_of_text
from equipoise.engines.registry import all_knowledge
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError, Message

_OF_ANY_ENGINE = (check_values, check_names, check_keys)
_MOST_TURNS = 6
_DEVICE_LISTS = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Facts that a launch does not contain; ``None`` means unknown.

    Parameters
    ----------
    version
        Release of the engine; ``None`` for that of the container's image, else the newest known.
    model
        Configuration of the model.
    devices, nodes
        Number of devices of the whole deployment, and of machines.
    link_bytes_per_second
        Bandwidth of one device's link between machines.

    Raises
    ------
    EquipoiseError
        Numbers out of range.
    """

    version: str | None = None
    model: ModelConfig | None = None
    devices: int | None = None
    nodes: int | None = None
    link_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "nodes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.link_bytes_per_second is not None:
            check_number(
                "link_bytes_per_second", self.link_bytes_per_second, low=1, high=float("1e15")
            )


def examine(source: str, surroundings: Surroundings, *, stdin: bytes = b"") -> list[Diagnosis]:
    """Examine the launches of a source; return one diagnosis for each.

    Parameters
    ----------
    source
        Launch command, path of a script, compose file or options file, or ``-`` for ``stdin``.
    stdin
        Content that ``-`` stands for.

    Raises
    ------
    EquipoiseError
        A source that cannot be read, or without a launch of a known engine.
    """
    launches = _read(source, stdin)
    if not launches:
        titles = ", ".join(known.title for known in all_knowledge())
        raise EquipoiseError(
            f"No launch of {titles} was found; expected vllm serve, python -m "
            "sglang.launch_server, trtllm-serve or the like, a compose file or an options file."
        )
    folder = Path(source).parent if is_here(Path(source)) else Path()
    return [diagnose(launch, surroundings, folder) for launch in _named(launches)]


def _read(source: str, stdin: bytes) -> list[Launch]:
    engines = all_knowledge()
    if source == "-":
        return launches_of_file(Path("standard input"), decoded(stdin, "standard input"), engines)
    if is_here(Path(source)):
        return launches_of_file(Path(source), read_bounded(Path(source)), engines)
    if not re.search(r"\s", source.strip()):
        raise EquipoiseError(
            f"{source!r} is neither a file nor a command; put the whole command in quotes, or give "
            "the name of a file."
        )
    return launches_of_text(
        decoded(source.encode(errors="surrogatepass"), "The command"), engines, Path()
    )


def _named(launches: Sequence[Launch]) -> list[Launch]:
    """Give launches without a name a number, if there are several."""
    if len(launches) == 1:
        return list(launches)
    return [replace(one, name=one.name or f"{i}") for i, one in enumerate(launches, start=1)]


def diagnose(launch: Launch, surroundings: Surroundings, folder: Path) -> Diagnosis:
    """Run the checks of the engine on one launch."""
    known = launch.command.known
    given = surroundings.version or launch.version
    case = Case(
        command=launch.command,
        release=Release.of(given, known.newest),
        model=surroundings.model,
        devices=surroundings.devices or launch.devices or _visible_devices(launch),
        nodes=surroundings.nodes,
        link_bytes_per_second=surroundings.link_bytes_per_second,
        folder=folder,
    )
    findings, gaps, command = _judged(case)
    findings = [*_of_text(launch), *findings]
    findings.sort(key=lambda finding: list(Kind).index(finding.kind))
    missing = (_gap(reason, ()) for reason in launch.missing)
    return Diagnosis(
        name=launch.name,
        engine=known.title,
        version=case.release.name,
        assumed=given is None,
        findings=tuple(findings),
        not_checked=(*missing, *(_gap(reason, subjects) for reason, subjects in gaps.items())),
        corrected=command if command != launch.command or launch.broken_lines else None,
    )


def _judged(case: Case) -> tuple[list[Finding], dict[str, list[str]], LaunchCommand]:
    """Return the findings, the checks that could not be made, and the command with all fixes.

    Names are corrected before the other checks. A fix may reveal more, so the checks are repeated
    on the corrected command.
    """
    fixed: dict[tuple[Kind, str, str], Finding] = {}
    names = (*_OF_ANY_ENGINE, *case.command.known.renames)
    every = (*names, *case.command.known.checks)
    for turn in range(_MOST_TURNS):
        gaps: dict[str, list[str]] = {}
        found = list(_checked(case, every if turn else names, gaps))
        fixes = [finding for finding in found if finding.fix and _key(finding) not in fixed]
        places = {(f.kind, f.flag, _places(f)) for f in fixes}
        fixed = {k: f for k, f in fixed.items() if (f.kind, f.flag, _places(f)) not in places}
        fixed |= {_key(finding): finding for finding in fixes}
        command = case.command.corrected(change for finding in fixes for change in finding.fix)
        if command == case.command and turn:
            break
        case = replace(case, command=command)
    left = {_key(finding): finding for finding in found}
    return list((fixed | left).values()), gaps, case.command


def _key(finding: Finding) -> tuple[Kind, str, str]:
    return finding.kind, finding.flag, finding.text


def _places(finding: Finding) -> frozenset[tuple[str, ...]]:
    """Return what a finding changes; a later finding that changes the same replaces it."""
    return frozenset(change.path for change in finding.fix)


def _checked(case: Case, checks: Sequence[Check], gaps: dict[str, list[str]]) -> Iterator[Finding]:
    for check in checks:
        try:
            yield from check(case)
        except NotKnownError as gap:
            gaps.setdefault(str(gap), []).append(about(check))


def _of_text(launch: Launch) -> Iterator[Finding]:
    """Check how a launch is written, for any engine."""
    if launch.broken_lines:
        lines = ", ".join(map(str, launch.broken_lines))
        yield wrong(
            f"lines {lines}",
            "Something follows the backslash at the end of the line, so the shell ends the command "
            "there and runs the rest as another one.",
            "Let nothing follow the backslash, not even a comment.",
        )
    for key in dict.fromkeys(launch.repeated):
        yield ignored(
            brief(key),
            "The key appears twice in one mapping; the last one counts.",
            "Keep the one that is meant.",
        )


def _gap(reason: str, subjects: Sequence[str]) -> Message:
    what = ", ".join(dict.fromkeys(subjects)) or "What stands in it"
    return Message(f"{what}: not checked, since {reason}.")


def _visible_devices(launch: Launch) -> int | None:
    """Count the devices that a variable makes visible, if the launch is a single command."""
    command = launch.command
    if command.get("data-parallel-size-local") or command.get("data-parallel-address"):
        return None
    nodes = command.get("nnodes") or 1
    for name in _DEVICE_LISTS:
        listed = command.environment.get(name)
        if isinstance(listed, str) and listed and isinstance(nodes, int):
            return nodes * len(listed.split(","))
    return None
