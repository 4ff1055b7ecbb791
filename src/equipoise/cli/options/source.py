"""Where steps come from, on the command line: a recording, or a prior in place of one."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli.options.names import option_name
from equipoise.cli.options.recording import TraceArguments
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError


def check_source(path: Path | None, prior: str | None, reading: TraceArguments | None) -> None:
    """Refuse neither or both of a recording and a prior, and ways to read without one to read."""
    if (path is None) == (prior is None):
        raise EquipoiseError("Give a recording or --prior, one of the two.")
    if prior is not None and reading is not None:
        unused = ", ".join(sorted(map(option_name, given(reading))))
        raise EquipoiseError(f"{unused}: only with a recording.")
