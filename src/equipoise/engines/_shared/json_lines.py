"""Files with one JSON document per line, whose last line may be cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from equipoise.engines.formats import Progress
from equipoise.errors import FormatError
from equipoise.json_text import parse_json

Line = TypeVar("Line")


def read_lines(
    path: Path, parse: Callable[[bytes], Line], notes: list[str], progress: Progress
) -> Iterator[tuple[int, Line]]:
    """Yield the number and content of every line that is not blank.

    Only the last line may be broken, as a killed process leaves it; then ``notes`` gets a sentence.

    Raises
    ------
    FormatError
        A line other than the last that ``parse`` refuses.
    """
    size, done, broken = path.stat().st_size, 0, ""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            if not line.strip():
                continue
            if broken:
                raise FormatError(f"{path}, {broken}")
            try:
                parsed = parse(line)
            except FormatError as error:
                broken = f"line {number}: {error}"
                continue
            yield number, parsed
            progress(done, size)
    if broken:
        notes.append(f"The last line is cut off and was left out ({broken})")


def json_object(line: bytes) -> dict[str, Any]:
    """Read a line that is a JSON object; raise ``FormatError`` for any other."""
    record = parse_json(line, "not a JSON record")
    if not isinstance(record, dict):
        raise FormatError("not a JSON record.")
    return record
