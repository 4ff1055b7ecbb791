"""Entries of what the code answers: checksums of numbers, sentences, refusals; and what differs."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

import equipoise as eq
from equipoise.cli import main as command

KINDS = ("checksums", "sentences", "refusals")

_WORD = re.compile(r"[^\s(]*")
"""A string that is no sentence, nor a planner with its settings."""

Options = Mapping[str, Any]
Entries = Mapping[str, Mapping[str, str]]


class Record:
    """Entries by kind and key."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}

    def put(self, key: str, value: Any) -> None:
        """Note what a value says in numbers and in words."""
        sentences: list[str] = []
        plain = json.dumps(_plain(value, sentences), sort_keys=True).encode()
        self._note("checksums", key, hashlib.sha256(plain).hexdigest())
        if sentences:
            self._note("sentences", key, "\n".join(sentences))

    def attempt(self, key: str, work: Callable[[], Any]) -> Any:
        """Note what work comes to, or why it is refused."""
        try:
            value = work()
        except eq.EquipoiseError as error:
            self._note("refusals", key, str(error))
            return None
        self.put(key, value)
        return value

    def document(self, key: str, *arguments: object, written: str | None = None) -> None:
        """Note the JSON document that a command prints, and the one that it writes."""
        status, out, told = run(*arguments, "--json")
        if status == 2:
            self._note("refusals", key, f"2: {told}")
            return
        self.put(key, [status, json.loads(out)])
        if written is not None:
            self.put(f"{key}/{written}", json.loads(Path(written).read_text()))

    def text(self, key: str, *arguments: object) -> None:
        """Note what a command prints for people."""
        status, out, told = run(*arguments)
        if status == 2:
            self._note("refusals", key, f"2: {told}")
            return
        self._note("sentences", key, f"{status}\n{out.rstrip()}")

    def page(self, key: str, path: Path) -> None:
        """Note the checksum of a file that is for people."""
        self._note("sentences", key, hashlib.sha256(path.read_bytes()).hexdigest())

    def _note(self, kind: str, key: str, value: str) -> None:
        assert key not in self.entries[kind]
        self.entries[kind][key] = value


def _plain(value: Any, sentences: list[str]) -> Any:
    """The value as JSON has it, arrays and bytes by their checksums, sentences set apart."""
    if isinstance(value, str) and not _WORD.fullmatch(value):
        sentences.append(value)
        return None
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (str, bool, int, float, type(None))):
        return value
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes()
        return [value.dtype.str, value.shape, hashlib.sha256(content).hexdigest()]
    if isinstance(value, np.generic):
        return _plain(np.asarray(value), sentences)
    if isinstance(value, eq.Placement):
        return [value.checksum, value.num_ranks, value.num_experts, value.layer_ids]
    if isinstance(value, Mapping):
        return {str(name): _plain(x, sentences) for name, x in value.items()}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), sentences) for f in fields(value)}
    return [_plain(x, sentences) for x in value]


def attributes(value: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status of a command, what it prints, and the last line that it says of errors."""
    out, told = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        status = command([str(argument) for argument in arguments])
    out.flush()
    last = told.getvalue().rstrip().rpartition("\n")[2]
    return status, out.buffer.getvalue().decode(), last  # type: ignore[attr-defined]


def typed(options: Options) -> list[str]:
    """Options as they are typed."""
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def compare(before: Entries, after: Entries) -> Iterator[tuple[str, str, str]]:
    """Kind, key and description of every entry that is not the same."""
    for kind in KINDS:
        was, now = before[kind], after[kind]
        for key in sorted({*was, *now}):
            if key not in now:
                yield kind, key, "is missing"
            elif key not in was:
                yield kind, key, f"is new: {_short(now[key])}"
            elif was[key] != now[key]:
                yield kind, key, _difference(was[key], now[key])


def _difference(was: str, now: str) -> str:
    """The first line in which two texts differ."""
    old, new = was.splitlines(), now.splitlines()
    pairs = list(zip(old, new, strict=False))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    a, b = (lines[first] if first < len(lines) else "nothing" for lines in (old, new))
    return f"differs\n    was {_short(a)}\n    is  {_short(b)}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def report(before: Entries, after: Entries) -> int:
    """Print what differs and how much; the exit status."""
    found = list(compare(before, after))
    for kind, key, what in found:
        print(f"{kind}: {key} {what}")
    for kind in KINDS:
        differ = sum(kind == k for k, _, _ in found)
        print(f"{len({*before[kind], *after[kind]})} {kind}, {differ} differ")
    return 1 if found else 0
