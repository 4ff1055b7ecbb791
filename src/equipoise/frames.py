"""Tables of results as data frames, if pandas or polars is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from equipoise.errors import EquipoiseError

_LIBRARIES = ("pandas", "polars")


def data_frame(columns: Mapping[str, Sequence[object] | NDArray[Any]]) -> Any:
    """Make a pandas ``DataFrame`` from columns, or a polars one if only polars is installed.

    Raises
    ------
    EquipoiseError
        Neither is installed.
    """
    for library in _LIBRARIES:
        try:
            return import_module(library).DataFrame(dict(columns))
        except ModuleNotFoundError as error:
            if error.name != library:
                raise
    raise EquipoiseError(
        "A data frame needs pandas or polars, and neither is installed; run: pip install pandas."
    )
