"""Reading of a document with an engine's options, of which some are for balancing."""

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

_IS_TEXT = re.compile(r"\s*(?:[{\[\"]|[\w-]+\s*:(?:\s|$))")  # a document's text, not a path
_SIMILAR = 0.8  # similarity of two names from which one counts as a misspelling


@dataclass(kw_only=True)
class OptionsDocument:
    """The content of a document with options.

    Parameters
    ----------
    given
        Options for balancing and their values, in order.
    foreign
        Names of the engine's other options in the same document.
    file
        File that contains the options for balancing; ``None`` if none does.
    """

    given: list[tuple[str, Any]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A mapping of options, and the file that contains it; ``None`` if none does."""

    values: Mapping[str, Any]
    file: Path | None = None


def load_mapping(
    source: str | Path | Mapping[str, Any],
    given_as: str,
    *,
    syntax: str = "JSON",
    parse: Callable[[str, str], Any] = parse_text,
) -> Loaded:
    """Read options from a mapping, from text, or from the file of a path.

    Parameters
    ----------
    given_as
        Name of the argument that takes the source, for messages.
    syntax, parse
        Syntax of a text, and its parser, which takes the text and its source.

    Raises
    ------
    EquipoiseError
        A missing file, or a file without a mapping.
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
    """Read the options of an engine from one source.

    Parameters
    ----------
    table
        Table of the engine's options.
    source
        Mapping, its text, or the path of a file with it.

    Raises
    ------
    EquipoiseError
        A missing file, another document, or an option that the engine does not have.
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
    """Add the options in a section, which may be the path of another file with them."""
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
    """Load the document of a source, and record its file in ``found``."""
    loaded = load_mapping(source, table.given_as, syntax=table.syntax, parse=table.parse)
    if loaded.file is not None:
        found.file = loaded.file
    return loaded.values


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(f"{where}: holds {describe(value)}; expected a mapping of options.")
    return value
