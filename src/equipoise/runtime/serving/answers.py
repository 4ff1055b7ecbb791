"""The answers to requests, and the file that a process writes them to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.errors import EquipoiseError


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Parameters
    ----------
    number
        Number of the request.
    tokens
        Tokens that were generated; none if the request failed.
    reason
        Reason why it failed, a sentence; empty if it did not.
    """

    number: int
    tokens: tuple[int, ...] = ()
    reason: str = ""

    @property
    def status(self) -> str:
        """``"answered"`` or ``"failed"``."""
        return "failed" if self.reason else "answered"

    @property
    def line(self) -> str:
        """The answer as a JSON object: number, status, tokens, and the reason if it failed."""
        told = {"number": self.number, "status": self.status, "tokens": self.tokens}
        if self.reason:
            told["reason"] = self.reason
        return json.dumps(told) + "\n"


class Results:
    """Writes the answers of one process to ``<name>.jsonl``, one JSON object per line.

    Parameters
    ----------
    folder
        Folder of the file; ``None``: answers are not kept.
    name
        Name of the process.

    Raises
    ------
    EquipoiseError
        The folder cannot be used, or its file exists and cannot be appended to.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self._file = None
        if folder is None:
            return
        check_folder(folder)
        path = folder / f"{name}.jsonl"
        if path.exists() and not path.is_file():  # opening a pipe would wait for a reader
            raise EquipoiseError(f"{path} is not a regular file; remove it, or use another folder.")
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise EquipoiseError(f"{folder} cannot be written to: {error.strerror}.") from error

    def write(self, answers: Sequence[Answer]) -> None:
        """Append all answers or none.

        Raises
        ------
        OSError
            The file cannot be written to at present.
        """
        if self._file is None or not answers:
            return
        left = memoryview("".join(answer.line for answer in answers).encode())
        end = os.fstat(self._file.fileno()).st_size
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.ftruncate(self._file.fileno(), end)  # half a line would spoil the next one
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def check_folder(folder: Path) -> None:
    """Make sure that answers can be written to a folder.

    Raises
    ------
    EquipoiseError
        There is no such folder, or it cannot be written to.
    """
    if not folder.is_dir():
        raise EquipoiseError(f"There is no folder {folder} for results; create it first.")
    if not os.access(folder, os.W_OK):
        raise EquipoiseError(f"{folder} cannot be written to; give a writable folder for results.")
