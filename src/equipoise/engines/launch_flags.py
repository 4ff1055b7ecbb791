"""The launch flags that belong to a map, for all engines."""

from __future__ import annotations

from dataclasses import replace

from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, LaunchOptions, MapFormat, given
from equipoise.engines.registry import launcher_for, map_format, written_as
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement


def launch(
    placement: Placement, target: str, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS
) -> Launch | None:
    """Make the flags, environment and files that let an engine load a map.

    Parameters
    ----------
    placement
        Placement in the map.
    target
        Format of the map; or ``vllm``, whose releases read no map.
    map_name
        Path of the map as the engine's processes will see it.
    options
        Options that determine the flags in addition to the map.

    Returns
    -------
    ``None`` for our own format, which no engine reads.

    Raises
    ------
    EquipoiseError
        An unknown format, an option of another engine, or a combination that the engine would
        ignore in silence.
    """
    launcher = launcher_for(target)
    _refuse_options_of_others(target, options, launcher.options if launcher else frozenset())
    if launcher is None:
        return None
    if written_as(target) == target:
        options = _version_that_reads(map_format(target), options)
    return launcher.launch(placement, map_name, options)


def _refuse_options_of_others(target: str, options: LaunchOptions, used: frozenset[str]) -> None:
    unused = sorted(given(options) - used - {"model"})  # the model is a fact, not an option
    if unused:
        usable = ", ".join(map(argument, sorted(used))) or "none"
        raise EquipoiseError(
            f"The launch flags for {target} do not depend on "
            f"{', '.join(map(argument, unused))}; usable: {usable}."
        )


def _version_that_reads(format: MapFormat, options: LaunchOptions) -> LaunchOptions:
    """Set the version in the options if the format is for one version only."""
    if format.version is None:
        return options
    if options.version not in (None, format.version):
        raise EquipoiseError(
            f"Maps of the format {format.name} are read by {format.version} only, so "
            f"{options.version} would ignore this one; leave the version out, or plan for a format "
            "that it reads."
        )
    return replace(options, version=format.version)
