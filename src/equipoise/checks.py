"""What callers pass, as numbers; or a sentence that says what came and what was expected.

Arrays may be lists, numpy's, or torch's, which is known by its methods and never imported. Nothing
is rounded, cut or read from behind a mask, and numpy has no chance to warn.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError

Kind = TypeVar("Kind")

MAX_COUNT = 65_536
"""Experts or devices beyond this are taken for a mistake, before memory is asked for."""

MAX_WHOLE = (1 << 63) - 1
"""The largest whole number of 64 bits: seeds, bytes, steps."""

_MAX_NESTING = 8  # lists within lists; arrays here have four axes at most

_quote = reprlib.Repr()
_quote.maxstring = _quote.maxother = 60
_quote.maxlevel = 2


def brief(value: object) -> str:
    """A value as a message quotes it: a short line, whatever it is."""
    try:
        text = _quote.repr(value.item() if isinstance(value, np.generic) else value)
    except Exception:  # a value's own repr may fail in any way; so do whole numbers of 4,301 digits
        text = f"a value of type {type(value).__name__}"
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def check_type(name: str, value: object, kind: type[Kind]) -> Kind:
    """The value; ``EquipoiseError`` unless it is of that class."""
    if not isinstance(value, kind):
        raise EquipoiseError(f"{name} is {brief(value)}; expected a {kind.__name__}.")
    return value


def check_collection(name: str, values: Collection[Any]) -> list[Any]:
    """The values as a list; ``EquipoiseError`` unless they are a tuple, a set or similar."""
    single = isinstance(values, (str, bytes)) or not isinstance(values, Collection)
    if single or not getattr(values, "shape", True):  # an array of no axis is a single number
        raise EquipoiseError(f"{name} is {brief(values)}; expected several, as a list.")
    return list(values)


def check_flag(name: str, value: object) -> bool:
    """The value; ``EquipoiseError`` unless it is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise EquipoiseError(f"{name} is {brief(value)}; expected True or False.")
    return bool(value)


def check_count(name: str, value: int) -> int:
    """The value as an int; ``EquipoiseError`` unless a whole number from 1 to ``MAX_COUNT``."""
    return check_whole(name, value, low=1, high=MAX_COUNT)


def check_whole(name: str, value: int, *, low: int = 0, high: int = MAX_WHOLE) -> int:
    """The value as an int; ``EquipoiseError`` unless a whole number from ``low`` to ``high``.

    A float is none, whatever its value, and neither are true and false.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise EquipoiseError(f"{name} is {brief(value)}; expected a whole number.")
    if not low <= value <= high:
        limits = f"{low} or more" if high == MAX_WHOLE > value else f"{low} to {high}"
        raise EquipoiseError(f"{name} is {brief(int(value))}; expected {limits}.")
    return int(value)


def check_number(name: str, value: float, *, low: float, high: float) -> float:
    """The value as a float; ``EquipoiseError`` unless finite and from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise EquipoiseError(f"{name} is {brief(value)}; expected a number.")
    number = _as_float(value)
    if not (low <= number <= high and number < np.inf):
        limits = f"{low} or more" if high == np.inf else f"{low} to {high}"
        raise EquipoiseError(f"{name} is {brief(value)}; expected {limits}.")
    return number


def as_array(values: ArrayLike, what: str) -> NDArray[Any]:
    """Real numbers, or true and false, of any shape; the caller's own array where it is one.

    Parameters
    ----------
    what
        Their name at the start of a sentence: ``"Loads"``.

    Raises
    ------
    EquipoiseError
        Rows of different lengths, masked entries, a tensor that cannot be read; text, complex
        numbers, dates, records and other objects.
    """
    array = _as_numpy(values, what)
    if array.dtype.kind not in "biuf":
        raise EquipoiseError(f"{what} have type {str(array.dtype)[:60]}; expected numbers.")
    # The half type overflows where it is compared or added up; all it can hold, single can.
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_loads(loads: ArrayLike) -> NDArray[np.float64]:
    """Loads as float64, of any shape but empty; the caller's own array where it is one.

    True is a load of 1, as in ``loads > 0``: one assignment for each active expert.

    Raises
    ------
    EquipoiseError
        Unless all are finite numbers >= 0 whose sum is finite as well.
    """
    array = as_array(loads, "Loads")
    if array.ndim == 0 or not array.size:
        raise EquipoiseError(f"Loads have shape {array.shape}; expected at least one number.")
    with np.errstate(over="ignore"):  # a float of 80 bits can be beyond one of 64
        x = array.astype(np.float64, copy=False)
    largest = x.max()
    if not (x.min() >= 0 and largest < np.inf):  # also false for NaN
        index = tuple(int(i) for i in np.argwhere(~(np.isfinite(x) & (x >= 0)))[0])
        raise EquipoiseError(
            f"The load at {list(index)} is {x[index]}; expected finite numbers >= 0."
        )
    if largest > _LARGEST / x.size:  # else the sum is finite whatever the others are
        with np.errstate(over="ignore"):
            if x.sum() == np.inf:
                raise EquipoiseError("Loads add up to infinity; scale them down.")
    return x


_LARGEST = float(np.finfo(np.float64).max) / 2


def as_ids(ids: ArrayLike, what: str) -> NDArray[np.integer]:
    """Integers of any shape, as they came; an empty list is one of no integers."""
    array = as_array(ids, what)
    if array.size and array.dtype.kind not in "iu":
        raise EquipoiseError(f"{what} have type {array.dtype}; expected integers.")
    return array if array.dtype.kind in "iu" else array.astype(np.int64)


def as_names(names: ArrayLike, what: str) -> NDArray[np.str_]:
    """Text of any shape; whole numbers are names as well."""
    array = _as_numpy(names, what)
    is_text = array.dtype.kind in "UTiu"
    if not is_text and not (array.dtype == object and all(isinstance(x, str) for x in array.flat)):
        raise EquipoiseError(f"{what} has type {str(array.dtype)[:60]}; expected names, as text.")
    return array.astype(np.str_)


def _as_float(value: Any) -> float:
    """As float64; a whole number or a wider float beyond it becomes infinity."""
    try:
        with np.errstate(over="ignore"):
            return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def _as_numpy(values: Any, what: str) -> NDArray[Any]:
    """The values as numpy sees them, with what it would read past taken care of."""
    try:
        return np.asarray(_plain(values, what))
    except EquipoiseError:
        raise
    except Exception as error:  # whatever an object raises that cannot be made an array
        raise EquipoiseError(f"{what} do not form an array; give rows of equal length.") from error


def _plain(values: Any, what: str, depth: int = 0) -> Any:
    """The values without masks and tensors, which numpy reads past or cannot read."""
    if type(values) is np.ndarray:
        return values
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise EquipoiseError(f"{what} have masked entries; fill or leave them out first.")
        return values.data
    if hasattr(values, "detach") and hasattr(values, "numpy"):
        return _from_tensor(values, what)
    if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
        return _from_dlpack(values, what)
    if isinstance(values, (list, tuple)) and depth < _MAX_NESTING:
        return [_plain(value, what, depth + 1) for value in values]
    return values


def _from_dlpack(values: Any, what: str) -> NDArray[Any]:
    """The numbers of an array of another library, where they are on the host."""
    try:
        array: NDArray[Any] = np.from_dlpack(values)
    except Exception as error:  # on a device, of a type that numpy lacks: each fails in its own way
        raise EquipoiseError(
            f"{what} are an array that numpy cannot read through DLPack; copy it to the host, in a "
            "type that numpy has."
        ) from error
    return array


def _from_tensor(tensor: Any, what: str) -> NDArray[Any]:
    """A torch tensor's numbers: without its gradient, from its device, small floats widened."""
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:  # bfloat16 is not numpy's
            tensor = tensor.float()
        array: NDArray[Any] = np.asarray(tensor.numpy())
    except Exception as error:  # sparse, quantised, without storage: each fails in its own way
        raise EquipoiseError(
            f"{what} are a tensor that numpy cannot read; give it as a plain dense one."
        ) from error
    return array
