"""16-bit floating-point numbers converted to float32, if they can be exact counts.

``bfloat16`` holds every whole number up to 256, and ``float16`` up to 2,048. Beyond that, numbers
are rounded, and adding 1 changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import FormatError

_EXACT_BELOW = {"bfloat16": 256, "float16": 2048}


def widened(bits: NDArray[np.uint16], kind: str) -> NDArray[np.float32]:
    """Convert the bits of 16-bit numbers to float32.

    Parameters
    ----------
    bits
        Bits as stored, in the machine's byte order; not changed.
    kind
        Number format: ``bfloat16`` or ``float16``.

    Raises
    ------
    FormatError
        A number so large that it may be rounded.
    """
    if kind == "float16":
        values = bits.view(np.float16).astype(np.float32)
    else:
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    limit = _EXACT_BELOW[kind]
    with np.errstate(invalid="ignore"):  # the reader decides on NaN
        large = values[np.abs(values) >= limit]
    if large.size:
        raise FormatError(
            f"it holds {large[0]:g} in {kind}, where whole numbers are exact below {limit} only; "
            "record counts in int32 or int64"
        )
    return values
