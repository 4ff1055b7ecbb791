"""``equipoise doctor``: what is wrong, ignored, deprecated or wasteful in a launch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.text import Text

from equipoise.cli.options.limits import Size
from equipoise.cli.options.names import in_options
from equipoise.cli.options.output import Json
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.text import one_line
from equipoise.engines.doctor.bounded import MAX_BYTES
from equipoise.engines.doctor.examine import Surroundings, examine
from equipoise.engines.doctor.findings import Diagnosis, Kind
from equipoise.engines.transformers.config import read_model_config


def doctor(
    launch: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    model: Path | None = None,
    devices: Annotated[int | None, Size] = None,
    nodes: Annotated[int | None, Size] = None,
    link_bytes_per_second: Annotated[float | None, Parameter(validator=Number(gte=1))] = None,
    engine_version: str | None = None,
    json: Json = False,
) -> int:
    """Say what is wrong, ignored or wasteful in how an engine is started.

    It also names deprecated settings and prints the corrected launch. Nothing is run. The exit
    status is 1 if something will not work or is ignored.

    For example:

        equipoise doctor "vllm serve deepseek-ai/DeepSeek-V3 --enable-eplb"
        equipoise doctor docker-compose.yml --devices 16 --nodes 2
        equipoise doctor launch.sh --model deepseek-v3 --engine-version 0.11.0

    Parameters
    ----------
    launch
        Launch command in quotes, or the name of a script, a compose file or an options file of
        vLLM, SGLang, TensorRT-LLM, vllm-ascend, ATOM or FastDeploy; - for standard input.
    model
        Model that is served: its config.json, the folder of it, or the name of a public model such
        as deepseek-v3. Adds the checks that depend on its experts.
    devices
        Number of devices of the whole deployment.
    nodes
        Number of machines that the devices are in.
    link_bytes_per_second
        Bandwidth of one device's link between machines; 10 Gbit/s if not given.
    engine_version
        Release of the engine, such as 0.11.0. If not given: that of the container's image, else the
        newest release that is known.
    """
    stdin = sys.stdin.buffer.read(MAX_BYTES + 1) if launch == "-" else b""
    surroundings = Surroundings(
        version=engine_version,
        model=None if model is None else read_model_config(model),
        devices=devices,
        nodes=nodes,
        link_bytes_per_second=link_bytes_per_second,
    )
    found = examine(launch, surroundings, stdin=stdin)
    if json:
        print_json({"launches": [diagnosis.document() for diagnosis in found]})
    else:
        _print(found)
    return 1 if any(diagnosis.fails for diagnosis in found) else 0


_COLOURS = {
    Kind.WRONG: "red",
    Kind.IGNORED: "red",
    Kind.DEPRECATED: "yellow",
    Kind.WASTEFUL: "yellow",
    Kind.ADVICE: "cyan",
}


def _print(found: Sequence[Diagnosis]) -> None:
    console = stdout()
    for number, diagnosis in enumerate(found):
        if number:
            console.print()
        _print_findings(console, diagnosis)
        _print_corrected(console, diagnosis)


def _print_findings(console: Console, diagnosis: Diagnosis) -> None:
    name = f"{diagnosis.name}: " if diagnosis.name else ""
    judged = ", the newest known (--engine-version names another)" if diagnosis.assumed else ""
    console.print(one_line(f"{name}{diagnosis.engine} {diagnosis.version}{judged}"))
    for finding in diagnosis.findings:
        kind = Text(f"  {finding.kind.value} ", style=_COLOURS[finding.kind])
        console.print(kind + Text(one_line(f"{finding.flag}: {finding.text} {finding.remedy}")))
    if not diagnosis.findings:
        console.print("  nothing wrong found")
    for gap in diagnosis.not_checked:
        console.print(Text("  note ", style="cyan") + Text(one_line(in_options(gap))))


def _print_corrected(console: Console, diagnosis: Diagnosis) -> None:
    fixed = diagnosis.corrected
    if fixed is None:
        return
    if fixed.program:
        console.print("\ncorrected:")
        console.print(_lines(fixed.text()))
    for name in sorted(fixed.changed_files):
        console.print(one_line(f"\n{name}, corrected:"))
        console.print(_lines(fixed.file_text(name)).rstrip())


def _lines(words: str) -> str:
    """Words of a file, line by line, without anything that a terminal would obey."""
    return "\n".join("".join(filter(str.isprintable, line)) for line in words.split("\n"))
