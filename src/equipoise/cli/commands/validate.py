"""``equipoise validate``: every defect of a map, before an engine meets it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.text import Text

from equipoise.cli.options.maps import MapArguments, check_decoder_layers, check_model_key
from equipoise.cli.options.names import in_options
from equipoise.cli.options.output import For, Json
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.text import one_line
from equipoise.engines._shared.findings import by_kind
from equipoise.engines.formats import Severity
from equipoise.engines.map_io import MapInspection, inspect_map
from equipoise.engines.registry import written_as


def validate(
    map: Path,
    /,
    *,
    for_: Annotated[str | None, For] = None,
    deployment: MapArguments | None = None,
    json: Json = False,
) -> int:
    """Find every defect of a map before an engine loads it.

    All defects are found in one run. The exit status is 1 if the engine must not load the map.

    For example:

        equipoise validate map.yaml --ranks 8
        equipoise validate map.yaml --for trtllm --ranks 8 --experts 32 --layers 0-4
        equipoise validate MAP --for sglang --ranks 32 --hidden-layers 61

    Parameters
    ----------
    map
        Map to validate.
    for_
        Format of the map, such as trtllm or vllm-49572, or vllm for what equipoise plan writes for
        it. If not given: detected from its content.
    """
    deployment = deployment or MapArguments()
    format = None if for_ is None else written_as(for_)
    found = inspect_map(map, deployment.context, format=format)
    check_decoder_layers(deployment.hidden_layers, found.format)
    check_model_key(deployment.model_key, found.format)
    errors = _count(found, Severity.ERROR)
    if json:
        print_json({"map": str(map), "valid": not errors, **asdict(found)})
    else:
        _print(map, found)
    return 1 if errors else 0


_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def _print(map: Path, found: MapInspection) -> None:
    console = stdout()
    for finding in by_kind(found.findings):
        label = Text(f"{finding.code} {finding.severity.value}: ", style=_COLOURS[finding.severity])
        console.print(label + Text(one_line(in_options(finding.text))))
    for note in found.notes:
        console.print(Text("note: ", style="cyan") + Text(one_line(in_options(note))))
    errors, warnings = _count(found, Severity.ERROR), _count(found, Severity.WARNING)
    verdict = "do not load it" if errors else "valid"
    counts = f"{_words(errors, 'error')}, {_words(warnings, 'warning')}"
    console.print(one_line(f"{map}: {found.format}: {counts}: {verdict}."))


def _count(found: MapInspection, severity: Severity) -> int:
    return sum(finding.count for finding in found.findings if finding.severity is severity)


def _words(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
