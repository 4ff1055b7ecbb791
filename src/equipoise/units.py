"""Numbers in units that people read."""

from __future__ import annotations

_TIMES = ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s"))


def duration(seconds: float) -> str:
    """Write a time with two or three digits and a unit: ``81 us``, ``31.2 ms``, ``7 min``."""
    size = abs(seconds)
    if not size:
        return "0 s"
    for below, times, unit in _TIMES:
        if size < below:
            return f"{_digits(seconds * times)} {unit}"
    return f"{seconds / 60:.0f} min" if size < 7200 else f"{seconds / 3600:.0f} h"


def size(number: float) -> str:
    """Write a size in bytes with a unit: ``8.1 MB``."""
    for below, unit in ((1e6, "kB"), (1e9, "MB"), (1e12, "GB")):
        if number < below:
            return f"{_digits(number / below * 1e3)} {unit}"
    return f"{number / 1e12:,.0f} TB"


def clock(seconds: float) -> str:
    """Write seconds since the start as ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _digits(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if abs(number) < 99.95 else f"{number:,.0f}"
