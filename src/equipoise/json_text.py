"""Safe reading of JSON from untrusted sources.

Duplicate keys, deep nesting and huge numbers all raise ``FormatError``. Other parsers are less
careful: Python's and msgspec keep the last of two equal keys in silence, and ijson crashes on whole
numbers of more than 4,300 digits and makes ever longer prefixes of nested keys.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any, BinaryIO

from equipoise.errors import FormatError

_HEAD_BYTES = 1 << 16
_HEAD_NESTING = 64
_BUFFER_BYTES = 1 << 18
_LONGEST_WORD = 16
"""Length of the longest word or escape that the end of a buffer may cut in two."""


def read_json(path: Path) -> Any:
    """Read the JSON document in a file.

    Raises
    ------
    FormatError
        Text that is not UTF-8 or not JSON, a key that appears twice in one object, nesting that is
        too deep, or a number of thousands of digits.
    """
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes, where: str) -> Any:
    """Read the document in ``data``; errors are those of ``read_json`` and begin with ``where``."""
    try:
        text = data.decode("utf-8-sig")
        document = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:  # an escape may be a lone surrogate
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except (ValueError, RecursionError) as error:
        raise explained(error, where) from error


def parse_text(text: str, where: str) -> Any:
    """Read the document in a text; errors are those of ``parse_json``."""
    return parse_json(text.encode("utf-8", "surrogatepass"), where)


def explained(error: Exception, where: str) -> FormatError:
    """Explain a decoder's error to whoever has the file."""
    match error:
        case FormatError():
            return FormatError(f"{where}: {error}")
        case JSONDecodeError():
            place = f"line {error.lineno}, column {error.colno}"
            return FormatError(f"{where}: is not JSON ({place}: {error.msg}).")
        case UnicodeEncodeError():
            return FormatError(f"{where}: holds half a character (a lone surrogate).")
        case UnicodeDecodeError():
            return FormatError(f"{where}: is not UTF-8 text (byte {error.start}).")
        case RecursionError():
            return FormatError(f"{where}: is nested too deeply to be read.")
    return FormatError(f"{where}: holds a number of thousands of digits.")  # Python's own limit


def head_keys(path: Path) -> list[str]:
    """List the top-level keys of a JSON object that stand in the first 64 KiB of a file.

    Keys with the value ``null`` are left out. The list is empty if the file is not a JSON object.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    keys: list[str] = []
    depth = 0
    if not head.lstrip().startswith(b"{"):
        return keys
    import ijson  # imported here because reading a map does not need it

    try:
        for event, value in ijson.basic_parse(head, use_float=True):
            depth += event.startswith("start_") - event.startswith("end_")
            if depth > _HEAD_NESTING:
                break
            if depth == 1 and event == "map_key":
                keys.append(value)
            elif depth == 1 and event == "null":
                keys.pop()
    except (ijson.JSONError, ValueError):
        pass  # the head was cut off, or the file is not JSON
    return keys


def stream_items(file: BinaryIO, key: str, where: str) -> Iterator[Any]:
    """Yield the items of the list under a key of the root object, with one in memory at a time.

    Raises
    ------
    FormatError
        The faults that ``read_json`` refuses, raised when reading reaches them.
    """
    text = _Text(file)
    try:
        seen: set[str] = set()
        for name in text.names():
            if name in seen:
                raise _repeated(name)
            seen.add(name)
            if name == key:
                yield from text.items()
            else:
                text.value()
        text.end()
    except JSONDecodeError as error:
        place = f"at or before byte {file.tell()}"
        raise FormatError(f"{where}: is damaged JSON, {place} ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        raise explained(error, where) from error


class _Text:
    """The text of a file, read value by value."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0

    def names(self) -> Iterator[str]:
        """Yield the keys of the next object; the caller takes each value before the next key."""
        self._take("{")
        while self._next() != "}":
            name = self.value()
            if not isinstance(name, str):
                raise JSONDecodeError("Expecting a key", self._text, self._at)
            self._take(":")
            yield name
            if self._next() != "}":
                self._take(",")
        self._take("}")

    def items(self) -> Iterator[Any]:
        """Yield the items of the next list."""
        self._take("[")
        while self._next() != "]":
            yield self.value()
            if self._next() != "]":
                self._take(",")
        self._take("]")

    def value(self) -> Any:
        """Take the next value."""
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                length = end - self._at
            except JSONDecodeError as error:
                cut = error.pos + _LONGEST_WORD > len(self._text) or "Untermin" in error.msg
                if not (cut and self._more()):
                    raise
            else:
                # At the end of the buffer a number may continue: "0." is not a complete 0.
                if end + _LONGEST_WORD < len(self._text) or not self._more():
                    self._at += length
                    return value

    def end(self) -> None:
        """Refuse anything after the last value."""
        if self._next():
            raise JSONDecodeError("Extra data", self._text, self._at)

    def _next(self) -> str:
        """Skip whitespace and return the next character, or an empty text at the end."""
        while True:
            while self._text[self._at : self._at + 1] in _SPACES:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, wanted: str) -> None:
        if self._next() != wanted:
            raise JSONDecodeError(f"Expecting {wanted!r}", self._text, self._at)
        self._at += 1

    def _more(self) -> bool:
        """Read more text, twice the buffer while a value does not fit; return False at the end."""
        rest = self._text[self._at :]
        data = self._file.read(max(_BUFFER_BYTES, len(rest)))
        self._text, self._at = rest + self._utf8.decode(data, final=not data), 0
        return bool(data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _repeated(counts.most_common(1)[0][0])
    return entries


def _repeated(name: str) -> FormatError:
    return FormatError(f"The key {name[:80]!r} appears twice in one object; keep one of the two.")


def _not_a_number(word: str) -> Any:
    raise FormatError(f"is damaged JSON: {word} is not a number.")


_SPACES = frozenset(" \t\n\r")
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_a_number)
