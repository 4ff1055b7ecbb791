"""A bare load table in a torch archive: the input of vllm-ascend's offline planning script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared import torch_archive
from equipoise.engines._shared.arrays import fold_slots, naming, refuse_map
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.errors import EquipoiseError, FormatError, Message, argument
from equipoise.placement import Placement
from equipoise.trace import Provenance, Trace

_AS_EXPERTS = (
    "The file does not say what its {} columns are; they were taken as logical experts, and the "
    f"whole file as one window. If they are slots, give the map of the run "
    f"({argument('placement')})."
)


def _is_table(root: Any) -> bool:
    return isinstance(root, np.ndarray) and root.ndim in (2, 3) and root.dtype.kind in "iuf"


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
        refuse_map(load)
        if options.placement is not None:
            return _folded(path, load, options.placement)
        trace = Trace(
            counts=load,
            layer_ids=options.layer_ids or (),
            provenance=Provenance(
                "pt-load", str(path), (Message(_AS_EXPERTS.format(load.shape[1])),)
            ),
        )
        if load.ndim == 3:
            raise EquipoiseError(
                f"A tensor {load.shape} can be the load of slots (layers, ranks, slots of a rank) "
                "or windows (windows, layers, experts). If it is slots, give the map of the run "
                f"({argument('placement')}); if it is windows, numpy.savez(path, counts=...) says "
                "so."
            )
        return trace


def _folded(path: Path, load: NDArray[Any], placement: Placement) -> Trace:
    """Fold the load of slots ``(L, S)`` or ``(L, R, S / R)`` by the map of the recorded run."""
    if load.ndim == 3 and load.shape[1] != placement.num_ranks:
        raise EquipoiseError(
            f"A load of slots {load.shape} is (layers, ranks, slots of a rank), but the placement "
            f"given has {placement.num_ranks} ranks; give the map of the recorded run."
        )
    slots = Trace(counts=load.reshape(len(load), -1)).counts[0]  # refuses what are no counts
    return Trace(
        counts=fold_slots(slots.astype(np.int64), placement),
        layer_ids=placement.layer_ids,
        provenance=Provenance(
            "pt-load", str(path), (f"{slots.shape[1]} slots were folded with the map given.",)
        ),
    )


FORMAT = TraceFormat(
    name="pt-load",
    summary="A bare torch tensor (layers, experts), as vllm-ascend's planning script reads, or of "
    "slots with the map of the run (.pt)",
    matches=_matches,
    read=_read,
    options=frozenset({"layer_ids", "placement"}),
)
