"""Checks of arguments: each returns the value in a known type or raises ``EquipoiseError``.

The error says what came and what was expected. Arrays may be lists, numpy arrays or torch tensors.
A tensor is recognised by its methods, so torch is never imported. Values are never rounded or
truncated, masked entries are refused, and numpy never prints a warning.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError

Kind = TypeVar("Kind")

MAX_COUNT = 65_536
"""Largest accepted number of experts or devices. More is a mistake, refused before allocation."""

MAX_WHOLE = (1 << 63) - 1
"""Largest signed 64-bit integer: the limit of seeds, bytes and steps."""

_MAX_NESTING = 8  # lists within lists; arrays here have four axes at most

_quote = reprlib.Repr()
_quote.maxstring = _quote.maxother = 60
_quote.maxlevel = 2


def brief(value: object) -> str:
    """Quote any value for an error message, on one line of at most 100 characters."""
    try:
        text = _quote.repr(value.item() if isinstance(value, np.generic) else value)
    except Exception:  # a value's own repr may fail in any way; so do whole numbers of 4,301 digits
        text = f"a value of type {type(value).__name__}"
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def check_type(name: str, value: object, kind: type[Kind]) -> Kind:
    """Return the value; raise ``EquipoiseError`` unless it is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise EquipoiseError(f"{name} is {brief(value)}; expected a {kind.__name__}.")
    return value


def check_keys(name: str, value: object, keys: Collection[str]) -> dict[str, Any]:
    """Return the value; raise ``EquipoiseError`` unless it is a dict with exactly these keys."""
    if not isinstance(value, dict) or set(value) != set(keys):
        expected = ", ".join(keys)
        raise EquipoiseError(f"{name} is {brief(value)}; expected an object of {expected}.")
    return value


def check_fields(name: str, value: object, kind: type[Any]) -> dict[str, Any]:
    """Return the value; raise ``EquipoiseError`` unless its keys are the fields of ``kind``."""
    return check_keys(name, value, [field.name for field in fields(kind)])


def check_collection(name: str, values: Collection[Any]) -> list[Any]:
    """Return the values as a list; raise ``EquipoiseError`` for a single value or a text."""
    single = isinstance(values, (str, bytes)) or not isinstance(values, Collection)
    if single or not getattr(values, "shape", True):  # a 0-d array is a single number
        raise EquipoiseError(f"{name} is {brief(values)}; expected several, as a list.")
    return list(values)


def check_flag(name: str, value: object) -> bool:
    """Return the value as a bool; raise ``EquipoiseError`` unless it is ``True`` or ``False``."""
    if not isinstance(value, (bool, np.bool_)):
        raise EquipoiseError(f"{name} is {brief(value)}; expected True or False.")
    return bool(value)


def check_count(name: str, value: int) -> int:
    """Return the value as an int; raise ``EquipoiseError`` unless it is 1 to ``MAX_COUNT``."""
    return check_whole(name, value, low=1, high=MAX_COUNT)


def check_whole(name: str, value: int, *, low: int = 0, high: int = MAX_WHOLE) -> int:
    """Return the value as an int; raise ``EquipoiseError`` unless it is ``low`` to ``high``.

    Floats are refused even when their value is whole, and so are booleans.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise EquipoiseError(f"{name} is {brief(value)}; expected a whole number.")
    if not low <= value <= high:
        limits = f"{low} or more" if high == MAX_WHOLE > value else f"{low} to {high}"
        raise EquipoiseError(f"{name} is {brief(int(value))}; expected {limits}.")
    return int(value)


def check_number(name: str, value: float, *, low: float, high: float) -> float:
    """Return the value as a float; raise ``EquipoiseError`` unless ``low`` to ``high``, finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise EquipoiseError(f"{name} is {brief(value)}; expected a number.")
    number = _as_float(value)
    if not (low <= number <= high and number < np.inf):
        limits = f"{low} or more" if high == np.inf else f"{low} to {high}"
        raise EquipoiseError(f"{name} is {brief(value)}; expected {limits}.")
    return number


def as_array(values: ArrayLike, what: str) -> NDArray[Any]:
    """Return real numbers or booleans of any shape as a numpy array.

    Parameters
    ----------
    values
        Numbers as a list, numpy array or tensor. A numpy array is returned itself, not copied.
    what
        Plural name of the values, which begins the error message: ``"Loads"``.

    Raises
    ------
    EquipoiseError
        Rows of different lengths, masked entries, a tensor that cannot be read, or values that are
        not real numbers (text, complex numbers, dates, records, other objects).
    """
    array = _as_numpy(values, what)
    if array.dtype.kind not in "biuf":
        raise EquipoiseError(f"{what} have type {str(array.dtype)[:60]}; expected numbers.")
    # float16 overflows in sums and comparisons; float32 holds every value that it can.
    return array.astype(np.float32) if array.dtype == np.float16 else array


def as_loads(loads: ArrayLike) -> NDArray[np.float64]:
    """Return loads of any non-empty shape as float64; a float64 array is not copied.

    ``True`` is a load of 1, so that ``loads > 0`` means one assignment for each active expert.

    Raises
    ------
    EquipoiseError
        An empty array, a number that is negative or not finite, or a sum that is not finite.
    """
    array = as_array(loads, "Loads")
    if array.ndim == 0 or not array.size:
        raise EquipoiseError(f"Loads have shape {array.shape}; expected at least one number.")
    with np.errstate(over="ignore"):  # an 80-bit float may be beyond the range of float64
        x = array.astype(np.float64, copy=False)
    largest = x.max()
    if not (x.min() >= 0 and largest < np.inf):  # also false for NaN
        index = tuple(int(i) for i in np.argwhere(~(np.isfinite(x) & (x >= 0)))[0])
        raise EquipoiseError(
            f"The load at {list(index)} is {x[index]}; expected finite numbers >= 0."
        )
    if largest > _LARGEST / x.size:  # below this the sum is certainly finite
        with np.errstate(over="ignore"):
            if x.sum() == np.inf:
                raise EquipoiseError("Loads add up to infinity; scale them down.")
    return x


_LARGEST = float(np.finfo(np.float64).max) / 2


def as_ids(ids: ArrayLike, what: str) -> NDArray[np.integer]:
    """Return integers of any shape in their own integer type; an empty list is accepted."""
    array = as_array(ids, what)
    if array.size and array.dtype.kind not in "iu":
        raise EquipoiseError(f"{what} have type {array.dtype}; expected integers.")
    return array if array.dtype.kind in "iu" else array.astype(np.int64)


def as_names(names: ArrayLike, what: str) -> NDArray[np.str_]:
    """Return names of any shape as an array of text; whole numbers become text."""
    array = _as_numpy(names, what)
    is_text = array.dtype.kind in "UTiu"
    if not is_text and not (array.dtype == object and all(isinstance(x, str) for x in array.flat)):
        raise EquipoiseError(f"{what} has type {str(array.dtype)[:60]}; expected names, as text.")
    return array.astype(np.str_)


def _as_float(value: Any) -> float:
    """Convert to float64; a number beyond its range becomes infinity."""
    try:
        with np.errstate(over="ignore"):
            return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def _as_numpy(values: Any, what: str) -> NDArray[Any]:
    """Convert the values to a numpy array, and refuse what numpy would misread in silence."""
    try:
        return np.asarray(_plain(values, what))
    except EquipoiseError:
        raise
    except Exception as error:  # whatever an object raises that cannot be made an array
        raise EquipoiseError(f"{what} do not form an array; give rows of equal length.") from error


def _plain(values: Any, what: str, depth: int = 0) -> Any:
    """Replace masked arrays and tensors, which numpy would misread, by plain arrays."""
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
    """Read another library's array through DLPack, if it is in host memory."""
    try:
        array: NDArray[Any] = np.from_dlpack(values)
    except Exception as error:  # on a device, of a type that numpy lacks: each fails in its own way
        raise EquipoiseError(
            f"{what} are an array that numpy cannot read through DLPack; copy it to the host, in a "
            "type that numpy has."
        ) from error
    return array


def _from_tensor(tensor: Any, what: str) -> NDArray[Any]:
    """Copy a torch tensor to the host without its gradient; bfloat16 and float16 become float32."""
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:  # numpy has no bfloat16
            tensor = tensor.float()
        array: NDArray[Any] = np.asarray(tensor.numpy())
    except Exception as error:  # sparse, quantised, without storage: each fails in its own way
        raise EquipoiseError(
            f"{what} are a tensor that numpy cannot read; give it as a plain dense one."
        ) from error
    return array
