"""Recordings of our own server, asked for by TensorRT-LLM's two environment variables.

The files have the released layout (V1 in ``equipoise explain traces``). As in the engine, slots are
counted; they are the experts if the model is served in order and without redundant experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from safetensors.numpy import save

from equipoise.checks import brief
from equipoise.engines.files import write_bytes, write_text
from equipoise.engines.trtllm.map_changes import write_changes
from equipoise.engines.trtllm.rank_files import (
    CHOSEN,
    COUNTS,
    META,
    PICKLES,
    RAW,
    meta_text,
    numbered,
    rank_vectors,
)
from equipoise.errors import EquipoiseError
from equipoise.runtime.moe.slot_recorder import RankRecording, SlotRecording

RANGE = "EXPERT_STATISTIC_ITER_RANGE"
"""Variable with the iterations to record, ``START-STOP``, STOP not included; unset: none."""
PATH = "EXPERT_STATISTIC_PATH"
"""Variable with the folder for the files, which is created."""
DEFAULT_PATH = "expert_statistic"


def recording_asked_for(environment: Mapping[str, str]) -> SlotRecording | None:
    """Return the recording that the environment asks for; ``None`` if it names no iterations.

    Every process of a server calls it before any of them starts to serve.

    Raises
    ------
    EquipoiseError
        The iterations are not ``START-STOP``; or the folder cannot be made, or it holds the files
        of another recording, with which these would be mixed.
    """
    asked = environment.get(RANGE)
    if asked is None:
        return None
    iterations = _iterations(asked)
    folder = Path(environment.get(PATH) or DEFAULT_PATH)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EquipoiseError(
            f"{PATH} is {folder}, which cannot be made a folder: {error.strerror}."
        ) from error
    if any(numbered(folder, pattern) for pattern in (COUNTS, RAW, CHOSEN, PICKLES)):
        raise EquipoiseError(
            f"{PATH} is {folder}, which holds the files of another recording; name a new folder, "
            f"or unset {RANGE} to serve without recording."
        )
    return SlotRecording(iterations, partial(write_rank, folder))


def write_rank(folder: Path, recorded: RankRecording) -> None:
    """Write one rank's file, whole or not at all, and on rank 0 the files that belong to all.

    Raises
    ------
    EquipoiseError
        A file cannot be written.
    """
    vectors = rank_vectors(recorded.iterations, recorded.layer_ids, recorded.counts)
    write_bytes(folder / f"rank{recorded.rank}.safetensors", save(vectors))
    if recorded.rank == 0:
        write_text(folder / META, meta_text(recorded.counts.shape[2], recorded.top_k))
        write_changes(folder, recorded.iterations, recorded.map_versions)


def _iterations(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise EquipoiseError(
            f"{RANGE} is {brief(text)}; expected START-STOP with START below STOP, as in 100-200."
        )
    return int(match[1]), int(match[2])
