"""Reading and writing files without surprises."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise.errors import FormatError


def check_readable(path: Path) -> None:
    """Raise ``FormatError`` unless ``path`` is a folder, or a file with content, that opens."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()
        elif stat.S_ISREG(mode):
            with path.open("rb") as file:
                if not file.read(1):
                    raise FormatError(f"{path} is empty.")
        else:
            raise FormatError(
                f"{path} is neither a file nor a folder; what comes through a pipe has to be saved "
                "first, since a file is read more than once."
            )
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist.") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` that replaces it on success and vanishes on failure.

    An ``OSError`` on the way names ``path``, not the file beside it.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".equipoise.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp is private; an engine may run as another user
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
