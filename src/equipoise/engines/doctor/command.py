"""Launch commands of engines, as settings that can be looked up, changed and written again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import yaml

from equipoise.engines.doctor.knowledge import Knowledge

WIDTH = 100
"""Length beyond which a command is written over several lines."""

Place = tuple[str, ...]
"""Path of a setting: the flag, then the keys within its value."""


@dataclass(frozen=True)
class Unknown:
    """A value that only the shell knows: a variable, or what a command prints."""

    raw: str

    def __str__(self) -> str:
        return self.raw


@dataclass(frozen=True)
class Malformed:
    """A value that is not the JSON that the flag requires, with the reason."""

    raw: str
    reason: str

    def __str__(self) -> str:
        return self.raw


@dataclass(frozen=True)
class Argument:
    """An argument: a flag with its value, an entry of an options file, or other words.

    Parameters
    ----------
    path
        Path of the setting, in the engine's full spelling; empty for words that are not flags.
    value
        Value: a boolean for switches; else text, a number, a mapping, or ``Unknown``.
    raw
        Text as written; ``None`` after a change.
    file
        Options file that contains it.
    written
        Name as written, with its dashes.
    """

    path: Place
    value: Any
    raw: str | None
    file: str | None = None
    written: str = ""


@dataclass(frozen=True)
class Change:
    """One edit of a command.

    Parameters
    ----------
    path
        Path of the setting, or name of a variable.
    value
        New value; ``None`` to leave it out.
    of_environment
        Flag that it is a variable.
    """

    path: Place
    value: Any = None
    of_environment: bool = False


def put(value: Any, *path: str) -> Change:
    """Make the change that gives a setting this value."""
    return Change(path, value)


def drop(*path: str) -> Change:
    """Make the change that leaves a setting out."""
    return Change(path)


def export(name: str, value: str) -> Change:
    """Make the change that sets a variable."""
    return Change((name,), value, of_environment=True)


def unset(name: str) -> Change:
    """Make the change that leaves a variable out."""
    return Change((name,), of_environment=True)


@dataclass(frozen=True)
class LaunchCommand:
    """The launch command of an engine.

    Parameters
    ----------
    known
        Knowledge about the engine.
    program
        Words before the first flag, as written.
    arguments
        Flags and entries of options files; if two set the same, the later one counts.
    environment
        Variables that it is started with.
    after
        Redirections, as written.
    files
        Texts that the script itself writes to files, by name.
    changed_environment
        Variables that were set, or left out, to correct the command.
    changed_files
        Options files in which something was changed.
    """

    known: Knowledge
    program: tuple[str, ...]
    arguments: tuple[Argument, ...]
    environment: Mapping[str, str | Unknown] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    changed_environment: Mapping[str, str | None] = field(default_factory=dict)
    changed_files: frozenset[str] = frozenset()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings as nested mappings."""
        merged: dict[str, Any] = {}
        for argument in self.arguments:
            if argument.path:
                _merge(merged, argument.path, argument.value)
        return merged

    def get(self, *path: str) -> Any:
        """Return the value of a setting; ``None`` if it is not set."""
        found: Any = self.settings
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def corrected(self, changes: Iterable[Change]) -> LaunchCommand:
        """Return the command after these changes."""
        command = self
        for change in changes:
            if change.of_environment:
                command = command._with_variable(change.path[0], change.value)
            elif change.value is None:
                command = command._without(change.path)
            else:
                command = command._with(change.path, change.value)
        return command

    def _changed(self, arguments: Iterable[Argument]) -> LaunchCommand:
        """Return the command with other arguments, and record the files that differ."""
        arguments = tuple(arguments)
        old, new = {*map(_mark, self.arguments)}, {*map(_mark, arguments)}
        files = frozenset(file for file, *_ in old ^ new if file)
        changed = self.changed_files | files
        return replace(self, arguments=arguments, changed_files=changed)

    def _with_variable(self, name: str, value: str | None) -> LaunchCommand:
        environment = {n: v for n, v in self.environment.items() if n != name}
        changed = dict(self.changed_environment)
        program = tuple(word for word in self.program if not word.startswith(f"{name}="))
        if value is not None:
            environment[name] = changed[name] = value
        elif program == self.program:
            changed[name] = None
        return replace(self, program=program, environment=environment, changed_environment=changed)

    def _with(self, path: Place, value: Any) -> LaunchCommand:
        if self.get(*path) == value:
            return self
        arguments = list(self.arguments)
        for at in reversed(range(len(arguments))):
            changed = _put(arguments[at], path, value)
            if changed is not None:
                arguments[at] = changed
                return self._changed(arguments)
        inner = value
        for key in reversed(path[1:]):
            inner = {key: inner}
        to_file = self.known.file_wins or not self.program
        file = next((a.file for a in arguments if a.file and to_file), None)
        return self._changed((*arguments, Argument(path[:1], inner, None, file)))

    def _without(self, path: Place) -> LaunchCommand:
        kept = (_cut(argument, path) for argument in self.arguments)
        return self._changed(argument for argument in kept if argument is not None)

    def _pieces(self) -> list[str]:
        """Divide the command line into the program and the flags with their values."""
        changed = self.changed_environment.items()
        added = [f"{name}={shlex.quote(value)}" for name, value in changed if value is not None]
        removed = [f"-u {name}" for name, value in changed if value is None]
        start = [*(["env", *removed] if removed else []), *added, *self.program]
        own = [argument for argument in self.arguments if argument.file is None]
        first = next((at for at, argument in enumerate(own) if argument.path), len(own))
        pieces = list(map(self._write, own))
        return [" ".join([*start, *pieces[:first]]), *pieces[first:], " ".join(self.after)]

    def text(self) -> str:
        """Write the command line, with one flag per line if it is long."""
        pieces = [piece for piece in self._pieces() if piece]
        line = " ".join(pieces)
        return line if len(line) <= WIDTH else " \\\n  ".join(pieces)

    def file_text(self, name: str) -> str:
        """Write an options file with its changes; comments are not kept."""
        entries: dict[str, Any] = {}
        for argument in self.arguments:
            if argument.file == name:
                key = argument.written or argument.path[0]
                _merge(entries, (key,), _plain(argument.value))
        text: str = yaml.safe_dump(entries, sort_keys=False)
        return text

    def _write(self, argument: Argument) -> str:
        if argument.raw is not None:
            return argument.raw
        value, name = argument.value, argument.written or f"--{'.'.join(argument.path)}"
        if value is True:
            return name
        if value is False:
            return name.replace("--", "--no-", 1)
        if not isinstance(value, dict):
            return f"{name} {_scalar(value)}"
        if _holds_unknown(value):  # JSON in quotes would keep the variable from being replaced
            return " ".join(f"{name}.{key} {_scalar(inner)}" for key, inner in value.items())
        return f"{name} {shlex.quote(json.dumps(value, default=str))}"


def _merge(into: dict[str, Any], path: Place, value: Any) -> None:
    *sections, key = path
    for section in sections:
        inner = into.get(section)
        into[section] = inner = dict(inner) if isinstance(inner, dict) else {}
        into = inner
    old = into.get(key)
    if isinstance(old, dict) and isinstance(value, dict):
        into[key] = {**old, **value}
    else:
        into[key] = value


def _mark(argument: Argument) -> tuple[str | None, Place, str]:
    return argument.file, argument.path, repr(argument.value)


def _put(argument: Argument, path: Place, value: Any) -> Argument | None:
    """Set a value at a path of the argument; return ``None`` if the path is elsewhere."""
    depth = len(argument.path)
    if not depth or path[:depth] != argument.path:
        return None
    if depth == len(path):
        return replace(argument, value=value, raw=None)
    if not isinstance(argument.value, dict):
        return None
    changed = deepcopy(argument.value)
    _merge(changed, path[depth:], value)
    return replace(argument, value=changed, raw=None)


def _cut(argument: Argument, path: Place) -> Argument | None:
    """Remove a path from the argument; return ``None`` if nothing is left."""
    depth = len(argument.path)
    if not depth or path[:depth] != argument.path:
        return argument
    if depth == len(path):
        return None
    if not isinstance(argument.value, dict):
        return argument
    changed = deepcopy(argument.value)
    inner: Any = changed
    for key in path[depth:-1]:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or path[-1] not in inner:
        return argument
    del inner[path[-1]]
    return replace(argument, value=changed, raw=None) if changed else None


def _holds_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_unknown, value.values()))
    return isinstance(value, (Unknown, Malformed))


def _scalar(value: Any) -> str:
    """Write a value as one shell word; an unknown value as it was written."""
    return str(value) if isinstance(value, (Unknown, Malformed)) else shlex.quote(str(value))


def _plain(value: Any) -> Any:
    """Convert a value for YAML."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, (Unknown, Malformed)) else value
