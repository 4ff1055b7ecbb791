"""Serving with expert parallelism on ``torch.distributed``: ``docs/runtime.md``.

Needs torch: ``pip install equipoise[runtime]``.
"""

from __future__ import annotations

from equipoise.errors import EquipoiseError

try:
    import torch as torch
except ImportError as error:
    raise EquipoiseError("Serving needs torch; install equipoise[runtime].") from error
