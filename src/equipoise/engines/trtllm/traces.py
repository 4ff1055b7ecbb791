"""TensorRT-LLM's expert statistics: one file a rank, one vector for each iteration and layer.

Five layouts exist (V0 to V4 in ``equipoise explain traces``). All become one cube of counts by
source
rank, because each rank file counts the tokens that started on that rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from equipoise.engines._shared.arrays import MAX_EXPERTS, compact_dtype, naming, refuse_oversize
from equipoise.engines._shared.tensor_file import open_tensor_file
from equipoise.engines.files import replacing_folder
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.trtllm.map_changes import read_changes, refuse_one_map
from equipoise.engines.trtllm.rank_files import (
    COUNTS,
    KEY,
    META,
    NUM_TOKENS,
    PICKLES,
    RAW,
    TOGETHER,
    Grid,
    RankFile,
    by_stage,
    during,
    meta_text,
    numbered,
    open_rank_files,
    rank_vectors,
)
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.invariants import NO_CHOICE, blank_rows, same_tokens, same_tokens_note
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.trace import MAP_LABEL, MAX_COUNT, Provenance, TokenIds, Trace

# A cube may have this many cells for each value the files hold, so that a few stray keys cannot
# ask for memory without end. A dump of P pipeline stages holds one P-th of its cube.
_MAX_CELLS_PER_VALUE = 32
_FREE_CELLS = 1 << 24

_COUNT_DTYPES = (np.int64, np.int32, np.float32)


class _Meta(msgspec.Struct, frozen=True):
    """``meta_info.json``; all of it may be missing."""

    num_experts: int | None = None
    num_experts_per_token: int | None = None
    ep_size: int | None = None


def matches(path: Path) -> bool:
    """Whether a directory holds the rank files of a dump; looks into one of them."""
    if not path.is_dir():
        return False
    try:
        found = numbered(path, COUNTS) or numbered(path, RAW)
        if not found:
            return bool(numbered(path, PICKLES))
        keys = open_tensor_file(next(iter(found.values()))).tensors
    except OSError:
        return False
    except FormatError:
        return True  # by name a rank file: reading says what is wrong with it
    return all(KEY.fullmatch(key) for key in keys)


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read a dump of any layout.

    Counts are the sum over ranks; ``source_counts`` keeps the ranks apart. What is missing counts
    0 and is told in ``provenance.notes``.

    Raises
    ------
    FormatError
        No rank file, a damaged one, counts per slot without the map of the run, pickles without
        ``allow_pickle``.
    """
    with naming(path):
        counted, chosen = open_rank_files(path, allow_pickle=options.allow_pickle)
        meta, notes = read_meta(path / META)
        recorded, staged = by_stage(during(path, counted or chosen, options.iterations))
        chosen = by_stage(chosen)[0] if staged else chosen
        grid = Grid.of(recorded)
        counted, chosen = recorded if counted else [], [grid.cut(file) for file in chosen]
        versions = read_changes(path, grid.iterations)
        refuse_one_map(path, options.placement, grid.iterations, versions)
        width = _width(path, meta, options, counted)
        _refuse_sparse(path, grid, width, recorded)

        if counted:
            cube, more = _fill(counted, grid, width, progress)
        else:
            cube, more = _count_choices(chosen, grid, width, progress)
        notes += staged + more + _raggedness(recorded, grid) + _not_counts(path, meta, cube, grid)
        if options.placement is None and options.num_experts is None:
            notes += perhaps_slots(width)
        if options.placement is not None:
            cube = _fold(cube, grid, options.placement)
            notes += (f"Counts of {width} slots were folded to experts with the map given.",)
        groups = same_tokens(cube)
        firsts = [group[0] for group in groups]
        repeated = len(firsts) < grid.num_ranks
        if repeated:
            notes += (same_tokens_note(groups),)
            chosen = [file for file in chosen if file.rank in firsts]
        tokens, more = _tokens(chosen, grid, width, options.placement)
        return Trace(
            counts=cube[:, firsts].sum(axis=1, dtype=np.int64),
            layer_ids=tuple(grid.layers.tolist()),
            step_ids=grid.iterations,
            top_k=meta.num_experts_per_token,
            source_counts=None if repeated else cube,
            tokens=tokens,
            labels={} if versions is None else {MAP_LABEL: versions.astype(np.str_)},
            provenance=Provenance("trtllm", str(path), notes + more),
        )


def write(trace: Trace, path: Path) -> None:
    """Write a dump in the released layout (V1), the whole directory or nothing.

    Every rank file has every (iteration, layer). A trace without source counts becomes one rank.
    Labels and token ids have no place in a dump.

    Raises
    ------
    EquipoiseError
        ``top_k`` unknown, step ids that repeat or are negative, or a directory with content.
    """
    if trace.top_k is None:
        raise EquipoiseError(
            "A TensorRT-LLM dump states the choices per token, which this recording does not; "
            "write another format, such as equipoise."
        )
    if len(np.unique(trace.steps)) < trace.num_steps or trace.steps.min() < 0:
        raise EquipoiseError(
            "A TensorRT-LLM dump gives every step its own number, >= 0; this trace repeats step "
            "ids or has negative ones. Renumber its steps."
        )
    try:
        with replacing_folder(path) as temporary:
            _write_rank_files(trace, temporary)
    except SafetensorError as error:
        raise EquipoiseError(f"{path} cannot be written: {error}.") from error


def _write_rank_files(trace: Trace, folder: Path) -> None:
    by_rank = trace.counts[:, None] if trace.source_counts is None else trace.source_counts
    (folder / META).write_text(meta_text(trace.num_experts, trace.top_k), encoding="utf-8")
    for rank in range(by_rank.shape[1]):
        vectors = rank_vectors(trace.steps, trace.layer_ids, by_rank[:, rank])
        save_file(vectors, folder / f"rank{rank}.safetensors")


def read_meta(path: Path) -> tuple[_Meta, tuple[str, ...]]:
    """Read ``meta_info.json``, and return notes if it is missing or states nothing."""
    missing = "the length of the vectors stands for num_experts, and top_k is not known."
    if not path.exists():
        return _Meta(), (f"There is no {META}: {missing}",)
    try:
        meta = msgspec.json.decode(path.read_bytes(), type=_Meta | None)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path} is damaged: {error}.") from error
    if meta is None:
        return _Meta(), (f"{META} is null, as rank 0 recorded nothing: {missing}",)
    return meta, ()


def _width(path: Path, meta: _Meta, options: TraceOptions, counted: Sequence[RankFile]) -> int:
    """Ids that were counted: experts, or slots where the recorded run had a map."""
    placement = options.placement
    shortest = min((int(f.shapes.min()) for f in counted if len(f)), default=None)
    wanted = options.num_experts if placement is None else placement.num_slots
    inferred = wanted if shortest is None else shortest
    width = inferred if meta.num_experts is None else meta.num_experts
    if width is None or not 1 <= width <= MAX_EXPERTS:
        raise FormatError(
            f"{path} does not state a usable num_experts ({width}); give {argument('num_experts')}."
        )
    if placement is None and (wanted or width) < width and not options.drop_experts:
        raise FormatError(
            f"{path} counts {width} ids, {argument('num_experts')} is {wanted}. If the recorded "
            f"run balanced its experts, these are slots: give its map as {argument('placement')}."
        )
    if placement is not None and width != placement.num_slots:
        raise FormatError(
            f"{path} counts {width} ids, the placement given has {placement.num_slots} slots; "
            "give the map of the recorded run, or none if it had none."
        )
    if placement is not None and options.num_experts not in (None, placement.num_experts):
        raise EquipoiseError(
            f"num_experts is {options.num_experts}, the placement has {placement.num_experts}."
        )
    return width


def perhaps_slots(width: int) -> tuple[str, ...]:
    """Most models have a power of two of experts; 288 or 320 ids are likely slots."""
    if width & (width - 1) == 0:
        return ()
    return (
        f"{width} ids were counted. If the recorded run balanced its experts, these are slots: "
        "give the placement it used.",
    )


def _refuse_sparse(path: Path, grid: Grid, width: int, files: Sequence[RankFile]) -> None:
    T, R, L = grid.shape
    held = sum(len(file) for file in files) * width
    if T * R * L * width > max(_FREE_CELLS, _MAX_CELLS_PER_VALUE * held):
        raise FormatError(
            f"{path} names {T} iterations, {R} ranks and {L} layers, but holds only "
            f"{held // width} of their vectors; expected nearly all. Remove stray files."
        )


def _fill(
    files: Sequence[RankFile], grid: Grid, width: int, progress: Progress
) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    """Counts by source rank, ``(T, R, L, width)``, in the smallest type that holds them.

    One file is mapped at a time: beyond the cube, memory is bounded by the largest file.
    """
    cube: NDArray[np.integer] = np.zeros((*grid.shape, width), dtype=np.uint8)
    invalid = 0
    for done, file in enumerate(files):
        progress(done, len(files))
        if not len(file):
            continue
        rows, dropped = _rows(file, width)
        needed = compact_dtype(int(rows.max(initial=0)))
        if needed.itemsize > cube.itemsize:
            cube = cube.astype(needed)
        step, layer = grid.cells(file)
        cube[step, file.rank, layer] = rows
        invalid += dropped
    progress(len(files), len(files))
    if not invalid:
        return cube, ()
    return cube, (f"{invalid} assignments to ids beyond num_experts {width} were dropped.",)


def _rows(file: RankFile, width: int) -> tuple[NDArray[np.int64], int]:
    """The vectors of a file, ``(n, width)``, and the assignments that stood behind that width.

    Old recorders counted an invalid id, one past the experts, so a vector may be longer.
    """
    short = np.flatnonzero(file.shapes[:, 0] < width)
    if len(short):
        raise FormatError(
            f"{file.path}: {file.key(short[0])} has {file.shapes[short[0], 0]} counts; "
            f"expected {width}."
        )
    values = file.values()
    if isinstance(values, np.ndarray):
        rows, tail = values[:, :width], values[:, width:].ravel()
    else:
        rows = np.stack([vector[:width] for vector in values])
        tail = np.concatenate([vector[width:] for vector in values])
    return _whole_counts(file, rows), int(_whole_counts(file, tail[None]).sum())


def _whole_counts(file: RankFile, rows: NDArray[Any]) -> NDArray[np.int64]:
    if rows.dtype not in _COUNT_DTYPES:
        raise FormatError(f"{file.path} counts in {rows.dtype}; expected int64, int32 or float32.")
    bad = ~((rows >= 0) & (rows < MAX_COUNT))
    if rows.dtype.kind == "f":
        bad |= rows != np.rint(rows)
    if bad.any():
        i, expert = np.argwhere(bad)[0]
        raise FormatError(
            f"{file.path}: {file.key(i)} counts {rows[i, expert]} for id {expert}; "
            "expected whole numbers from 0 to 2^48."
        )
    return rows.astype(np.int64, copy=False)


def _count_choices(
    files: Sequence[RankFile], grid: Grid, width: int, progress: Progress
) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    """Counts by source rank from the tokens' choices, where no vector of counts was written."""
    T, R, L = grid.shape
    refuse_oversize((T, R, L, width), 8, "Counts (iterations, ranks, layers, experts)")
    cube = np.zeros((T, R, L, width), dtype=np.int64)
    invalid = 0
    for done, file in enumerate(files):
        progress(done, len(files))
        step, layer = grid.cells(file)
        for i, ids in enumerate(_choices(file)):
            valid = ids[(ids >= 0) & (ids < width)]
            invalid += ids.size - valid.size
            cube[step[i], file.rank, layer[i]] = np.bincount(valid, minlength=width)
    progress(len(files), len(files))
    notes: tuple[str, ...] = (
        "There are no files of counts; the tokens' own choices were counted.",
    )
    if invalid:
        notes += (
            f"{invalid} choices were dropped: padding, or ids that {width} experts do not have.",
        )
    return cube.astype(compact_dtype(int(cube.max())), copy=False), notes


def _choices(file: RankFile) -> Iterator[NDArray[np.int64]]:
    """The ids of each key, ``(tokens, K)``."""
    if file.dtype.kind not in "iu":
        raise FormatError(f"{file.path} holds {file.dtype} values; expected whole ids.")
    return (_chosen(file, i, ids) for i, ids in enumerate(file.values()))


def _chosen(file: RankFile, key: int, ids: NDArray[Any]) -> NDArray[np.int64]:
    """The ids ``(tokens, K)``, with -1 in rows that are not choices."""
    chosen = ids.astype(np.int64)
    try:
        blank = blank_rows(chosen[:, None])[:, 0]
    except EquipoiseError as error:
        raise FormatError(f"{file.path}, {file.key(key)}: {error}") from error
    chosen[blank] = NO_CHOICE
    return chosen


def _tokens(
    files: Sequence[RankFile], grid: Grid, width: int, placement: Placement | None
) -> tuple[TokenIds | None, tuple[str, ...]]:
    """The tokens' choices, ordered by iteration, then rank; -1 where a layer was not recorded."""
    sizes = _token_counts(files, grid)
    top_k = {int(k) for file in files for k in np.unique(file.shapes[:, 1:])}
    if sizes is None or len(top_k) != 1:
        reason = "layers of one iteration differ in tokens or choices"
        return None, (f"The tokens' own choices were left out: {reason}.",) if files else ()
    first = np.concatenate([[0], np.cumsum(sizes)])
    ids_shape = (int(first[-1]), len(grid.layers), top_k.pop())
    refuse_oversize(ids_shape, 4, "Token ids (tokens, layers, choices)")
    ids = np.full(ids_shape, -1, dtype=np.int16 if width <= 1 << 15 else np.int32)
    for file in files:
        step, layer = grid.cells(file)
        for i, chosen in enumerate(_choices(file)):
            begin = first[step[i] * grid.num_ranks + file.rank]
            chosen = np.where((chosen >= 0) & (chosen < width), chosen, -1)
            ids[begin : begin + len(chosen), layer[i]] = chosen
    if placement is not None:
        row = _placement_rows(grid, placement)
        expert = np.append(placement.slots[row], np.full((len(row), 1), -1), axis=1)
        ids = expert[np.arange(len(row))[:, None], ids].astype(ids.dtype)
    return TokenIds(ids, first[:: grid.num_ranks]), ()


def _token_counts(files: Sequence[RankFile], grid: Grid) -> NDArray[np.int64] | None:
    """Tokens of each (iteration, rank), ``(T * R,)``; ``None`` if layers differ or none exist."""
    if not files:
        return None
    most = np.zeros(grid.shape[:2], dtype=np.int64)
    least = np.full_like(most, np.iinfo(np.int64).max)
    for file in files:
        step, _ = grid.cells(file)
        np.minimum.at(least[:, file.rank], step, file.shapes[:, 0])
        np.maximum.at(most[:, file.rank], step, file.shapes[:, 0])
    return None if ((most > 0) & (least != most)).any() else most.ravel()


def _fold(cube: NDArray[np.integer], grid: Grid, placement: Placement) -> NDArray[np.integer]:
    """Counts per slot ``(T, R, L, S)`` summed to experts ``(T, R, L, E)``."""
    most_copies = int(placement.copies.max())
    dtype = compact_dtype(int(cube.max()) * most_copies)
    folded = np.empty((*cube.shape[:3], placement.num_experts), dtype=dtype)
    for i, row in enumerate(_placement_rows(grid, placement)):
        by_expert = np.argsort(placement.slots[row], kind="stable")
        first = np.concatenate([[0], np.cumsum(placement.copies[row])[:-1]])
        folded[:, :, i] = np.add.reduceat(cube[:, :, i][..., by_expert], first, axis=-1)
    return folded


def _placement_rows(grid: Grid, placement: Placement) -> list[int]:
    row = {layer: i for i, layer in enumerate(placement.layer_ids)}
    missing = [layer for layer in grid.layers.tolist() if layer not in row]
    if missing:
        raise EquipoiseError(
            f"The dump has layer {format_ids(missing)}, the placement given has layers "
            f"{format_ids(placement.layer_ids)}; give the map of the recorded run."
        )
    return [row[layer] for layer in grid.layers.tolist()]


def _raggedness(files: Sequence[RankFile], grid: Grid) -> tuple[str, ...]:
    """Return notes on combinations of iteration, rank and layer that the dump lacks."""
    notes: list[str] = []
    present = {file.rank for file in files}
    missing = [rank for rank in range(grid.num_ranks) if rank not in present]
    if missing:
        notes.append(f"Files of the ranks {format_ids(missing)} are missing; they count 0.")
    per_rank = grid.shape[0] * grid.shape[2]
    held: Counter[int] = Counter()
    for file in files:
        held[file.rank] += len(file)
    short = [rank for rank, pairs in held.items() if pairs < per_rank]
    if short:
        absent = sum(per_rank - held[rank] for rank in short)
        first = _first_missing([file for file in files if file.rank == short[0]], grid)
        notes.append(
            f"{absent} of {per_rank * len(held)} (iteration, layer) pairs are missing, in "
            f"{len(short)} rank files ({first} is the first); they count 0."
        )
    ranges = {file.rank: tuple(np.unique(file.iteration).tolist()) for file in files}
    odd = [rank for rank, own in ranges.items() if own != tuple(grid.iterations.tolist())]
    if odd:
        notes.append(f"The ranks {format_ids(odd)} did not record every iteration.")
    if (np.diff(grid.iterations) != 1).any():
        notes.append(f"Iterations have gaps: {format_ids(grid.iterations.tolist())}.")
    return tuple(notes)


def _first_missing(files: Sequence[RankFile], grid: Grid) -> str:
    seen = np.zeros((grid.shape[0], grid.shape[2]), dtype=bool)
    for file in files:
        seen[grid.cells(file)] = True
    step, layer = np.argwhere(~seen)[0]
    return f"{grid.iterations[step]}_{grid.layers[layer]} of {files[0].path.name}"


def _not_counts(path: Path, meta: _Meta, cube: NDArray[np.integer], grid: Grid) -> tuple[str, ...]:
    """Notes on what the later layouts contain in addition to the counts."""
    notes: list[str] = []
    if numbered(path, TOGETHER):
        notes.append("Files of experts chosen together (cooccurrence_rank*) are not used.")
    if numbered(path, RAW):
        notes.append("Raw files hold the choices of the last chunk of each forward pass only.")
    if meta.ep_size not in (None, grid.num_ranks):
        notes.append(f"{META} states ep_size {meta.ep_size}; files name {grid.num_ranks} ranks.")
    num_tokens = numbered(path, NUM_TOKENS)
    if num_tokens and meta.num_experts_per_token is not None:
        notes += _partial_iterations(num_tokens, meta.num_experts_per_token, cube, grid)
    return tuple(notes)


def _partial_iterations(
    files: Mapping[int, Path], top_k: int, cube: NDArray[np.integer], grid: Grid
) -> list[str]:
    """Compare counts with the numbers of tokens that were recorded apart from them."""
    step_row = {step: i for i, step in enumerate(grid.iterations.tolist())}
    layer_row = {layer: i for i, layer in enumerate(grid.layers.tolist())}
    differing: set[int] = set()
    for rank, path in files.items():
        try:
            tokens = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{path} is damaged: {error}.") from error
        for key, count in tokens.items():
            match = KEY.fullmatch(key)
            if match is None:
                raise FormatError(f"{path}: {key[:80]!r} is not a key <iteration>_<layer>.")
            step, layer = step_row.get(int(match[1])), layer_row.get(int(match[2]))
            if step is None or layer is None or rank >= grid.num_ranks:
                continue  # outside the iterations asked for
            if int(cube[step, rank, layer].sum()) != count * top_k:
                differing.add(int(match[1]))
    if not differing:
        return []
    return [
        f"In the iterations {format_ids(sorted(differing))} counts do not add up to the recorded "
        "tokens; the last iteration of a dump may be partial."
    ]


FORMAT = TraceFormat(
    name="trtllm",
    summary="TensorRT-LLM expert statistics: a directory of rank<number>.safetensors",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "placement", "iterations", "allow_pickle"}),
    write=write,
    folder=True,
)
