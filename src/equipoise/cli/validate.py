"""``equipoise validate``: every defect of a map, before an engine meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from equipoise.cli.common import Json, MapArguments, print_json, stdout
from equipoise.cli.text import in_options, one_line
from equipoise.engines.formats import Finding, Severity
from equipoise.engines.map_io import validate_map


def validate(
    map: Path,
    /,
    *,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    deployment: MapArguments | None = None,
    json: Json = False,
) -> int:
    """Find every defect of a map, all in one run. Exit status 1 if the engine must not load it.

    Parameters
    ----------
    map
        The map file.
    for_
        The map's format, such as trtllm or vllm-49572; detected from its content if not given.
    """
    findings = validate_map(map, (deployment or MapArguments()).context, format=for_)
    errors = [f for f in findings if f.severity is Severity.ERROR]
    if json:
        print_json({"map": str(map), "valid": not errors, "findings": findings})
    else:
        _print(map, findings, len(errors))
    return 1 if errors else 0


def _print(map: Path, findings: list[Finding], num_errors: int) -> None:
    console = stdout()
    for finding in findings:
        colour = "red" if finding.severity is Severity.ERROR else "yellow"
        label = Text(f"{finding.code} {finding.severity.value}: ", style=colour)
        console.print(label + Text(in_options(one_line(f"{finding.message} {finding.remedy}"))))
    verdict = "do not load it" if num_errors else "valid"
    counts = f"{_count(num_errors, 'error')}, {_count(len(findings) - num_errors, 'warning')}"
    console.print(one_line(f"{map}: {counts}: {verdict}."))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
