"""A case: one launch with its settings, and the known facts about model and machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.checks import brief
from equipoise.engines.doctor.bounded import is_here, read_bounded
from equipoise.engines.doctor.command import LaunchCommand, Malformed, Unknown
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError, FormatError, argument

_MOST = 1 << 31


class NotKnownError(Exception):
    """A check cannot be made; the text is a clause, such as ``--tensor-parallel-size is $TP``."""


def _only_shell(name: str, value: Unknown) -> NotKnownError:
    return NotKnownError(f"{name} is {brief(value.raw)}, which only the shell knows")


@dataclass(frozen=True)
class Release:
    """A release or build of an engine."""

    name: str
    number: tuple[int, ...]

    @classmethod
    def of(cls, name: str | None, newest: str) -> Release:
        """Read the release from a name such as ``v0.11.0rc1``; builds count as the newest release.

        Raises
        ------
        EquipoiseError
            A name without a number.
        """
        if name is None or name == "main" or name.startswith("pr-"):
            return cls(name or newest, _number(newest))
        if not re.match(r"v?\d+\.\d+", name):
            raise EquipoiseError(
                f"{argument('version')} is {brief(name)}; expected a release such as {newest}."
            )
        return cls(name, _number(name))

    def __str__(self) -> str:
        return self.name


def _number(name: str) -> tuple[int, ...]:
    found = re.search(r"\d{1,6}(?:\.\d{1,6}){0,3}", name)
    return tuple(map(int, found[0].split("."))) if found else ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One launch, and the facts about its surroundings; ``None`` is unknown.

    Parameters
    ----------
    command, release
        Launch, and release of its engine.
    model
        Configuration of the model.
    devices, nodes
        Number of devices of the whole deployment, and of machines.
    link_bytes_per_second
        Bandwidth of one device's link between machines.
    folder
        Folder that relative file names start from.
    """

    command: LaunchCommand
    release: Release
    model: ModelConfig | None = None
    devices: int | None = None
    nodes: int | None = None
    link_bytes_per_second: float | None = None
    folder: Path = Path()

    def has(self, *path: str) -> bool:
        """Tell whether a setting has a value, known or unknown."""
        return self.command.get(*path) is not None

    def get(self, *path: str, default: Any = None) -> Any:
        """Return the value of a setting; raise ``NotKnownError`` if only the shell knows it."""
        value = self.command.get(*path)
        if isinstance(value, Unknown):
            raise _only_shell(self.shown(*path), value)
        if isinstance(value, Malformed):
            raise NotKnownError(f"{self.shown(*path)} cannot be read")
        return default if value is None else value

    def whole(self, *path: str, default: int) -> int:
        """Return a whole number >= 0 (a size >= 1), or raise ``NotKnownError``."""
        value = self.get(*path, default=default)
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
            value = int(value)
        low = 1 if self.command.known.flags.get(path[0]) == "size" else 0
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < _MOST:
            raise NotKnownError(
                f"{self.shown(*path)} is {brief(value)}, which is not a valid number"
            )
        return value

    def on(self, *path: str) -> bool:
        """Tell whether a switch is on."""
        return self.get(*path, default=False) in (True, 1, "true", "True", "1")

    def section(self, *path: str) -> dict[str, Any]:
        """Return the mapping under a setting; empty if there is none."""
        value = self.get(*path, default={})
        return value if isinstance(value, dict) else {}

    def variable(self, name: str) -> str | None:
        """Return a variable of the environment; ``NotKnownError`` if only the shell knows it."""
        value = self.command.environment.get(name)
        if isinstance(value, Unknown):
            raise _only_shell(name, value)
        return value

    def file_text(self, name: str) -> str:
        """Read the text of a file that the launch names.

        Raises
        ------
        NotKnownError
            A file that is missing, is not text, or is too long.
        """
        files = self.command.files
        written = files.get(name, files.get(name.removeprefix("./")))
        if written is not None:
            return written
        path = self.folder / name
        if not is_here(path):
            raise NotKnownError(f"the file {brief(name)} is not here")
        try:
            return read_bounded(path)
        except FormatError as error:
            raise NotKnownError(f"{error}".rstrip(".")) from error

    @property
    def the_model(self) -> ModelConfig:
        """Configuration of the model; raises ``NotKnownError`` if it was not given."""
        if self.model is None:
            raise NotKnownError(f"{argument('model')} was not given")
        return self.model

    def shown(self, *path: str) -> str:
        """Write a setting as users do."""
        return self.command.known.shown(*path)

    def at_least(self, *number: int) -> bool:
        """Tell whether the release is this one or newer."""
        return self.release.number >= number
