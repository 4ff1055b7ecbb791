"""A bare load table in a torch archive: the input of vllm-ascend's offline planning script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from equipoise.engines import torch_archive
from equipoise.engines.arrays import naming
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import FormatError
from equipoise.trace import Provenance, Trace


def _is_table(root: Any) -> bool:
    return isinstance(root, np.ndarray) and root.ndim == 2 and root.dtype.kind in "iuf"


def _matches(path: Path) -> bool:
    try:
        return path.is_file() and _is_table(torch_archive.outline(path))
    except FormatError:
        return False


def _read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    load = torch_archive.load(path)
    if not _is_table(load):
        found = f"tensor {load.shape}" if isinstance(load, np.ndarray) else type(load).__name__
        raise FormatError(f"{path} holds a {found}; expected one tensor (layers, experts).")
    progress(1, 1)
    with naming(path):
        return Trace(
            counts=load,
            layer_ids=options.layer_ids or (),
            provenance=Provenance(
                "pt-load",
                str(path),
                (
                    "The file says nothing of its columns; they were taken as logical experts, and "
                    "all of it as one window.",
                ),
            ),
        )


FORMAT = TraceFormat(
    name="pt-load",
    summary="A bare torch tensor (layers, experts), as vllm-ascend's planning script reads (.pt)",
    matches=_matches,
    read=_read,
    options=frozenset({"layer_ids"}),
)
