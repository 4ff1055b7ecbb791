"""What processes tell each other: data, in MessagePack, never objects that do something when read.

The reader names the type, and what is not of it is refused. So whoever gets a message to us, by
whatever way, makes us read numbers and text, and runs nothing.
"""

from __future__ import annotations

from typing import Any, get_args, get_origin

import msgspec
import numpy as np


class PeerError(RuntimeError):
    """A collective that did not come about: another rank is gone, or sends what is no message."""


def encode(value: object) -> bytes:
    """A message: dataclasses, enumerations, numpy's arrays and numbers, and what JSON has."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def decode(data: bytes, kind: Any) -> Any:
    """The message as a value of a type.

    Raises
    ------
    PeerError
        It is none.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_made)
    except (msgspec.MsgspecError, ValueError) as error:  # a ValueError is a check of the type's own
        raise PeerError(f"What was sent is no message: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"A {type(value).__name__} is not sent.")


def _made(kind: Any, told: Any) -> object:
    """An array, of the number format that its type names."""
    assert get_origin(kind) is np.ndarray
    shape, data = msgspec.convert(told, tuple[tuple[int, ...], bytes])
    (number,) = get_args(get_args(kind)[1])
    return np.frombuffer(data, number).reshape(shape).copy()
