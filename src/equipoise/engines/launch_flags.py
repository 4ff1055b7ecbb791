"""The launch flags that go with a map, whatever its engine."""

from __future__ import annotations

from dataclasses import replace

from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, LaunchOptions, MapFormat, given
from equipoise.engines.registry import launcher_for, map_format, written_as
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement


def launch(
    placement: Placement, target: str, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS
) -> Launch | None:
    """Flags, environment and files that make an engine load a map.

    Parameters
    ----------
    placement
        What the map holds.
    target
        The format of the map; or ``vllm``, whose releases read none.
    map_name
        Path of the map as the engine's processes will see it.
    options
        What decides the flags besides the map.

    Returns
    -------
    ``None`` for our own format, which no engine reads.

    Raises
    ------
    EquipoiseError
        An unknown format, an option of another engine, or a combination the engine would ignore
        in silence.
    """
    launcher = launcher_for(target)
    _refuse_options_of_others(target, options, launcher.options if launcher else frozenset())
    if launcher is None:
        return None
    if written_as(target) == target:
        options = _version_that_reads(map_format(target), options)
    return launcher.launch(placement, map_name, options)


def _refuse_options_of_others(target: str, options: LaunchOptions, used: frozenset[str]) -> None:
    unused = sorted(given(options) - used - {"model"})  # a fact, not an option of an engine
    if unused:
        usable = ", ".join(map(argument, sorted(used))) or "none"
        raise EquipoiseError(
            f"The launch flags for {target} do not depend on "
            f"{', '.join(map(argument, unused))}; usable: {usable}."
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
