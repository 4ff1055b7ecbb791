"""The files of a TensorRT-LLM dump, with their keys and the places of their values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.half_precision import widened
from equipoise.engines._shared.tensor_file import HALF, map_bytes, open_tensor_file
from equipoise.engines.trtllm.legacy_pickle import load_vectors
from equipoise.errors import FormatError, argument
from equipoise.layer_ids import format_ids

META = "meta_info.json"
COUNTS = re.compile(r"rank(0|[1-9]\d{0,5})\.safetensors")
RAW = re.compile(r"rank(0|[1-9]\d{0,5})_raw\.safetensors")
CHOSEN = re.compile(r"token_selected_experts_rank(0|[1-9]\d{0,5})\.safetensors")
TOGETHER = re.compile(r"cooccurrence_rank(0|[1-9]\d{0,5})\.safetensors")
NUM_TOKENS = re.compile(r"rank(0|[1-9]\d{0,5})_numtokens\.json")
PICKLES = re.compile(r"rank_(0|[1-9]\d{0,5})\.pkl")
KEY = re.compile(r"(\d{1,15})_(\d{1,9})")


@dataclass(frozen=True, eq=False)
class RankFile:
    """The ``n`` keys of one rank's file, and the places of their values.

    Parameters
    ----------
    path, rank
        File, and the rank that wrote it.
    iteration, layer
        Iteration and layer of each key, ``(n,)``.
    shapes
        Shape of each value, ``(n, axes)``.
    begin
        First byte of each value in the file, ``(n,)``.
    dtype
        Type of the values.
    half
        Half-precision type in which they are stored, if any; ``dtype`` is float32 then.
    loaded
        Values, if the file is a pickle; ``begin`` then counts them from 0.
    """

    path: Path
    rank: int
    iteration: NDArray[np.int64]
    layer: NDArray[np.int64]
    shapes: NDArray[np.int64]
    begin: NDArray[np.int64]
    dtype: np.dtype[np.generic]
    loaded: list[NDArray[np.generic]] | None = None
    half: str = ""

    def __len__(self) -> int:
        return len(self.iteration)

    def key(self, i: int) -> str:
        """Return the name of a value in the file."""
        return f"{self.iteration[i]}_{self.layer[i]}"

    def values(self) -> Sequence[NDArray[Any]] | NDArray[Any]:
        """Read all values, into one array if their shapes agree; the file is unmapped again."""
        if self.loaded is not None:
            return [self.loaded[i] for i in self.begin]
        if not self.half:
            return self._stored(self.dtype)
        bits = self._stored(np.dtype("<u2"))
        try:
            if isinstance(bits, np.ndarray):
                return widened(bits, self.half)
            return [widened(part, self.half) for part in bits]
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}.") from None

    def _stored(self, dtype: np.dtype[np.generic]) -> Sequence[NDArray[Any]] | NDArray[Any]:
        data = map_bytes(self.path)
        size = self.shapes.prod(axis=1) * dtype.itemsize
        if len(self) and size[0] and (self.shapes == self.shapes[0]).all():
            first, last = self.begin.min(), self.begin.max() + size[0]
            row, rest = np.divmod(self.begin - first, size[0])
            if not rest.any():
                whole = data[first:last].view(dtype)
                return whole.reshape(-1, *self.shapes[0])[row]
        places = zip(self.begin.tolist(), size.tolist(), self.shapes.tolist(), strict=True)
        return [data[at : at + n].view(dtype).reshape(shape) for at, n, shape in places]

    def take(self, keep: NDArray[np.bool_]) -> RankFile:
        """Return the file with the keys that ``keep`` marks, ``(n,)``."""
        return replace(
            self,
            iteration=self.iteration[keep],
            layer=self.layer[keep],
            shapes=self.shapes[keep],
            begin=self.begin[keep],
        )


@dataclass(frozen=True, eq=False)
class Grid:
    """The axes of the cube: iterations, ranks from 0, layers."""

    iterations: NDArray[np.int64]
    num_ranks: int
    layers: NDArray[np.int64]

    @classmethod
    def of(cls, files: Sequence[RankFile]) -> Grid:
        """Return the smallest grid that holds every key of the files."""
        return cls(
            np.unique(np.concatenate([f.iteration for f in files])),
            max(f.rank for f in files) + 1,
            np.unique(np.concatenate([f.layer for f in files])),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(T, R, L)``."""
        return len(self.iterations), self.num_ranks, len(self.layers)

    def cut(self, file: RankFile) -> RankFile:
        """Return a file with only the keys that the grid has."""
        keep = np.isin(file.iteration, self.iterations) & np.isin(file.layer, self.layers)
        return file.take(keep & (file.rank < self.num_ranks))

    def cells(self, file: RankFile) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the positions of every key of a file along iterations and layers."""
        return (
            np.searchsorted(self.iterations, file.iteration),
            np.searchsorted(self.layers, file.layer),
        )


def numbered(directory: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Return the files of a directory whose whole name matches, by the rank in it, ascending."""
    found = ((pattern.fullmatch(file.name), file) for file in directory.iterdir())
    return dict(sorted((int(match[1]), file) for match, file in found if match))


def rank_vectors(
    iterations: NDArray[np.int64], layer_ids: Sequence[int], counts_TLE: NDArray[np.integer]
) -> dict[str, NDArray[np.int64]]:
    """Return one rank's counts by the keys of its file, as the engine stores them."""
    return {
        f"{iteration}_{layer}": counts_TLE[t, i].astype(np.int64)
        for t, iteration in enumerate(iterations.tolist())
        for i, layer in enumerate(layer_ids)
    }


def meta_text(num_experts: int, top_k: int | None) -> str:
    """Return the content of ``meta_info.json``, byte for byte as the engine writes it."""
    return f'{{"num_experts": {num_experts}, "num_experts_per_token": {top_k}}}'


def open_rank_files(path: Path, *, allow_pickle: bool) -> tuple[list[RankFile], list[RankFile]]:
    """Open the rank files of counts, and those of the tokens' choices; each list may be empty."""
    pickles, counts = numbered(path, PICKLES), numbered(path, COUNTS)
    chosen = numbered(path, CHOSEN) or numbered(path, RAW)
    if pickles and (counts or chosen):
        raise FormatError(f"{path} holds pickles and safetensors of ranks; keep one kind there.")
    if pickles and not allow_pickle:
        raise FormatError(
            f"{path} is a first-era dump of pickles, which can run code when loaded; give "
            f"{argument('allow_pickle')} to read them with an unpickler that accepts plain tensors "
            "only."
        )
    if allow_pickle and not pickles:
        raise FormatError(f"{path} holds no pickles; leave {argument('allow_pickle')} out.")
    if not (pickles or counts or chosen):
        raise FormatError(f"{path} has no file rank<number>.safetensors; expected one a rank.")
    index = [_index_pickle(i) for i in pickles.items()] or [_index(i, 1) for i in counts.items()]
    return index, [_index(item, 2) for item in chosen.items()]


def during(path: Path, files: list[RankFile], iterations: tuple[int, int] | None) -> list[RankFile]:
    """Return the files with the keys of iterations ``[start, stop)`` only."""
    everything = np.unique(np.concatenate([file.iteration for file in files]))
    if not len(everything):
        raise FormatError(f"{path} holds rank files without any key; the run recorded nothing.")
    if iterations is None:
        return files
    start, stop = iterations
    if not ((everything >= start) & (everything < stop)).any():
        raise FormatError(
            f"{path} holds the iterations {format_ids(everything.tolist())}; "
            f"none of them is in [{start}, {stop})."
        )
    return [file.take((file.iteration >= start) & (file.iteration < stop)) for file in files]


def _index(item: tuple[int, Path], axes: int) -> RankFile:
    """Read the keys of a safetensors file whose values are vectors (1 axis) or choices (2 axes)."""
    rank, path = item
    file = open_tensor_file(path)
    tensors = file.tensors
    pairs: dict[tuple[int, int], str] = {}
    for key, info in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise FormatError(f"{path}: {key[:80]!r} is not a key <iteration>_<layer>.")
        if len(info.shape) != axes:
            wanted = "a vector of counts" if axes == 1 else "ids (tokens, choices)"
            raise FormatError(f"{path}: {key} has shape {info.shape}; expected {wanted}.")
        pair = int(match[1]), int(match[2])
        if pair in pairs:
            raise FormatError(f"{path} has {pairs[pair]} and {key}, which mean the same; keep one.")
        pairs[pair] = key
    names = {info.dtype for info in tensors.values()} or {"I64"}
    if len(names) > 1:
        raise FormatError(f"{path} mixes {', '.join(sorted(names))}; expected one type.")
    half = HALF.get(names.pop(), "")
    dtype = next((info.numpy_dtype for info in tensors.values()), np.dtype(np.int64))
    iteration, layer = np.array(list(pairs), dtype=np.int64).reshape(-1, 2).T
    shapes = np.array([info.shape for info in tensors.values()], dtype=np.int64)
    begin = np.array([info.data_offsets[0] for info in tensors.values()], dtype=np.int64)
    return RankFile(
        path,
        rank,
        iteration,
        layer,
        shapes.reshape(-1, axes),
        begin + file.data_begin,
        np.dtype(np.float32) if half else dtype,
        half=half,
    )


def _index_pickle(item: tuple[int, Path]) -> RankFile:
    rank, path = item
    vectors = load_vectors(path)
    iteration, layer = np.array(list(vectors), dtype=np.int64).reshape(-1, 2).T
    loaded = list(vectors.values())
    return RankFile(
        path,
        rank,
        iteration,
        layer,
        np.array([vector.shape for vector in loaded], dtype=np.int64).reshape(-1, 1),
        np.arange(len(loaded)),
        np.result_type(*loaded) if loaded else np.dtype(np.int64),
        loaded,
    )


def by_stage(files: list[RankFile]) -> tuple[list[RankFile], tuple[str, ...]]:
    """Return the files with ranks counted from 0 in each pipeline stage, and a note.

    With expert parallelism alone, every rank has every layer. Ranks with disjoint layers belong to
    different stages of a pipeline; the first ranks of all stages are the same expert-parallel rank.
    """
    layers = {file.rank: tuple(np.unique(file.layer).tolist()) for file in files if len(file)}
    stages: dict[tuple[int, ...], list[int]] = {}
    for rank, own in layers.items():
        stages.setdefault(own, []).append(rank)
    seen = [layer for own in stages for layer in own]
    sizes = {len(ranks) for ranks in stages.values()}
    if len(stages) < 2 or len(set(seen)) < len(seen) or len(sizes) > 1:
        return files, ()
    position = {rank: i for ranks in stages.values() for i, rank in enumerate(sorted(ranks))}
    shown = [f"ranks {format_ids(sorted(r))} layers {format_ids(own)}" for own, r in stages.items()]
    note = (
        f"No two of the {len(stages)} groups of ranks recorded the same layer "
        f"({'; '.join(shown[:4])}{'; ...' if len(shown) > 4 else ''}): they were read as pipeline "
        f"stages of {sizes.pop()} expert-parallel ranks each."
    )
    staged = [replace(f, rank=position[f.rank]) if f.rank in position else f for f in files]
    return [f for f in staged if len(f)], (note,)
