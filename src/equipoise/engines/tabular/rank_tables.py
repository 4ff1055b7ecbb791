"""A folder of tables, one file for each rank: its name states which, as in ``load_rank3.csv``."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.rank_parts import missing_ranks, rank_in_name
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions, no_progress
from equipoise.engines.tabular import csv, layer_lines
from equipoise.engines.tabular.records import Records
from equipoise.errors import FormatError
from equipoise.trace import Provenance, Trace

_SUFFIXES = {".csv", ".tsv", ".jsonl"}


def matches(path: Path) -> bool:
    """Whether a folder holds a table of counts whose name states a rank."""
    try:
        return any(_readable(file) for files in _by_rank(path).values() for file in files)
    except OSError:
        return False


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read the tables of a folder.

    Raises
    ------
    FormatError
        The folder holds no such table or several of one rank, or a table is damaged.
    """
    records = Records()
    unused: dict[str, None] = {}
    with naming(path):
        ranks = _by_rank(path)
        if not ranks:
            raise FormatError(f"{path} holds no table whose name states a rank, as load_rank3.csv.")
        _refuse_several(path, ranks)
        files = [(rank, file) for rank, (file,) in sorted(ranks.items())]
        for done, (rank, file) in enumerate(files):
            progress(done, len(files))
            if csv.matches(file):
                unused |= dict.fromkeys(csv.add_table(file, records, no_progress, rank)[1])
            else:
                unused |= dict.fromkeys(layer_lines.add_lines(file, records, no_progress, rank))
        progress(len(files), len(files))
        notes = [f"Columns not used: {', '.join(unused)}."] if unused else []
        notes += missing_ranks(list(ranks))
        provenance = Provenance("rank-tables", str(path), tuple(notes))
        size = sum(file.stat().st_size for _, file in files)
        return records.trace(options, provenance, frozenset({"source_rank"}), size)


def _by_rank(path: Path) -> dict[int, list[Path]]:
    """Return the files whose names state a rank, by rank."""
    found: dict[int, list[Path]] = defaultdict(list)
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        rank = rank_in_name(file)
        if rank is not None and file.suffix.lower() in _SUFFIXES and file.is_file():
            found[rank].append(file)
    return found


def _readable(file: Path) -> bool:
    return csv.matches(file) or layer_lines.matches(file)


def _refuse_several(path: Path, ranks: dict[int, list[Path]]) -> None:
    """Refuse two tables of a rank: they are two recordings, and no name tells their order."""
    for rank, files in sorted(ranks.items()):
        if len(files) > 1:
            raise FormatError(
                f"{path} holds {len(files)} tables of rank {rank}, {files[0].name} and "
                f"{files[1].name}: these are several recordings. Move each to a folder of its own."
            )


FORMAT = TraceFormat(
    name="rank-tables",
    summary="a folder of tables (csv, layer-lines), one a rank, as SGLang's first recorder wrote: "
    "names with rank<number>",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids"}),
)
