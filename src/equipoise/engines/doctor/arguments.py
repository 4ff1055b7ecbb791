"""Conversion of flags and options files to arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from equipoise.engines.doctor.command import Argument, Malformed, Unknown
from equipoise.engines.doctor.knowledge import Knowledge
from equipoise.engines.doctor.words import Word
from equipoise.errors import FormatError
from equipoise.json_text import parse_json

_NUMBER = re.compile(r"[+-]?\d{1,15}")
_FLAG = re.compile(r"--?[A-Za-z]")


def read_arguments(words: Sequence[Word], known: Knowledge) -> Iterator[Argument]:
    """Yield the flags in order, with the words that follow each; other words have no path."""
    at = 0
    while at < len(words):
        word = words[at]
        if not _FLAG.match(word.text):
            yield Argument((), word.text, word.raw)
            at += 1
            continue
        name, equals, attached = word.text.partition("=")
        path, takes, negated = _named(name, known)
        count = 0 if equals or takes == "switch" else _values(words, at + 1, many=takes is None)
        values = words[at + 1 : at + 1 + count]
        raw = " ".join(w.raw for w in (word, *values))
        if equals:
            attached_word = Word(attached, word.raw.partition("=")[2], word.known)
            value = _value(attached_word, name, takes)
        elif len(values) == 1:
            value = _value(values[0], name, takes)
        elif values:
            value = [w.text for w in values]
        else:
            value = not negated
        yield Argument(path, value, raw, written=f"--{path[0]}" if negated else name)
        at += 1 + count


def read_options(document: Mapping[Any, Any], known: Knowledge, file: str) -> Iterator[Argument]:
    """Yield the entries of an options file."""
    for key, value in document.items():
        name = known.full_name(str(key))
        yield Argument((name,), _entry(value), "", file, str(key))


def _named(name: str, known: Knowledge) -> tuple[tuple[str, ...], str | None, bool]:
    """Return the path of a flag, the kind of value that follows it, and whether it is negated."""
    first, *inner = name.lstrip("-").split(".")
    full = known.full_name(first)
    if inner:
        return (full, *inner), "text", False
    denied = known.full_name(re.sub(r"^no[-_]", "", first))
    if full not in known.flags and known.flags.get(denied) == "switch":
        return (denied,), "switch", True
    return (full,), known.flags.get(full), False


def _values(words: Sequence[Word], start: int, *, many: bool) -> int:
    """Count the next words that belong to a flag."""
    end = start
    while end < len(words) and not _FLAG.match(words[end].text):
        end += 1
        if not many:
            break
    return end - start


def _value(word: Word, name: str, takes: str | None) -> Any:
    if not word.known:
        return Unknown(word.raw)
    if takes == "mapping" or (takes is None and word.text.startswith("{")):
        return _mapping(word, name)
    if word.text in ("true", "True", "false", "False"):
        return word.text in ("true", "True")
    return int(word.text) if _NUMBER.fullmatch(word.text) else word.text


def _mapping(word: Word, name: str) -> Any:
    try:
        return parse_json(word.text.encode(errors="surrogatepass"), name)
    except FormatError as error:
        return Malformed(word.raw, str(error).removeprefix(f"{name}: "))


def _entry(value: Any) -> Any:
    """Convert a value of an options file, and mark variables."""
    if isinstance(value, dict):
        return {str(key): _entry(inner) for key, inner in value.items()}
    if isinstance(value, str) and "$" in value:
        return Unknown(value)
    return value
