"""The document with an engine's options: which of them are for balancing, and which are not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.checks import brief
from equipoise.engines._shared.findings import describe
from equipoise.engines._shared.map_text import read_text
from equipoise.engines._shared.options import OptionTable, is_path
from equipoise.engines.files import check_readable
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_text

_IS_TEXT = re.compile(r"\s*(?:[{\[\"]|[\w-]+\s*:(?:\s|$))")  # of a document, and not a path
_SIMILAR = 0.8  # of two names, from which on one is taken for a misspelling of the other


@dataclass(kw_only=True)
class OptionsDocument:
    """What a document of options holds.

    Parameters
    ----------
    given
        Options for balancing and their values, in order.
    foreign
        Names of the engine's other options in the same document.
    file
        File in which the options for balancing stand; ``None``: none.
    """

    given: list[tuple[str, Any]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A mapping of options, and the file it stands in; ``None``: none."""

    values: Mapping[str, Any]
    file: Path | None = None


def load_mapping(
    source: str | Path | Mapping[str, Any],
    given_as: str,
    *,
    syntax: str = "JSON",
    parse: Callable[[str, str], Any] = parse_text,
) -> Loaded:
    """The options in a mapping, in its text, or in the file that a path names.

    Parameters
    ----------
    given_as
        Name of that which takes the source, for messages.
    syntax, parse
        What a text is written in, and its parser, which takes the text and where it is from.

    Raises
    ------
    EquipoiseError
        No such file, or no mapping in it.
    """
    if isinstance(source, Mapping):
        return Loaded(values=source)
    if isinstance(source, str) and _IS_TEXT.match(source):
        return Loaded(values=_mapping(parse(source, given_as), given_as))
    if not is_path(source):
        raise EquipoiseError(
            f"{given_as} is {brief(source)}; expected options as {syntax}, or the path of a file "
            "with them."
        )
    file = Path(source)
    check_readable(file)
    return Loaded(values=_mapping(parse(read_text(file), f"{source}"), f"{source}"), file=file)


def read_document(table: OptionTable, source: str | Path | Mapping[str, Any]) -> OptionsDocument:
    """Read the options that an engine's manual would have in one place.

    Parameters
    ----------
    table
        Table of the engine's options.
    source
        A mapping, its text, or the path of a file with it.

    Raises
    ------
    EquipoiseError
        No such file or no such document; an option that the engine does not have.
    """
    found = OptionsDocument()
    document = _load(table, source, found)
    sections = {section[0]: section[1:] for section in table.sections if section[0] in document}
    of_balancing = not sections and not table.is_shared
    for name, value in document.items():
        if name in sections:
            _add_section(table, name, sections[name], value, found)
        else:
            _add(table, name, value, found, strict=of_balancing)
    return found


def _add_section(
    table: OptionTable, name: str, inner: tuple[str, ...], value: Any, found: OptionsDocument
) -> None:
    """Add the options in a section; it may be the name of another file that has them."""
    for key in inner:
        section = _mapping(value, name)
        found.foreign += [f"{name}.{other}" for other in section if other != key]
        name, value = f"{name}.{key}", section.get(key)
    if value is None:
        return
    if isinstance(value, str) and table.section_may_be_file:
        value = _load(table, Path(value), found)
    for option, setting in _mapping(value, name).items():
        _add(table, option, setting, found, strict=True)


def _add(
    table: OptionTable, name: Any, value: Any, found: OptionsDocument, *, strict: bool
) -> None:
    if name in table.options:
        found.given.append((name, value))
        return
    meant = difflib.get_close_matches(f"{name}", table.options, 1, _SIMILAR)
    if not strict and not meant:
        found.foreign.append(f"{name}")
        return
    known = f"did you mean {meant[0]}?" if meant else f"it has {', '.join(sorted(table.options))}."
    raise EquipoiseError(f"{table.engine} has no option {brief(name)} for balancing; {known}")


def _load(
    table: OptionTable, source: str | Path | Mapping[str, Any], found: OptionsDocument
) -> Mapping[str, Any]:
    """The document of a source, and its file to what is ``found``."""
    loaded = load_mapping(source, table.given_as, syntax=table.syntax, parse=table.parse)
    if loaded.file is not None:
        found.file = loaded.file
    return loaded.values


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(f"{where}: holds {describe(value)}; expected a mapping of options.")
    return value
