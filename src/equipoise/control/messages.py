"""Messages between processes: plain data in MessagePack, which runs no code when it is read.

The reader names the type that it expects and refuses anything else. So a message from an attacker
can only be refused or read as numbers and text.
"""

from __future__ import annotations

from typing import Any, get_args, get_origin

import msgspec
import numpy as np


class PeerError(RuntimeError):
    """A collective operation failed: another rank is gone, or sent data that is not a message."""


def encode(value: object) -> bytes:
    """Encode dataclasses, enumerations, numpy arrays and numbers, and JSON types as a message."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def decode(data: bytes, kind: Any) -> Any:
    """Decode a message to a value of the given type.

    Raises
    ------
    PeerError
        Data that is not a message of this type.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind, dec_hook=_made)
    except (msgspec.MsgspecError, ValueError) as error:  # the type's own checks raise ValueError
        raise PeerError(f"The data received is not a valid message: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"A {type(value).__name__} is not sent.")


def _made(kind: Any, told: Any) -> object:
    """Make an array with the dtype that its annotation names."""
    assert get_origin(kind) is np.ndarray
    shape, data = msgspec.convert(told, tuple[tuple[int, ...], bytes])
    (number,) = get_args(get_args(kind)[1])
    return np.frombuffer(data, number).reshape(shape).copy()
