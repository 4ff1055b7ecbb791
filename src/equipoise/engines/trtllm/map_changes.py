"""Changes of the map during a recording of our own server: a file next to those of the ranks.

TensorRT-LLM writes no such file, and its scripts pass over it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.engines.files import write_text
from equipoise.errors import FormatError, argument
from equipoise.placement import Placement

NAME = "map_changes.json"

_EXPECTED = "expected iterations with the number of changes of the map before each, both rising"


def write_changes(
    folder: Path, iterations: NDArray[np.int64], map_versions: NDArray[np.int64]
) -> None:
    """Write the first iteration of every map; nothing if there was one map only.

    Parameters
    ----------
    iterations, map_versions
        Recorded iterations, ascending, and number of changes of the map before each, ``(T,)``.
    """
    firsts = np.flatnonzero(np.diff(map_versions, prepend=-1))
    if len(firsts) > 1:
        pairs = zip(iterations[firsts].tolist(), map_versions[firsts].tolist(), strict=True)
        text = msgspec.json.encode({str(iteration): version for iteration, version in pairs})
        write_text(folder / NAME, text.decode() + "\n")


def read_changes(folder: Path, iterations: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the number of changes of the map before each iteration; ``None`` without the file.

    Raises
    ------
    FormatError
        A damaged file.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        firsts = np.array([int(iteration) for iteration in found], dtype=np.int64)
        versions = np.array(list(found.values()), dtype=np.int64)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}; {_EXPECTED}.") from error
    rising = (np.diff(firsts) > 0).all() and (np.diff(versions) > 0).all()
    if not len(firsts) or not rising or min(firsts[0], versions[0]) < 0:
        raise FormatError(f"{path} is damaged; {_EXPECTED}.")
    position = np.searchsorted(firsts, iterations, side="right") - 1
    return versions[np.maximum(position, 0)]


def refuse_one_map(
    path: Path,
    placement: Placement | None,
    iterations: NDArray[np.int64],
    map_versions: NDArray[np.int64] | None,
) -> None:
    """Refuse to fold slots with one map where several were in force.

    Raises
    ------
    FormatError
        A placement, and iterations of several maps.
    """
    if placement is None or map_versions is None or map_versions[0] == map_versions[-1]:
        return
    changed = int(iterations[np.flatnonzero(np.diff(map_versions))[0] + 1])
    raise FormatError(
        f"{path}: the map changed in iteration {changed}, and one map cannot fold the slots of "
        f"several. Read iterations of that map only ({argument('iterations')}), or none of it."
    )
