"""Many simulations in parallel on any executor, resumed where they were interrupted.

    with ProcessPoolExecutor() as executor:
        results = sweep(cases, run, executor=executor, path="sweep.jsonl")

Any executor with the interface of ``concurrent.futures`` works, including those of Dask and Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from equipoise.checks import brief
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_json

Case = Mapping[str, Any]

_MAX_BYTES = 1 << 30
_BEGINNING = b'{"case": '


def sweep(
    cases: Iterable[Case],
    run: Callable[[Case], Any],
    *,
    executor: Executor,
    path: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """Run every case once and save its result in a file; cases in the file are not run again.

    A case that fails does not stop the others; its error is raised at the end, with a note that
    names the case, and the next sweep tries it again.

    Parameters
    ----------
    cases
        Cases as JSON objects. Equal cases are run once.
    run
        Function that runs a case and returns something that JSON can represent, such as
        ``ServingResult.summary``. For executors with other processes it must be importable.
    executor
        Executor that runs the cases.
    path
        File of JSON lines, one for each finished case; it may be missing. It records cases but not
        ``run``, so use another file for another function. Only one sweep may write it at a time.
    progress
        Function that is called with the number of cases done and of all.

    Returns
    -------
    Results of the cases, in order.

    Raises
    ------
    EquipoiseError
        A case or a result that JSON cannot represent.
    FormatError
        A file that is not from a sweep. The line that was being written when a sweep ended is
        dropped.
    """
    keyed = [(_key(case), case) for case in cases]
    results, num_bytes = _read(Path(path))
    missing = {key: case for key, case in keyed if key not in results}
    total = len({key for key, _ in keyed})
    done, errors = total - len(missing), []
    with _opened(Path(path)) as file:
        file.truncate(num_bytes)
        futures = {executor.submit(run, case): key for key, case in missing.items()}
        try:
            for future in as_completed(futures):
                key = futures[future]
                try:
                    results[key] = _keep(file, key, future.result())
                except Exception as error:  # any error of a case; the others continue
                    error.add_note(f"This was the case {key}.")
                    errors.append(error)
                done += 1
                if progress is not None:
                    progress(done, total)
        finally:  # if interrupted, start no waiting case
            for future in futures:
                future.cancel()
    if errors:
        raise errors[0]
    return [results[key] for key, _ in keyed]


def fingerprint(settings: Any, arrays: Iterable[NDArray[Any]]) -> str:
    """Compute sixteen characters that identify the settings and data shared by all cases.

    Parameters
    ----------
    settings
        Lists, mappings and plain values; other objects are converted to text.
    arrays
        Arrays of data, such as the counts of a recording.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except OSError as error:
        raise EquipoiseError(f"{path} cannot be written: {error.strerror or error}.") from error


def _keep(file: BinaryIO, key: str, result: Any) -> Any:
    """Write a finished case; return its result as it will be read again."""
    text = _json(result, "The result")
    file.write(_BEGINNING + f'{key}, "result": {text}}}\n'.encode())
    file.flush()
    return json.loads(text)


def _key(case: Case) -> str:
    """Write a case as text; equal cases give equal texts."""
    if not isinstance(case, Mapping):
        raise EquipoiseError(f"A case is {brief(case)}; expected a mapping of names to values.")
    key = _json(dict(case), "A case", sort_keys=True)
    if json.loads(key) != dict(case):
        raise EquipoiseError(
            f"The case {brief(case)} is another one as JSON; use text keys, and lists for tuples."
        )
    return key


def _json(value: Any, what: str, *, sort_keys: bool = False) -> str:
    try:
        return json.dumps(value, sort_keys=sort_keys, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise EquipoiseError(
            f"{what} is {brief(value)}; expected what JSON has: numbers, text, lists, objects."
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """Read the results by case, and the number of bytes of complete lines."""
    if not path.exists():
        return {}, 0
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise FormatError(f"{path} is not a file of up to 1 GiB; expected the results of a sweep.")
    *lines, rest = path.read_bytes().split(b"\n")
    results = {}
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, str(path))
            results[_key(row["case"])] = row["result"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _unknown(path, number) from error
    if not (_BEGINNING.startswith(rest) or rest.startswith(_BEGINNING)):
        raise _unknown(path, len(lines) + 1)
    return results, sum(len(line) + 1 for line in lines)


def _unknown(path: Path, number: int) -> FormatError:
    return FormatError(
        f"{path}, line {number}: is not a result of a sweep; expected an object with case and "
        "result. Give another file, or remove the line."
    )
