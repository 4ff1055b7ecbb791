"""A trace of routing: assignments per step, layer and logical expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import (
    MAX_WHOLE,
    as_array,
    as_ids,
    as_names,
    brief,
    check_collection,
    check_count,
    check_type,
    check_whole,
)
from equipoise.errors import EquipoiseError, Message, named
from equipoise.layer_ids import check_layer_ids, format_ids
from equipoise.showing import heat_html, short_name

MAX_COUNT = 1 << 48
"""Upper limit of a count. It is far above any real count and keeps sums within 64 bits."""


MEMORY = "memory"
"""Source of what was in no file yet."""

MAP_LABEL = "map"
"""Label of a step with the number of changes of the map before it; it names no kind of traffic."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a trace, and the findings of its reader.

    Parameters
    ----------
    format
        Name of the format it was read in.
    source
        Path or description of the source.
    notes
        Sentences for the user about what was left out, merged, assumed or missing.
    """

    format: str
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Text from a file may hold lone surrogates, which cannot be printed or written.
        object.__setattr__(self, "notes", tuple(map(_without_halves, self.notes)))

    def named(self, names: Mapping[str, str]) -> Self:
        """Return a copy whose notes use other names for arguments; see ``Message.named``."""
        return replace(self, notes=tuple(dict.fromkeys(named(note, names) for note in self.notes)))


def _without_halves(note: str) -> str:
    if isinstance(note, Message):
        return Message(note.marked.encode("utf-8", "replace").decode())
    return note.encode("utf-8", "replace").decode()


@dataclass(frozen=True, eq=False)
class TokenIds:
    """The experts that each token chose. Tokens are stored step after step.

    Parameters
    ----------
    ids
        Expert ids, ``(D, L, K)`` integers; an id outside ``[0, E)`` marks a missing choice.
    offsets
        Position of each step's first token, and the end, ``(T + 1,)``: step ``t`` has the tokens
        ``offsets[t]`` to ``offsets[t + 1] - 1``.

    Raises
    ------
    EquipoiseError
        Ids of another shape, or offsets that do not ascend from 0 to the number of tokens.
    """

    ids: NDArray[np.integer]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        ids, offsets = as_ids(self.ids, "Token ids"), as_ids(self.offsets, "Token offsets")
        if ids.ndim != 3:
            raise EquipoiseError(
                f"Token ids have shape {ids.shape}; expected (tokens, layers, top_k)."
            )
        # Neighbours are compared, not subtracted: differences of unsigned numbers are never < 0.
        ordered = offsets.ndim == 1 and len(offsets) and (offsets[1:] >= offsets[:-1]).all()
        if not ordered or offsets[0] != 0 or offsets[-1] != len(ids):
            raise EquipoiseError(
                f"Token offsets are {brief(self.offsets)}; expected ascending numbers from 0 to "
                f"the {len(ids)} tokens."
            )
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "offsets", offsets.astype(np.int64, copy=False))

    def of_step(self, step: int) -> NDArray[np.integer]:
        """Return the ids of one step, ``(tokens, L, K)``: a view."""
        return self.ids[self.offsets[step] : self.offsets[step + 1]]

    def take_steps(self, steps: NDArray[np.int64]) -> TokenIds:
        """Return the tokens of the given steps, in the given order."""
        sizes = np.diff(self.offsets)[steps]
        parts = [self.of_step(int(t)) for t in steps]
        ids = np.concatenate(parts) if parts else self.ids[:0]
        return TokenIds(ids, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def __repr__(self) -> str:
        tokens, layers, top_k = self.ids.shape
        steps = len(self.offsets) - 1
        return f"TokenIds({tokens} tokens in {steps} steps, {layers} layers, top {top_k})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """The assignments that each logical expert received, by step and layer.

    One assignment is one token and one expert that it chose.

    Parameters
    ----------
    counts
        Assignments, ``(T, L, E)`` integers >= 0. ``(L, E)`` is taken as a single step.
    layer_ids
        Layer numbers of the model, ascending; empty numbers the layers from 0.
    step_ids
        Step numbers of the engine (iteration, pass, window), ``(T,)``; ``None`` counts from 0.
    top_k
        Number of experts each token chooses, ``K``; ``None`` if the source does not say.
    source_counts
        Assignments by the rank that the token was on, ``(T, R, L, E)``, if recorded.
    tokens
        Choices of each token, if recorded.
    labels
        Labels of the steps, such as ``phase``, ``domain`` or ``map``: name to ``(T,)`` strings.
    provenance
        Origin of the trace, and notes on how it was read.

    Raises
    ------
    EquipoiseError
        Shapes that do not match each other, or counts that are negative or not whole.
    """

    counts: NDArray[np.integer] = field(kw_only=False)
    layer_ids: tuple[int, ...] = ()
    step_ids: NDArray[np.int64] | None = None
    top_k: int | None = None
    source_counts: NDArray[np.integer] | None = None
    tokens: TokenIds | None = None
    labels: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    provenance: Provenance = Provenance("array", MEMORY)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", _as_counts(self.counts))
        given = self.layer_ids
        ids = range(self.num_layers) if isinstance(given, (tuple, list)) and not given else given
        object.__setattr__(self, "layer_ids", check_layer_ids(ids, self.num_layers))
        steps = np.arange(self.num_steps) if self.step_ids is None else self.step_ids
        object.__setattr__(self, "step_ids", _as_steps(steps))
        if self.top_k is not None:
            object.__setattr__(self, "top_k", check_count("top_k", self.top_k))
        if self.source_counts is not None:
            object.__setattr__(self, "source_counts", _as_source_counts(self.source_counts))
        object.__setattr__(self, "labels", _as_labels(self.labels))
        check_type("provenance", self.provenance, Provenance)
        self._check_shapes()

    def _check_shapes(self) -> None:
        T, L, E = self.counts.shape
        _expect("step_ids", len(self.steps), T)
        for name, values in self.labels.items():
            _expect(f"label {name!r}", values.shape, (T,))
        if self.source_counts is not None:
            shape = self.source_counts.shape
            _expect("source_counts", (shape[0], *shape[2:]), (T, L, E))
        if self.tokens is not None:
            check_type("tokens", self.tokens, TokenIds)
            _expect("tokens.ids layers", self.tokens.ids.shape[1], L)
            _expect("tokens.offsets", self.tokens.offsets.shape, (T + 1,))

    @property
    def num_steps(self) -> int:
        """Number of steps, ``T``."""
        return int(self.counts.shape[0])

    @property
    def num_layers(self) -> int:
        """Number of MoE layers, ``L``."""
        return int(self.counts.shape[1])

    @property
    def num_experts(self) -> int:
        """Number of logical experts, ``E``."""
        return int(self.counts.shape[2])

    @property
    def steps(self) -> NDArray[np.int64]:
        """Number that the engine gave each step, ``(T,)``."""
        assert self.step_ids is not None  # set in __post_init__
        return self.step_ids

    @cached_property
    def total(self) -> NDArray[np.int64]:
        """Assignments summed over all steps, ``(L, E)`` int64; read-only."""
        total: NDArray[np.int64] = self.counts.sum(axis=0, dtype=np.int64)
        total.flags.writeable = False
        return total

    def select(
        self,
        *,
        layers: Sequence[int] | None = None,
        steps: ArrayLike | None = None,
        **labels: str | Sequence[str],
    ) -> Self:
        """Return a trace with only the chosen layers and steps.

        Parameters
        ----------
        layers
            Layer numbers (the model's) to keep; ``None`` keeps all.
        steps
            Positions along the step axis, or a boolean mask ``(T,)``; ``None`` keeps all.
        labels
            Label values to keep, such as ``phase="decode"`` or ``domain=["code", "math"]``.

        Raises
        ------
        EquipoiseError
            A layer, label or value that the trace does not have, or no step left.
        """
        keep = np.ones(self.num_steps, dtype=bool)
        for name, wanted in labels.items():
            keep &= self._label_mask(name, [wanted] if isinstance(wanted, str) else list(wanted))
        index = np.flatnonzero(keep)
        if steps is not None:
            chosen = self._positions(steps)
            index = chosen[np.isin(chosen, index)]
        if not len(index):
            raise EquipoiseError(f"No step of the trace ({self.num_steps} steps) has {labels}.")
        chosen_trace = self._take_steps(index)
        return chosen_trace if layers is None else chosen_trace._take_layers(layers)

    def split(self, at: float = 0.8, *, within: str | None = "domain") -> tuple[Self, Self]:
        """Split into a part to fit on and a held-out part: the later steps are held out.

        Parameters
        ----------
        at
            Share of the steps to fit on, in (0, 1); each part gets at least one step.
        within
            Label whose values are split separately, so that both parts have steps of each value. A
            trace without this label is split as one sequence.

        Returns
        -------
        The trace to fit on and the held-out trace.

        Raises
        ------
        EquipoiseError
            A share that is not between 0 and 1, or a label value with fewer than two steps.
        """
        if not (isinstance(at, (float, np.floating)) and 0 < at < 1):
            raise EquipoiseError(f"Cannot split at {brief(at)}; expected a share between 0 and 1.")
        label = "" if within is None else check_type("within", within, str)
        groups = self.labels.get(label, np.zeros(self.num_steps, dtype=np.str_))
        fit: list[NDArray[np.int64]] = []
        held: list[NDArray[np.int64]] = []
        for value in dict.fromkeys(groups.tolist()):
            index = np.flatnonzero(groups == value)
            if len(index) < 2:
                raise EquipoiseError(
                    f"Only {len(index)} step{f' of {within} {value!r}' if value else ''}; "
                    "a held-out split needs at least 2."
                )
            cut = min(max(round(at * len(index)), 1), len(index) - 1)
            fit.append(index[:cut])
            held.append(index[cut:])
        order = (np.sort(np.concatenate(fit)), np.sort(np.concatenate(held)))
        return self._take_steps(order[0]), self._take_steps(order[1])

    def windows(self, size: int) -> Self:
        """Add up blocks of ``size`` consecutive steps; each block becomes one step.

        A block ends early where a label changes, and at the end of the trace. It gets the step id
        of its first step.
        """
        size = check_whole("The size of a window", size, low=1)
        starts = self._block_starts(size)
        tokens = self.tokens
        if tokens is not None:
            tokens = TokenIds(tokens.ids, np.append(tokens.offsets[starts], tokens.offsets[-1]))
        source = self.source_counts
        return replace(
            self,
            counts=_sum_blocks(self.counts, starts),
            step_ids=self.steps[starts],
            source_counts=None if source is None else _sum_blocks(source, starts),
            tokens=tokens,
            labels={name: values[starts] for name, values in self.labels.items()},
        )

    def with_notes(self, *notes: str) -> Self:
        """Return a copy of the trace with notes added to its provenance."""
        provenance = replace(self.provenance, notes=(*self.provenance.notes, *notes))
        return replace(self, provenance=provenance)

    def first_experts(self, num_experts: int) -> Self:
        """Return a copy with ``num_experts`` experts: the last are cut off, or empty ones added."""
        source = self.source_counts
        return replace(
            self,
            counts=_resized(self.counts, num_experts),
            source_counts=None if source is None else _resized(source, num_experts),
        )

    def with_layers(self, layer_ids: Sequence[int]) -> Self:
        """Return a copy with exactly these layers: others are left out, missing ones are empty."""
        known = [i for i in layer_ids if i in self.layer_ids]
        cut = self._take_layers(known) if known else self
        if tuple(layer_ids) == cut.layer_ids:
            return cut
        row = {layer: i for i, layer in enumerate(cut.layer_ids)}
        index = np.array([row.get(layer, -1) for layer in layer_ids])
        source, tokens = cut.source_counts, cut.tokens
        return replace(
            cut,
            counts=_rows_or(cut.counts, index, 1, 0),
            layer_ids=tuple(layer_ids),
            source_counts=None if source is None else _rows_or(source, index, 2, 0),
            tokens=None
            if tokens is None
            else TokenIds(_rows_or(tokens.ids, index, 1, -1), tokens.offsets),
        )

    @classmethod
    def from_tokens(
        cls,
        ids: ArrayLike,
        offsets: ArrayLike,
        *,
        num_experts: int,
        layer_ids: tuple[int, ...] = (),
        labels: Mapping[str, NDArray[np.str_]] | None = None,
        provenance: Provenance = Provenance("array", MEMORY),
    ) -> Self:
        """Make a trace by counting the choices of tokens.

        An expert that one token names twice counts twice. Ids outside ``[0, E)`` are not counted.

        Parameters
        ----------
        ids, offsets
            Expert ids ``(D, L, K)`` and the position of each step's first token ``(T + 1,)``, as
            in ``TokenIds``.
        num_experts
            Number of logical experts, ``E``.
        layer_ids, labels, provenance
            Fields of ``Trace``.
        """
        num_experts = check_count("num_experts", num_experts)
        tokens = TokenIds(ids, offsets)  # type: ignore[arg-type]  # which makes arrays of them
        return cls(
            counts=_count_by_step(tokens, num_experts),
            layer_ids=layer_ids,
            top_k=tokens.ids.shape[2],
            tokens=tokens,
            labels={} if labels is None else labels,
            provenance=provenance,
        )

    @classmethod
    def merge(cls, traces: Sequence[Trace]) -> Trace:
        """Join the steps of several traces into one, in the given order.

        Source counts, tokens and each label are kept only if every trace has them.

        Raises
        ------
        EquipoiseError
            No trace, or traces with different layers or numbers of experts.
        """
        traces = [
            check_type("A trace to merge", t, Trace) for t in check_collection("traces", traces)
        ]
        if not traces:
            raise EquipoiseError("Nothing to merge; give at least one trace.")
        first = traces[0]
        for other in traces[1:]:
            if (other.layer_ids, other.num_experts) != (first.layer_ids, first.num_experts):
                raise EquipoiseError(
                    f"Cannot merge {other.provenance.source} ({other.num_layers} layers, "
                    f"{other.num_experts} experts) with {first.provenance.source} "
                    f"({first.num_layers} layers, {first.num_experts} experts)."
                )
        shared = set.intersection(*(set(t.labels) for t in traces))
        return Trace(
            counts=np.concatenate([t.counts for t in traces]),
            layer_ids=first.layer_ids,
            step_ids=np.concatenate([t.steps for t in traces]),
            top_k=first.top_k if all(t.top_k == first.top_k for t in traces) else None,
            source_counts=_merge_sources([t.source_counts for t in traces]),
            tokens=_merge_tokens([t.tokens for t in traces]),
            labels={n: np.concatenate([t.labels[n] for t in traces]) for n in sorted(shared)},
            provenance=Provenance(
                first.provenance.format,
                ", ".join(dict.fromkeys(t.provenance.source for t in traces)),
                tuple(dict.fromkeys(n for t in traces for n in t.provenance.notes)),
            ),
        )

    def __repr__(self) -> str:
        extra = ""
        if self.source_counts is not None:
            sources = self.source_counts.shape[1]
            extra += f", {sources} source rank{'s' * (sources > 1)}"
        if self.tokens is not None:
            extra += f", {len(self.tokens.ids)} tokens"
        return (
            f"Trace({self.num_steps} steps, {self.num_layers} layers, {self.num_experts} experts"
            f"{extra}, {self.provenance.format} from {short_name(self.provenance.source)})"
        )

    def _repr_html_(self) -> str:
        mean = np.maximum(self.total.mean(axis=1, keepdims=True), 1e-9)  # 0 without load
        return heat_html(
            repr(self),
            self.total / mean,
            "Load of every expert over the mean of its layer: a row for each layer, a column for "
            "each expert.",
        )

    def _positions(self, steps: ArrayLike) -> NDArray[np.int64]:
        chosen = as_array(steps, "The steps to keep")
        if chosen.dtype == np.bool_:
            _expect("The mask of steps", chosen.shape, (self.num_steps,))
            return np.flatnonzero(chosen)
        return as_ids(chosen, "The steps to keep").ravel().astype(np.int64)

    def _label_mask(self, name: str, wanted: list[str]) -> NDArray[np.bool_]:
        if name not in self.labels:
            known = ", ".join(sorted(self.labels)) or "no label"
            raise EquipoiseError(f"The trace has no label {name!r}; it has {known}.")
        values = self.labels[name]
        for value in wanted:
            if value not in values:
                known = ", ".join(dict.fromkeys(values.tolist()))
                raise EquipoiseError(f"No step has {name} {value!r}; the trace has {known}.")
        return np.isin(values, wanted)

    def _take_steps(self, index: NDArray[np.int64]) -> Self:
        return replace(
            self,
            counts=self.counts[index],
            step_ids=self.steps[index],
            source_counts=None if self.source_counts is None else self.source_counts[index],
            tokens=None if self.tokens is None else self.tokens.take_steps(index),
            labels={name: values[index] for name, values in self.labels.items()},
        )

    def _take_layers(self, layers: Sequence[int]) -> Self:
        position = {layer: i for i, layer in enumerate(self.layer_ids)}
        layers = as_ids(check_collection("layers", layers), "layers").ravel().tolist()
        for layer in layers:
            if layer not in position:
                raise EquipoiseError(
                    f"The trace has no layer {layer}; it has {format_ids(self.layer_ids)}."
                )
        index = sorted(position[layer] for layer in set(layers))
        source, tokens = self.source_counts, self.tokens
        return replace(
            self,
            counts=self.counts[:, index],
            layer_ids=tuple(self.layer_ids[i] for i in index),
            source_counts=None if source is None else source[:, :, index],
            tokens=None if tokens is None else TokenIds(tokens.ids[:, index], tokens.offsets),
        )

    def _block_starts(self, size: int) -> NDArray[np.int64]:
        change = np.zeros(self.num_steps, dtype=bool)
        change[0] = True
        for values in self.labels.values():
            change[1:] |= values[1:] != values[:-1]
        run_start = np.maximum.accumulate(np.where(change, np.arange(self.num_steps), 0))
        return np.flatnonzero((np.arange(self.num_steps) - run_start) % size == 0)


def _as_counts(counts: ArrayLike) -> NDArray[np.integer]:
    array = as_array(counts, "Counts")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise EquipoiseError(
            f"Counts have shape {array.shape}; expected (steps, layers, experts), none of them 0."
        )
    if not np.issubdtype(array.dtype, np.integer):
        if not np.isfinite(array).all():
            raise EquipoiseError("Counts hold NaN or infinity; expected whole numbers >= 0.")
        _check_size(array)
        whole = array.astype(np.int64)
        if not (whole == array).all():
            raise EquipoiseError("Counts hold fractions; expected whole numbers of assignments.")
        array = whole
    elif array.itemsize == 8:  # smaller types cannot be too large; reading a mapped file is slow
        _check_size(array)
    if array.dtype.kind == "i" and (array < 0).any():
        step, layer, expert = np.argwhere(array < 0)[0]
        raise EquipoiseError(
            f"Step {step}, layer row {layer}, expert {expert} has count "
            f"{array[step, layer, expert]}; expected numbers >= 0."
        )
    return array


def _as_source_counts(counts: ArrayLike) -> NDArray[np.integer]:
    array = as_array(counts, "Source counts")
    if array.ndim != 4 or 0 in array.shape:
        raise EquipoiseError(
            f"Source counts have shape {array.shape}; expected (steps, ranks, layers, experts)."
        )
    return _as_counts(array.reshape(-1, *array.shape[2:])).reshape(array.shape)


def _as_steps(step_ids: ArrayLike) -> NDArray[np.int64]:
    steps = as_ids(step_ids, "step_ids")
    if steps.ndim != 1 or not steps.size or steps.max() > MAX_WHOLE:
        raise EquipoiseError(f"step_ids is {brief(step_ids)}; expected a number for each step.")
    return steps.astype(np.int64, copy=False)


def _as_labels(labels: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.str_]]:
    if not isinstance(labels, Mapping):
        raise EquipoiseError(f"labels is {brief(labels)}; expected a name for each step, by label.")
    return {
        check_type("The name of a label", name, str): as_names(values, f"Label {brief(name)}")
        for name, values in labels.items()
    }


def _check_size(counts: NDArray[Any]) -> None:
    if not -MAX_COUNT < counts.min() <= counts.max() < MAX_COUNT:
        raise EquipoiseError(
            f"Counts go from {counts.min()} to {counts.max()}; expected numbers from 0 to 2^48."
        )


def _expect(name: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise EquipoiseError(f"{name} has size {got}; the trace needs {wanted}.")


def _sum_blocks(counts: NDArray[np.integer], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum the blocks of steps that begin at ``starts``.

    ``np.add.reduceat`` would first make a wider copy of the whole array.
    """
    blocks = np.split(counts, starts[1:])
    return np.stack([block.sum(axis=0, dtype=np.int64) for block in blocks])


def _resized(counts: NDArray[np.integer], num_experts: int) -> NDArray[np.integer]:
    """Cut the last axis to ``num_experts``, or pad it with zeros."""
    more = num_experts - counts.shape[-1]
    if more <= 0:
        return counts[..., :num_experts]
    return np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, more)])


def _rows_or(
    array: NDArray[np.integer], index: NDArray[np.int64], axis: int, fill: int
) -> NDArray[np.integer]:
    """Take rows of ``array`` along ``axis``, and ``fill`` where the index is -1."""
    taken = np.take(array, np.maximum(index, 0), axis=axis)
    if fill < 0:
        taken = taken.astype(np.result_type(taken.dtype, np.int8), copy=False)
    where = [slice(None)] * taken.ndim
    where[axis] = np.flatnonzero(index < 0)  # type: ignore[call-overload]
    taken[tuple(where)] = fill
    return taken


def _count_by_step(tokens: TokenIds, num_experts: int) -> NDArray[np.int64]:
    """Count choices per step, layer and expert, ``(T, L, E)``."""
    L = tokens.ids.shape[1]
    counts = np.zeros((len(tokens.offsets) - 1, L, num_experts), dtype=np.int64)
    base = np.arange(L)[None, :, None] * num_experts
    for step in range(len(counts)):
        ids = tokens.of_step(step).astype(np.int64)
        cell = (ids + base)[(ids >= 0) & (ids < num_experts)]
        counts[step] = np.bincount(cell, minlength=L * num_experts).reshape(L, num_experts)
    return counts


def _merge_sources(
    parts: Sequence[NDArray[np.integer] | None],
) -> NDArray[np.integer] | None:
    known = [p for p in parts if p is not None]
    if len(known) < len(parts) or len({p.shape[1] for p in known}) > 1:
        return None
    return np.concatenate(known)


def _merge_tokens(parts: Sequence[TokenIds | None]) -> TokenIds | None:
    known = [p for p in parts if p is not None]
    if len(known) < len(parts) or len({p.ids.shape[2] for p in known}) > 1:
        return None
    sizes = np.concatenate([np.diff(p.offsets) for p in known])
    ids = np.concatenate([p.ids for p in known])
    return TokenIds(ids, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
