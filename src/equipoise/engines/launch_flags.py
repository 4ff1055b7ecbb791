"""The launch flags that go with a map, whatever its engine."""

from __future__ import annotations

from dataclasses import replace

from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, LaunchOptions, MapFormat, given
from equipoise.engines.registry import launcher_of
from equipoise.engines.registry import map_format as find_map_format
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


def launch(
    placement: Placement, map_format: str, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS
) -> Launch | None:
    """Flags, environment and files that make an engine load a map of this format.

    Returns
    -------
    ``None`` for our own format, which no engine reads.

    Raises
    ------
    EquipoiseError
        An unknown format, an option of another engine, or a combination the engine would ignore
        in silence.
    """
    format = find_map_format(map_format)
    launcher = launcher_of(format)
    _refuse_options_of_others(format, options, launcher.options if launcher else frozenset())
    if launcher is None:
        return None
    return launcher.launch(placement, map_name, _version_that_reads(format, options))


def _refuse_options_of_others(
    format: MapFormat, options: LaunchOptions, used: frozenset[str]
) -> None:
    unused = sorted(given(options) - used)
    if unused:
        usable = ", ".join(sorted(used)) or "none"
        raise EquipoiseError(
            f"The launch flags for a map of the format {format.name} do not depend on "
            f"{', '.join(unused)}; usable: {usable}."
        )


def _version_that_reads(format: MapFormat, options: LaunchOptions) -> LaunchOptions:
    """The options with the version that a format is for, where it is for one only."""
    if format.version is None:
        return options
    if options.version not in (None, format.version):
        raise EquipoiseError(
            f"Maps of the format {format.name} are read by {format.version} only, so "
            f"{options.version} would ignore this one; leave the version out, or plan for a format "
            "that it reads."
        )
    return replace(options, version=format.version)
