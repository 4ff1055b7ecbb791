"""What a user can set about the plug-in for SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.engines._shared import plugin_options as shared
from equipoise.engines.sglang.plugin import VARIABLE


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions(shared.PluginOptions):
    """The options of every plug-in, and SGLang's own.

    Parameters
    ----------
    min_gain
        Least share of the busiest ranks' load that a rebalance takes off them, from 0 to 1; below
        it the slots stay as they are.
    """

    min_gain: float = 0.01


def read_options(value: str) -> PluginOptions:
    """The options from the value of the environment variable.

    Parameters
    ----------
    value
        A JSON object, or the path of a file that holds one.

    Raises
    ------
    EquipoiseError
        No such object, an unknown option or a value out of range.
    """
    return PluginOptions(**shared.read_given(value, VARIABLE, _READERS))


_READERS: Mapping[str, shared.Reader] = {**shared.READERS, "min_gain": shared.share}
