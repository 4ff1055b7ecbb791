"""Notices that a kernel is about to be compiled.

Apart from the kernels, so that whoever listens need not import numba, which takes long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_told: list[Callable[[bool], None]] = []


@contextmanager
def telling_of_compiling(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call ``tell`` whenever a kernel is about to be compiled while the body runs.

    ``tell`` receives one flag: whether the compiled code is cached for later runs. A kernel that
    is loaded from the cache causes no call.
    """
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


def begins(is_kept: bool) -> None:
    """Tell every listener that a kernel is about to be compiled."""
    for tell in tuple(_told):
        tell(is_kept)
