"""Files that a command writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.engines.files import output_file, output_folder
from equipoise.errors import EquipoiseError

Json = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print one JSON document instead of text.")
]


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
