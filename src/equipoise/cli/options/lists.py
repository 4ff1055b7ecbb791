"""Several values between commas."""

from __future__ import annotations

from equipoise.errors import EquipoiseError


def names(text: str | None) -> list[str]:
    """Names, each once; none if nothing was given."""
    return [] if text is None else list(dict.fromkeys(part.strip() for part in text.split(",")))


def numbers(option: str, text: str | None) -> list[int] | None:
    """Whole numbers; ``None`` if nothing was given."""
    if text is None:
        return None
    parts = names(text)
    if not all(part.isdecimal() and part.isascii() and len(part) < 8 for part in parts):
        raise EquipoiseError(f"{option} is {text[:40]!r}; expected whole numbers, as in 0,32,64.")
    return [int(part) for part in parts]


def shares(option: str, text: str) -> list[float]:
    """Numbers above 0 and up to 100."""
    try:
        found = [float(part) for part in names(text)]
    except ValueError:
        found = []
    if not found or not all(0 < value <= 100 for value in found):
        raise EquipoiseError(
            f"{option} is {text[:40]!r}; expected numbers above 0, as in 0.05,0.1."
        )
    return found
