"""Tensors of a saved model, in one safetensors file or in several with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from equipoise.errors import EquipoiseError, FormatError

_MOST_BYTES = 1 << 28  # of a JSON file; DeepSeek-V3's index of 91,991 tensors has 9 MB


class StoredTensors:
    """Tensors of a model's folder, each read when asked for.

    Parameters
    ----------
    folder
        Folder with ``model.safetensors``, or with ``model.safetensors.index.json`` and the files
        that it names.
    device
        Device of the tensors.

    Raises
    ------
    FormatError
        The file is missing or damaged, or the index names a file outside of the folder.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, str(device)
        self._files: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        self.path = folder / "model.safetensors"
        """File that has the tensors, or the index of those that have them."""
        if self.path.exists() or not index.exists():
            self._file_of = dict.fromkeys(self._open(self.path.name).keys(), self.path.name)
        else:
            self.path = index
            self._file_of = _file_of(index)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every tensor."""
        return tuple(self._file_of)

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Read a tensor, or a row of it.

        Raises
        ------
        FormatError
            There is no such tensor or row, its file is damaged, or its numbers are quantised.
        """
        if name not in self._file_of:
            raise FormatError(f"{self.path} has no tensor {name}.")
        file = self._open(self._file_of[name])
        with self._told():
            tensor: Tensor = file.get_tensor(name) if row is None else file.get_slice(name)[row]
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise FormatError(
                f"{self.path}: {name} is stored as {str(tensor.dtype).removeprefix('torch.')}; "
                "expected float32, bfloat16 or float16: a model that is not quantised."
            )
        return tensor

    def _open(self, name: str) -> Any:
        if name not in self._files:
            with self._told():
                self._files[name] = safe_open(self._folder / name, "pt", device=self._device)
        return self._files[name]

    def _told(self) -> AbstractContextManager[None]:
        return told(f"{self.path} does not fit its config.json")


def _file_of(index: Path) -> dict[str, str]:
    """Name of the file of each tensor, from an index."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise FormatError(f"{index} has no weight_map from tensors to files.")
    for file in set(files.values()):
        if Path(file).name != file:
            raise FormatError(f"{index} names the file {file!r:.100}; expected one next to it.")
    return files


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FormatError
        The file cannot be read, is larger than 256 MiB, or holds something else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read: {error}.") from error
    if not isinstance(document, dict):
        raise FormatError(f"{path} holds no JSON object.")
    return document


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn an error of a library about a file into a ``FormatError`` of one line."""
    try:
        yield
    except EquipoiseError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise FormatError(f"{what}: {why:.300}") from error
