"""Strict reading of the text of placement files, and detection of foreign files."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from equipoise.checks import brief
from equipoise.errors import FormatError
from equipoise.json_text import explained

MAX_BYTES = 32 << 20  # 128 layers of 2048 slots take 9 MB in the wordiest format
MAX_ENTRIES = 1 << 20  # commas, colons and lines; 128 layers of 2048 slots have half of that

WAY_IN = (
    'The simplest map is two lines of YAML, "num_slots: 4" and "initial_global_assignments: '
    '{3: [0, 1, 2, 0]}": the experts of each layer, slot by slot.'
)
"""Advice for a file from which no map can be read."""


def read_text(path: Path, *, max_entries: int = MAX_ENTRIES) -> str:
    """Read the text of a map file; raise ``FormatError`` if it is unreadable, not UTF-8 or huge.

    ``max_entries`` limits the commas, colons and lines of the text, because each entry between them
    becomes a Python object, which takes far more memory than its text.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FormatError(
                f"{path}: {size} bytes; a placement file has at most {MAX_BYTES}. "
                "Is it a recording? Recordings are read as traces."
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text (byte {error.start}).") from error
    entries = sum(map(text.count, ",:\n"))
    if entries > max_entries:
        raise FormatError(
            f"{path}: has {entries:,} values or more; 128 layers of 2,048 slots are 262,144, and a "
            "placement file of many more is not read. Is it a recording?"
        )
    return text


def parse_map_json(text: str, path: Path) -> tuple[Any, list[str]]:
    """Read a JSON document, and return it with the keys that occur twice in one object.

    Python's parser silently keeps the last of equal keys, so a repeated layer would be lost.
    """
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key, count in counts.items() if count > 1)
        return unique

    try:
        return json.loads(text, object_pairs_hook=note_repeated), repeated
    except (ValueError, RecursionError) as error:
        raise explained(error, f"{path}") from error


def peek_json(path: Path) -> Any:
    """Read the JSON document in a file, or return ``None``; for ``matches``, which never raises."""
    try:
        text = read_text(path)
        return parse_map_json(text, path)[0] if re.match(r"\s*[\[{]", text) else None
    except FormatError:
        return None


def stated(root: object) -> str | None:
    """Write the format and version that a file states; ``None`` if it states neither.

    No engine's map has such keys. A file with one of them belongs to the program that wrote it,
    whatever else it looks like, and only that program knows what its rows mean.
    """
    if not isinstance(root, dict) or not {"format", "version"} & root.keys():
        return None
    return " and ".join(f"{k} {brief(root[k])}" for k in ("format", "version") if k in root)


def refuse_foreign(root: object, path: Path, owner: str) -> None:
    """Raise ``FormatError`` for a file that states another program's format or version."""
    words = stated(root)
    if words is not None:
        raise FormatError(
            f"{path}: states the {words}: another program's file, not {owner}. "
            f"Have that program write a format that is known here. {WAY_IN}"
        )
