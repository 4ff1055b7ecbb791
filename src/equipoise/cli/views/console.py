"""Where results go: text for people, or one JSON document."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from equipoise.cli.options.names import in_options
from equipoise.errors import Message


def print_json(document: Any) -> None:
    """One JSON document and a newline on standard output."""
    import msgspec  # help, which prints to a console too, needs none

    text = msgspec.json.encode(document, enc_hook=_plain)
    sys.stdout.buffer.write(msgspec.json.format(text, indent=2) + b"\n")
    sys.stdout.flush()


def _plain(value: object) -> str:
    """A message with the command's options in place of arguments."""
    if isinstance(value, Message):
        return in_options(value)
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


_PIPE_WIDTH = 1 << 20
"""Columns of a pipe: what is cut or wrapped there is lost to the program behind it."""


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Print; a line that is too long for a terminal is wrapped by it, not cut.

        In a pipe the blanks are left out that fill lines up to the width of a table.
        """
        options = {"crop": False} | options
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = captured.get().split("\n")
        self.file.write("\n".join(line.rstrip(" ") for line in lines))
        self.file.flush()

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # to `main`; rich would end the process with status 1


def stdout() -> Console:
    """Where results go: colours on a terminal, plain text in lines of any length in a pipe."""
    # What is printed may be the words of a file or its name: no markup.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return _Console(highlight=False, markup=False, emoji=False, width=width)


def help_console() -> Console:
    """Where help goes: as wide as a terminal in a pipe too."""
    return _Console()
