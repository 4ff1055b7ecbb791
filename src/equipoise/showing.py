"""Short ``repr`` texts and small heat maps in notebooks, for the package's classes.

This module needs only numpy, so that every class can use it. Larger drawings are in ``report``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import brief

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONGEST_NAME = 90
_FEW = 4  # longest tuple that is shown in full
_MOST_ROWS, _MOST_COLUMNS = 32, 64
_CELL = 8  # pixels
_SHADES = ("#f3f1ec", "#f2ddc9", "#eec3a0", "#e8a67b", "#de875b", "#cb6742", "#a94a30", "#7d3124")


def differing(noun: DataclassInstance) -> str:
    """Write the call that makes this dataclass, without the fields that have their defaults."""
    return _call(noun, repr)


def in_short(noun: DataclassInstance) -> str:
    """Write that call in one short line: arrays as their shapes, long tuples as their lengths."""
    return _call(noun, _short)


def short_name(name: str) -> str:
    """Shorten the name of a source to one line; the middle of a long name is left out."""
    line = " ".join(name.split())
    if len(line) <= _LONGEST_NAME:
        return line
    half = (_LONGEST_NAME - 3) // 2
    return f"{line[:half]}...{line[-half:]}"


def heat_html(line: str, matrix: ArrayLike, caption: str) -> str:
    """Draw a small heat map under a line of text, as HTML that needs nothing else.

    Parameters
    ----------
    line
        Text above the map: the object's ``repr``.
    matrix
        Finite numbers, ``(rows, columns)``. If there are more than 32 rows or 64 columns,
        neighbours share a cell, which shows the largest of them.
    caption
        Sentence on what rows, columns and colours are. The range of the numbers is added to it.
    """
    cells = _joined(_joined(np.asarray(matrix, dtype=np.float64), _MOST_ROWS, 0), _MOST_COLUMNS, 1)
    low, high = float(cells.min()), float(cells.max())
    legend = f"{caption} From {low:.4g} (light) to {high:.4g} (dark)."
    return (
        f"<div><code>{escape(line)}</code><br>{_svg(cells, low, high, legend)}"
        f"<br><small>{escape(legend)}</small></div>"
    )


def _call(noun: DataclassInstance, shown: Callable[[Any], str]) -> str:
    given = (
        f"{f.name}={shown(value)}"
        for f in fields(noun)
        if f.repr and not _is_default(value := getattr(noun, f.name), f.default)
    )
    return f"{type(noun).__name__}({', '.join(given)})"


def _is_default(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{' x '.join(map(str, value.shape))} numbers"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and len(value) > _FEW:
        return f"{len(value)} values"
    return brief(value)


def _joined(matrix: NDArray[np.float64], at_most: int, axis: int) -> NDArray[np.float64]:
    every = -(-matrix.shape[axis] // at_most)
    joined: NDArray[np.float64] = np.maximum.reduceat(
        matrix, np.arange(0, matrix.shape[axis], every), axis=axis
    )
    return joined


def _svg(cells: NDArray[np.float64], low: float, high: float, label: str) -> str:
    """Draw the cells as squares; all cells of one shade are one path, which keeps the SVG small."""
    part = (cells - low) / (high - low) if high > low else np.zeros_like(cells)
    shade = np.minimum((part * len(_SHADES)).astype(int), len(_SHADES) - 1)
    paths = (
        f'<path fill="{colour}" d="'
        + "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(shade == i))
        + '"/>'
        for i, colour in enumerate(_SHADES)
        if (shade == i).any()
    )
    rows, columns = cells.shape
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{columns * _CELL}" '
        f'height="{rows * _CELL}" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" '
        f'shape-rendering="crispEdges">{"".join(paths)}</svg>'
    )
