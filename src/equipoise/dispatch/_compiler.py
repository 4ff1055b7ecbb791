"""numba's compiler as all kernels use it: it says when it works, and does without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core import event

from equipoise.compiling import begins

Function = TypeVar("Function")

_not_kept: list[object] = []


def njit(**options: Any) -> Callable[[Function], Function]:
    """``numba.njit`` with these options; what is compiled is kept wherever it can be.

    numba keeps it in ``NUMBA_CACHE_DIR``, next to the kernels or in the user's cache, and gives up
    where none of them can be written; here the kernels are then compiled in every run.
    """

    def compiled(function: Function) -> Function:
        try:
            kernel: Function = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to keep it in
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
