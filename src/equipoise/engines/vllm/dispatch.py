"""Which copy vLLM sends a token to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from equipoise.engines.dispatching import RowRule

_GOLDEN = 2654435769  # 2**32 over the golden ratio: Fibonacci hashing


@dataclass(frozen=True, kw_only=True)
class Vllm(RowRule):
    """vLLM 0.33: the token's row, hashed, modulo the copies; slots ascending.

    The low bits of the hash are those of the row, so for 2, 4 or 8 copies this is the row modulo
    the copies. Row 0 takes the first copy on every rank and in every layer: batches of few tokens
    per rank are served by the first copies. Rows are numbered as the router sees them; with padding
    in front or a chunk of a batch they are others than the ones given here.
    """

    name: ClassVar[str] = "vllm"
    version: ClassVar[str] = "vLLM 0.33.0"

    @staticmethod
    def code(row: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row times a constant, modulo ``2**32``."""
        return row % 2**32 * _GOLDEN % 2**32
