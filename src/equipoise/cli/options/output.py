"""Files that a command writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from equipoise.engines.files import output_file, output_folder
from equipoise.engines.map_io import check_map_path, target_of
from equipoise.engines.registry import written_as
from equipoise.errors import EquipoiseError

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document instead of text.")]
Output = Parameter(name=["--output", "-o"])


def _lower(kind: Any, tokens: Sequence[Token]) -> str:
    """The name of an engine as it is known, for those who write SGLang or vLLM."""
    del kind
    return f"{tokens[-1].value}".lower()


For = Parameter(name="--for", converter=_lower)


def check_output(output: Path, *inputs: Path | None, folder: bool = False) -> None:
    """Refuse an output before any long work: one that cannot be written, or onto an input."""
    if str(output) == "-":
        raise EquipoiseError("-: an output is written as a whole; give the name of a file.")
    place = output_folder(output) if folder else output_file(output)
    if not place.exists():
        return
    for source in filter(None, inputs):
        if source.resolve() in (place, *place.parents):
            raise EquipoiseError(
                f"{output}: would be written over the input {source}; give another name."
            )


def check_target(output: Path | None, target: str | None) -> str | None:
    """The format of the map to write, which the name of the file may say; ``None`` without one.

    Raises
    ------
    EquipoiseError
        A format without a file; a name that fits no format, several, or another one.
    """
    if output is None:
        if target is not None:
            raise EquipoiseError("--for: only for a map; give --output, its file, as well.")
        return None
    format = target_of(output, target)
    check_map_path(output, written_as(format))
    return format
