"""The options of the plug-in for vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.checks import brief
from equipoise.engines._shared import start_map as shared
from equipoise.engines._shared.plugin_options import Reader
from equipoise.engines.files import output_file
from equipoise.engines.vllm.plugin import VARIABLE
from equipoise.errors import EquipoiseError


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions(shared.StartOptions):
    """The options of every plug-in, those of its starting map, and vLLM's own.

    Parameters
    ----------
    status
        File with the outcome of the plans, for the server's metrics; ``None``: no such file.
    """

    status: Path | None = None


def read_options(value: str) -> PluginOptions:
    """Read the options from the value of the environment variable.

    Parameters
    ----------
    value
        JSON object, or the path of a file that holds one.

    Raises
    ------
    EquipoiseError
        There is no such object, an option is unknown, out of range or without effect.
    """
    return PluginOptions(**shared.read_start_options(value, VARIABLE, _READERS))


def _status(name: str, value: Any) -> Path:
    if not isinstance(value, str):
        raise EquipoiseError(f"{name} is {brief(value)}; expected the path of a file.")
    return output_file(Path(value))


_READERS: Mapping[str, Reader] = {**shared.READERS, "status": _status}
