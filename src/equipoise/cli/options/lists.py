"""Several values of one option, separated by commas."""

from __future__ import annotations

from equipoise.errors import EquipoiseError

_MOST = 1000


def names(text: str) -> list[str]:
    """Names between commas, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def whole_numbers(option: str, text: str) -> list[int]:
    """Whole numbers between commas, each once; ``EquipoiseError`` if one is none."""
    parts = names(text)
    if not all(part.isdecimal() and len(part) < 8 for part in parts) or len(parts) > _MOST:
        raise EquipoiseError(f"{option} is {text[:40]!r}; expected numbers, as in 0,32,64.")
    return list(dict.fromkeys(map(int, parts)))


def positive_numbers(option: str, text: str) -> list[float]:
    """Numbers above 0 between commas, each once; ``EquipoiseError`` if one is none."""
    try:
        values = [float(part) for part in names(text)]
    except ValueError:
        values = []
    if not values or len(values) > _MOST or not all(0 < value < float("inf") for value in values):
        raise EquipoiseError(f"{option} is {text[:40]!r}; expected numbers above 0, as in 10,20.")
    return list(dict.fromkeys(values))
