"""Safe reading and writing of files."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from equipoise.errors import EquipoiseError, FormatError


def check_readable(path: Path) -> None:
    """Raise ``FormatError`` unless ``path`` is a folder or a non-empty file that can be opened."""
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
                f"{path} is neither a file nor a folder; save what comes through a pipe first, "
                "since a file is read more than once."
            )
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist.") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}.") from error


class OutputError(EquipoiseError):
    """An output could not be written.

    Parameters
    ----------
    path
        Path of the output, as the user gave it.
    reason
        Reason that the system gives.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written: {reason}.")
        self.reason = reason


def output_file(path: Path) -> Path:
    """Resolve the links of an output's path to the file that will be written.

    The file may exist, and is then replaced, or be the missing target of a link.

    Raises
    ------
    EquipoiseError
        A path that is not a regular file, is the command's own standard output or cannot be
        written, or whose folder is missing.
    """
    found, target = _resolved(path)
    if found is None:
        _check_folder(path, target)
        return target
    if stat.S_ISDIR(found.st_mode):
        raise EquipoiseError(f"{path}: is a folder; give the name of a file.")
    if not stat.S_ISREG(found.st_mode):
        raise EquipoiseError(
            f"{path}: is {_kind(found.st_mode)}; an output is written as a whole and needs the "
            "name of a file."
        )
    if any(os.path.samestat(found, stream) for stream in _standard_streams()):
        raise EquipoiseError(
            f"{path}: is where this command prints its text; give the output a file of its own."
        )
    _check_folder(path, target)
    if not os.access(target, os.W_OK):
        raise OutputError(path, os.strerror(errno.EACCES))
    return target


def output_folder(path: Path) -> Path:
    """Resolve the path of an output that is a folder; an existing folder must be empty.

    Raises
    ------
    EquipoiseError
        A folder with content, a path that is not a folder, or a missing parent folder.
    """
    found, target = _resolved(path)
    if found is not None and not _is_empty_folder(path):
        raise EquipoiseError(f"{path} exists and is not an empty directory; name a new one.")
    _check_folder(path, target)
    return target


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file that replaces an output, or is removed on failure.

    It is made in the folder of the file that ``output_file`` returns. If it replaces a file, it
    gets that file's permissions.

    Raises
    ------
    EquipoiseError
        Whatever ``output_file`` refuses, or a failure to write; the message names ``path``.
    """
    target = output_file(path)
    with _next_to(path, target) as temporary:
        with temporary.open("xb"):
            pass
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        yield temporary
        temporary.replace(target)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield the path of a new folder that becomes an output, or replaces an empty one."""
    target = output_folder(path)
    with _next_to(path, target) as temporary:
        temporary.mkdir()
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        yield temporary
        temporary.replace(target)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def _next_to(path: Path, target: Path) -> Iterator[Path]:
    """Yield a free name in the folder of ``target``; a file left under it is removed at the end."""
    temporary = target.with_name(f".equipoise.{secrets.token_hex(8)}{target.suffix}")
    try:
        yield temporary
    except OutputError as error:  # from an inner writer, which does not know the user's path
        raise OutputError(path, error.reason) from error
    except OSError as error:
        raise OutputError(path, error.strerror or f"{error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _resolved(path: Path) -> tuple[os.stat_result | None, Path]:
    """Return status and path at the end of an output's links; status ``None`` if it is missing."""
    try:
        return path.stat(), path.resolve()
    except (FileNotFoundError, NotADirectoryError):
        return None, Path(os.path.realpath(path))
    except OSError as error:
        raise OutputError(path, error.strerror or f"{error}") from error


def _check_folder(path: Path, target: Path) -> None:
    folder = path.parent if not path.is_symlink() else target.parent
    if not target.parent.is_dir():
        raise EquipoiseError(f"{path}: there is no folder {folder}; create it first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(path, os.strerror(errno.EACCES))


def _is_empty_folder(path: Path) -> bool:
    try:
        return not any(path.iterdir())
    except NotADirectoryError:
        return False
    except OSError as error:
        raise OutputError(path, error.strerror or f"{error}") from error


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _standard_streams() -> Iterator[os.stat_result]:
    for stream in (1, 2):
        with suppress(OSError):
            yield os.fstat(stream)
