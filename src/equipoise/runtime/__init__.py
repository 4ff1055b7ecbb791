"""Serving with expert parallelism on ``torch.distributed``: ``equipoise explain runtime``.

Needs torch: ``pip install equipoise[runtime]``.
"""

from __future__ import annotations

from importlib.util import find_spec

from equipoise.errors import EquipoiseError

# Only looked for: importing it takes seconds, and not every module here needs it.
if find_spec("torch") is None:
    raise EquipoiseError("Serving needs torch; install equipoise[runtime].")
