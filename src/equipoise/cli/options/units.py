"""Bytes and seconds on the command line: plain numbers, or numbers with their unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from equipoise.checks import brief
from equipoise.errors import EquipoiseError

_NUMBER = re.compile(r"([+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?) ?([A-Za-zµ]*)")
_BYTES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _BYTES |= dict.fromkeys((_letter, f"{_letter}B", _letter.lower()), 1000**_power)
    _BYTES[f"{_letter}iB"] = 1024**_power
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0}


def in_bytes(kind: Any, tokens: Sequence[Token]) -> int:
    """Whole bytes, as in 44040192, 44M (millions), 42MiB or 2.5GB."""
    del kind
    value = _in_units(tokens[-1].value, _BYTES, "bytes, as in 44040192, 44M or 42MiB")
    if value != math.floor(value):
        raise EquipoiseError(f"{brief(tokens[-1].value)} is not a whole number of bytes.")
    return int(value)


def in_seconds(kind: Any, tokens: Sequence[Token]) -> float:
    """Seconds, as in 0.02, 20ms or 150us."""
    del kind
    return float(_in_units(tokens[-1].value, _SECONDS, "seconds, as in 0.02, 20ms or 150us"))


def _in_units(text: str, units: Mapping[str, float], expected: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in units or math.isinf(float(match[1])):
        raise EquipoiseError(f"{brief(text)} is not a number of {expected}.")
    return float(match[1]) * units[match[2]]


ByteCount = Parameter(converter=in_bytes, validator=Number(gte=1, lte=1 << 40))
Seconds = Parameter(converter=in_seconds, validator=Number(gte=0))
CONVERTERS = {"bytes": in_bytes, "seconds": in_seconds}
"""How options are read whose names end so."""
