"""Files of which no launch needs much."""

from __future__ import annotations

from pathlib import Path

from equipoise.errors import FormatError

MAX_BYTES = 1 << 18
"""A command, script or options file of more is taken for another kind of file."""


def is_here(path: Path) -> bool:
    """Whether a file of that name is on this machine, whatever the name is."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than any name; a null character
        return False


def folder_is_here(path: Path) -> bool:
    """Whether the folder of a file of that name is on this machine."""
    try:
        return path.parent.is_dir()
    except (OSError, ValueError):
        return False


def read_bounded(path: Path) -> str:
    """The text of a file; raises ``FormatError`` if it is no text or too long for a launch."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return decoded(data, str(path))
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def decoded(data: bytes, where: str) -> str:
    """The text that bytes hold; raises as ``read_bounded``."""
    if len(data) > MAX_BYTES:
        raise FormatError(
            f"{where}: is longer than {MAX_BYTES >> 10} KiB, which no launch is; give the command, "
            "the script or the options file alone."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: is not UTF-8 text (byte {error.start}).") from error
