"""Who is told that kernels are being compiled. Without numba, which takes long to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_told: list[Callable[[bool], None]] = []


@contextmanager
def telling_of_compiling(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call ``tell`` whenever a kernel is about to be compiled while the body runs.

    ``tell`` is given whether what is compiled is kept for later runs; kernels that were kept are
    loaded, and nobody is told.
    """
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


def begins(is_kept: bool) -> None:
    """A kernel is about to be compiled."""
    for tell in tuple(_told):
        tell(is_kept)
