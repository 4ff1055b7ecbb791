"""Numbers of 16 bits as float32, where they can still be counts.

``bfloat16`` holds every whole number below 256 and ``float16`` every one below 2,048; from there on
neighbours are rounded to each other, and adding 1 changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import FormatError

_EXACT_BELOW = {"bfloat16": 256, "float16": 2048}


def widened(bits: NDArray[np.uint16], kind: str) -> NDArray[np.float32]:
    """The numbers whose bits are given.

    Parameters
    ----------
    bits
        As stored, in the machine's byte order; not changed.
    kind
        ``bfloat16`` or ``float16``.

    Raises
    ------
    FormatError
        A number so large that it may stand for its neighbours.
    """
    if kind == "float16":
        values = bits.view(np.float16).astype(np.float32)
    else:
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    limit = _EXACT_BELOW[kind]
    with np.errstate(invalid="ignore"):  # NaN, of which the reader decides
        large = values[np.abs(values) >= limit]
    if large.size:
        raise FormatError(
            f"it holds {large[0]:g} in {kind}, where whole numbers are exact below {limit} only; "
            "record counts in int32 or int64"
        )
    return values
