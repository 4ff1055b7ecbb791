"""Dumps of SGLang's expert distribution recorder, in any of its modes.

Layout and traps: ``equipoise explain traces-sglang-vllm``.
"""

from __future__ import annotations

from pathlib import Path

from equipoise.engines._shared.arrays import naming
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.sglang.passes import read_passes
from equipoise.engines.sglang.recorder import dump_files, kind, looks_like_dump
from equipoise.engines.sglang.windows import read_windows
from equipoise.engines.tabular import rank_loads
from equipoise.errors import FormatError, argument
from equipoise.trace import Trace


def _matches(path: Path) -> bool:
    try:
        files = dump_files(path)
    except (FormatError, OSError):
        return False
    return looks_like_dump(files[0]) and not rank_loads.is_part(files[0])


def _read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    with naming(path):
        files = dump_files(path)
        kinds = {file: kind(file) for file in files}
        if len(set(kinds.values())) > 1:
            listing = ", ".join(f"{file.name} ({mode})" for file, mode in kinds.items())
            raise FormatError(f"{path} mixes dumps of different modes: {listing}; read one mode.")
        if kinds[files[0]] == "stat" and options.placement is not None:
            raise FormatError(
                f"{path} holds counts of experts, which need no map; "
                f"leave {argument('placement')} out."
            )
        read = read_windows if kinds[files[0]] == "stat" else read_passes
        return read(path, files, options, progress)


FORMAT = TraceFormat(
    name="sglang",
    summary="SGLang expert distribution recorder: stat, stat_approx, per_pass, per_token (.pt), "
    "logical_count (.json)",
    matches=_matches,
    read=_read,
    options=frozenset({"layer_ids", "first_axis", "iterations", "placement"}),
)
