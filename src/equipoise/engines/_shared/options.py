"""Conversion of an engine's options for balancing to fields of ``Settings``.

An engine's ``settings.py`` has an ``OptionTable``. It lists every option by name, with its effect
here or the reason why it has none, and says what the options mean together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.checks import brief, check_whole
from equipoise.errors import EquipoiseError
from equipoise.json_text import parse_text

BALANCES, RECORD_PATH = "balances", "record_path"
"""Names of what options set without a field in ``Settings``: a switch, and a path for maps."""

Found = dict[str, Any]
"""Values that options have set: fields of ``Settings`` by name, ``BALANCES``, ``RECORD_PATH``."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts, other than its value, that determine how an option is read.

    Parameters
    ----------
    num_experts
        Number of experts ``E``; ``None`` if unknown.
    file
        File that contains the option; ``None`` if none does.
    """

    num_experts: int | None = None
    file: Path | None = None


Reader = Callable[[Any, Facts], Any]
"""Function from an option's value to a setting's; it raises ``EquipoiseError`` for wrong values."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an engine.

    Parameters
    ----------
    here
        Effect of the option here; if it sets nothing, the reason.
    sets
        Settings that get its value, possibly ``BALANCES`` or ``RECORD_PATH``.
    read
        Reader of the value; ``None`` if the setting has the same value.
    harmless
        Accepted values of an option without effect, such as the engine's default. All others are
        refused.
    advice
        Advice for users who give the option; empty for none.
    """

    here: str
    sets: tuple[str, ...] = ()
    read: Reader | None = None
    harmless: tuple[Any, ...] = ()
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class OptionTable:
    """The options of an engine for balancing.

    Parameters
    ----------
    engine, given_as
        Name of the engine, and of the argument that takes the options there.
    options
        Options by name. If several set the same, the first has the current name.
    together
        Function that completes the settings where options mean something together, or where the
        engine's own default is not ours; it also takes the name of the option behind each setting.
    sections
        Keys under which the options may be nested, outermost first.
    is_shared
        Flag that the document also has options of the engine that are not for balancing.
    section_may_be_file
        Flag that a section may be the path of a file with the options.
    syntax, parse
        Syntax of the document, and its parser, which takes the text and its source.
    """

    engine: str
    given_as: str
    options: Mapping[str, Option]
    together: Callable[[Found, Mapping[str, str]], Found]
    sections: tuple[tuple[str, ...], ...] = ()
    is_shared: bool = False
    section_may_be_file: bool = False
    syntax: str = "JSON"
    parse: Callable[[str, str], Any] = parse_text


def flag(value: Any, _facts: Facts) -> bool:
    """Read a switch."""
    if not isinstance(value, bool):
        raise EquipoiseError(f"{brief(value)} was given; expected true or false.")
    return value


def flag_off(value: Any, facts: Facts) -> bool:
    """Read a switch whose meaning is inverted here."""
    return not flag(value, facts)


def path(value: Any, _facts: Facts) -> Path | None:
    """Read the path of a file; null means none."""
    if value is None:
        return None
    if not is_path(value):
        raise EquipoiseError(f"{brief(value)} was given; expected the path of a file.")
    return Path(value)


def is_path(value: object) -> bool:
    """Tell whether a value can be the path of a file, which may be missing."""
    try:
        return (
            isinstance(value, str | Path) and f"{value}" != "" and b"\0" not in os.fsencode(value)
        )
    except UnicodeEncodeError:  # a lone surrogate
        return False


def redundant_of_slots(value: Any, facts: Facts) -> int:
    """Read the number of all slots of a layer, and return the redundant ones."""
    if facts.num_experts is None:
        raise EquipoiseError("the number of experts is not known; give it too.")
    return check_whole("the number", value, low=facts.num_experts) - facts.num_experts


REDUNDANT = Option(
    here="Redundant slots of a layer, all ranks together: experts and redundant slots must divide "
    "over the ranks. With a map it may be left out, since the map says it.",
    sets=("num_redundant",),
)
NO_PLANNER = "plans are made by this package's own planner"
