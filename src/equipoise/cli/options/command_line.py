"""The command as it was given, for pages that say how they were made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar

arguments: ContextVar[Sequence[str]] = ContextVar("arguments", default=())
"""What stands after the name of the program."""


def command_line() -> str:
    """The command as a shell takes it."""
    return shlex.join(["equipoise", *arguments.get()])
