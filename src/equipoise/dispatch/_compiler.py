"""The numba compiler that all kernels use. It reports its work and needs no writable cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core import event

from equipoise.compiling import begins

Function = TypeVar("Function")

_not_kept: list[object] = []


def njit(**options: Any) -> Callable[[Function], Function]:
    """Decorate with ``numba.njit`` and these options, and cache the compiled code if possible.

    numba writes its cache to ``NUMBA_CACHE_DIR``, next to the kernels or to the user's cache, and
    raises an error if it can write to none of them. In that case the kernels are compiled in every
    run.
    """

    def compiled(function: Function) -> Function:
        try:
            kernel: Function = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no cache folder can be written
            _not_kept.append(function)
            kernel = numba.njit(**options)(function)
        return kernel

    return compiled


class _Listener(event.Listener):
    def on_start(self, _event: Any) -> None:
        begins(is_kept=not _not_kept)

    def on_end(self, _event: Any) -> None:
        pass


event.register("numba:compile", _Listener())  # type: ignore[no-untyped-call]
