"""How the options of an engine for balancing become fields of ``Settings``.

An engine's ``settings.py`` has an ``OptionTable``: every option by name, with what it does here or
why it does nothing, and what the options mean together.
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
"""What options set that ``Settings`` has no field for: a switch, and where the map is written."""

Found = dict[str, Any]
"""What options have set: fields of ``Settings`` by name, ``BALANCES`` and ``RECORD_PATH``."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides how an option is read, besides its value.

    Parameters
    ----------
    num_experts
        ``E``; ``None``: not known.
    file
        File in which the option stands; ``None``: none.
    """

    num_experts: int | None = None
    file: Path | None = None


Reader = Callable[[Any, Facts], Any]
"""From an option's value to the setting's; raises ``EquipoiseError`` for a value it cannot have."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an engine.

    Parameters
    ----------
    here
        What it does here; if it sets nothing, why it has no effect.
    sets
        Settings that get its value, ``BALANCES`` and ``RECORD_PATH`` among them.
    read
        Reader of the value; ``None``: the setting has the same.
    harmless
        Values that ask for nothing, such as the engine's own default, of an option without effect.
        All others are refused.
    advice
        What to tell whoever gives the option; empty: nothing.
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
        Name of the engine, and of that which takes the document there.
    options
        Options by name. Of several that set the same, the first is its present name.
    together
        Function that completes the settings where options mean something together, or where the
        engine's own default is not ours; it also takes the name of the option behind each setting.
    sections
        Keys under which the options may be nested, outermost first.
    is_shared
        Whether the document has other options of the engine next to those for balancing.
    section_may_be_file
        Whether a section may be the path of a file that has the options.
    syntax, parse
        What the document is written in, and its parser, which takes the text and where it is from.
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
    """Read a switch whose true is our false."""
    return not flag(value, facts)


def path(value: Any, _facts: Facts) -> Path | None:
    """Read the name of a file; null names none."""
    if value is None:
        return None
    if not is_path(value):
        raise EquipoiseError(f"{brief(value)} was given; expected the path of a file.")
    return Path(value)


def is_path(value: object) -> bool:
    """Whether a value can be the path of a file, which may be missing."""
    try:
        return (
            isinstance(value, str | Path) and f"{value}" != "" and b"\0" not in os.fsencode(value)
        )
    except UnicodeEncodeError:  # half a character
        return False


def redundant_of_slots(value: Any, facts: Facts) -> int:
    """Read the number of all slots of a layer."""
    if facts.num_experts is None:
        raise EquipoiseError("the number of experts is not known; give it too.")
    return check_whole("the number", value, low=facts.num_experts) - facts.num_experts


REDUNDANT = Option(
    here="Redundant slots of a layer, all ranks together: experts and redundant slots must divide "
    "over the ranks. With a map it may be left out, since the map says it.",
    sets=("num_redundant",),
)
NO_PLANNER = "plans are made by this package's own planner"
