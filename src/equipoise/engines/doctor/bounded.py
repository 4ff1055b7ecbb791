"""Reading of files with a limit on their size."""

from __future__ import annotations

from pathlib import Path

from equipoise.errors import FormatError

MAX_BYTES = 1 << 18
"""Largest size of a command, script or options file in bytes."""


def is_here(path: Path) -> bool:
    """Tell whether a file of this name exists on this machine; any name is accepted."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or contains a null character
        return False


def folder_is_here(path: Path) -> bool:
    """Tell whether the folder of a file of this name exists on this machine."""
    try:
        return path.parent.is_dir()
    except (OSError, ValueError):
        return False


def read_bounded(path: Path) -> str:
    """Read a text file; raise ``FormatError`` if it is not text or is too long for a launch."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return decoded(data, str(path))
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def decoded(data: bytes, where: str) -> str:
    """Decode bytes to text; errors are those of ``read_bounded``."""
    if len(data) > MAX_BYTES:
        raise FormatError(
            f"{where}: is longer than {MAX_BYTES >> 10} KiB, too long for a launch; give the "
            "command, the script or the options file alone."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: is not UTF-8 text (byte {error.start}).") from error
