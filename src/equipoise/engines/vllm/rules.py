"""vLLM: the rule by which it chooses the copy for a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.rules import RowRule, with_remainder

_GOLDEN = 2654435769  # 2**32 over the golden ratio: Fibonacci hashing
_PERIOD = 2**32  # rows after which the hash repeats
_FEW_ROWS = 2**14  # up to here going through them is the faster way to count


@dataclass(frozen=True, kw_only=True)
class Vllm(RowRule):
    """vLLM 0.33: a hash of the token's row, modulo the number of copies, chooses the copy.

    Copies are counted in ascending order of their slots. The low bits of the hash are those of the
    row, so with 2, 4 or 8 copies this is the row modulo the copies. Row 0 takes the first copy on
    every rank and in every layer, so the first copies serve batches of few tokens per rank. Rows
    are numbered as the router sees them; padding in front, or a chunk of a batch, shifts them.
    """

    name: ClassVar[str] = "vllm"
    version: ClassVar[str] = "vLLM 0.33.0"

    @staticmethod
    def code(row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row times a constant, modulo ``2**32``."""
        return row % _PERIOD * _GOLDEN % _PERIOD

    @staticmethod
    def times(
        rows: NDArray[np.int64], copies: NDArray[np.int64], value: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Count rows: in ``2**32`` rows the hash takes every value once; the rest is counted."""
        periods, rest = np.divmod(rows, _PERIOD)
        batches, which = np.unique(rest, return_inverse=True)
        which, copies, value = np.broadcast_arrays(which.reshape(rest.shape), copies, value)
        counted = np.empty(value.shape, np.int64)
        for number in np.unique(copies).tolist():
            table = np.stack([_hashed(batch, number) for batch in batches.tolist()])
            chosen = copies == number
            counted[chosen] = table[which[chosen], value[chosen]]
        return np.asarray(periods * with_remainder(_PERIOD, copies, value) + counted)


@lru_cache(maxsize=4096)
def _hashed(rows: int, copies: int) -> NDArray[np.int64]:
    """Count the first rows by the remainder of their hash, ``(copies,)``."""
    if copies == 1:
        return np.array([rows])
    if rows <= _FEW_ROWS:
        return np.bincount(Vllm.code(np.arange(rows)) % copies, minlength=copies)
    return count_hashes(rows, copies)


def count_hashes(rows: int, copies: int) -> NDArray[np.int64]:
    """Do the same for two copies or more, in time that hardly depends on the number of rows.

    With ``row = copies * t + a`` the hash is ``row * _GOLDEN - 2**32 * q``, where ``q`` is the
    product over ``2**32``, rounded down. So its remainder follows from ``a`` and ``q mod copies``.
    The number of ``t`` with ``q mod copies = b`` is the difference of two sums of
    ``(_GOLDEN * t + c) // 2**32``.
    """
    a, b = np.arange(copies)[:, None], np.arange(copies + 1)
    numbers = np.broadcast_to((rows - a + copies - 1) // copies, (copies, copies + 1))
    start = (a * _GOLDEN - b * _PERIOD) // copies + _PERIOD  # the period makes no difference below
    counts = -np.diff(_floor_sum(numbers, _PERIOD, _GOLDEN, start), axis=1)
    remainder = (a * _GOLDEN - b[:-1] * _PERIOD) % copies
    return np.bincount(remainder.ravel(), counts.ravel(), copies).astype(np.int64)


def _floor_sum(
    number: NDArray[np.int64], divisor: int, factor: int, start: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sum ``(factor * t + start) // divisor`` over ``t`` below ``number``, element by element.

    This counts lattice points below a line. Exchanging the axes makes factor and divisor smaller,
    as in Euclid's algorithm.
    """
    total = np.zeros_like(start)
    while number.any():
        total += number * (number - 1) // 2 * (factor // divisor) + number * (start // divisor)
        end = factor % divisor * number + start % divisor
        number, start = np.divmod(end, divisor)
        start = np.where(number > 0, start, 0)
        divisor, factor = factor % divisor, divisor
    return total
