"""Descriptions of file formats (how to recognise, read, check and write them) and of launches.

Everything about an engine is in its own folder; ``registry`` lists the folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equipoise.errors import EquipoiseError, Message, marked
from equipoise.placement import Placement
from equipoise.showing import in_short
from equipoise.trace import Trace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from equipoise.engines.transformers.config import ModelConfig
    from equipoise.report.monitor.look import Source

Progress = Callable[[int, int], None]
"""Function that is called with (done, total), in bytes or files, while a long file is read."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def given(options: DataclassInstance) -> frozenset[str]:
    """Return the names of the fields that differ from their default."""
    return frozenset(f.name for f in fields(options) if getattr(options, f.name) != f.default)


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Facts that a recording may not contain. ``None`` means not given.

    ``num_experts`` and ``layer_ids`` apply to every format: the recording is fitted to them.

    Parameters
    ----------
    num_experts
        Number of experts ``E`` of the model. Experts that the recording lacks are added without
        load.
    drop_experts
        Permission to leave out assignments to ids from ``num_experts`` on, which have no weights.
    layer_ids
        Layer numbers of the model's MoE layers. They number the rows of a file without layer
        numbers. Layers that the recording lacks are added without load; others are left out.
    first_axis
        Meaning of the first axis of bare arrays of counts ``(n, L, E)``: ``step`` or ``rank``.
    placement
        Map that the recorded run used, to convert counts per slot to counts per expert.
    window_tokens
        Number of tokens per step, for recordings of single tokens.
    top_k
        Number of choices of a token, ``K``, for choices without their shape.
    columns
        Names of a token table's columns, by our names, such as ``{"experts": "topk_ids"}``. A file
        for which they are given is read as a token table.
    iterations
        Range of step ids to read: the first, and the one after the last.
    allow_pickle
        Permission to read formats that need a (restricted) unpickler.
    """

    num_experts: int | None = None
    drop_experts: bool = False
    layer_ids: tuple[int, ...] | None = None
    first_axis: Literal["step", "rank"] | None = None
    placement: Placement | None = None
    window_tokens: int | None = None
    top_k: int | None = None
    columns: dict[str, str] | None = None
    iterations: tuple[int, int] | None = None
    allow_pickle: bool = False

    __repr__ = in_short


ANY_FORMAT = frozenset({"num_experts", "drop_experts", "layer_ids"})
"""Fields of ``TraceOptions`` that every format takes; a trace is fitted to them after reading."""


@dataclass(frozen=True, kw_only=True)
class TraceFormat:
    """A format of recordings.

    Parameters
    ----------
    name
        Short, unique name, as users type it (``trtllm``).
    summary
        Line for the documentation and ``--help``.
    matches
        Function that tells by content whether a file or folder has this format. It is fast, and
        never raises an error for unknown content.
    read
        Function that reads a recording. It raises ``FormatError`` with the file's name.
    options
        Names of the ``TraceOptions`` that the reader uses. Others are refused if they are set,
        except those that every format takes (``ANY_FORMAT``).
    complete
        Flag that files were checked when they were written, so that no layers or experts are left
        out as padding.
    write
        Function that writes a trace atomically; ``None`` if only the engine writes this format.
    folder
        Flag that the output is a folder.
    losses
        Function that lists, one sentence each, what the file cannot express of a trace.
    watch
        Function that follows a growing file, given the number of ranks if it is known; ``None`` if
        the whole recording is read again.
    """

    name: str
    summary: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, TraceOptions, Progress], Trace]
    options: frozenset[str]
    complete: bool = False
    write: Callable[[Trace, Path], None] | None = None
    folder: bool = False
    losses: Callable[[Trace], list[str]] = lambda _trace: []
    watch: Callable[[Path, int | None], Source] | None = None

    def own(self, options: TraceOptions) -> TraceOptions:
        """Return the options without those that this reader does not use."""
        unused: dict[str, Any] = dict.fromkeys(given(options) - self.options - {"drop_experts"})
        return replace(options, **unused)

    def check_options(self, options: TraceOptions) -> None:
        """Refuse options that this format would ignore."""
        unused = sorted(given(options) - self.options - ANY_FORMAT)
        if unused:
            usable = ", ".join(sorted(self.options | ANY_FORMAT))
            raise EquipoiseError(
                f"The format {self.name} does not use {', '.join(unused)}; it can use: {usable}."
            )


class Severity(Enum):
    """The severity of a finding."""

    ERROR = "error"  # the engine refuses the map, or gives wrong results with it
    WARNING = "warning"  # the engine accepts it; it is wasteful or fragile, or the reader guessed
    NOTE = "note"  # no defect: says what the engine does with such maps


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding about a map: where it is, what is wrong, what to do.

    Parameters
    ----------
    code
        Code of the rule in ``equipoise explain maps``, such as ``T4``.
    message, remedy
        Sentences on what was found, and on what to do.
    severity
        Severity, which says whether the engine can use the map.
    layer, slot, expert
        Place of the defect; the layer is the file's own key.
    count
        Number of defects that this finding stands for.
    readable
        Flag that the placement is certain in spite of the defect. The file can then be read, with a
        warning that the engine would refuse it.
    """

    code: str
    message: str
    remedy: str
    severity: Severity = Severity.ERROR
    layer: int | str | None = None
    slot: int | None = None
    expert: int | None = None
    count: int = 1
    readable: bool = False

    @property
    def text(self) -> Message:
        """Message and remedy together."""
        return Message(f"{marked(self.message)} {marked(self.remedy)}")


@dataclass(frozen=True, kw_only=True)
class MapContext:
    """Facts of the deployment that a map file may not contain. ``None`` means not known.

    Parameters
    ----------
    num_ranks
        Number of ranks ``R``, the expert-parallel size.
    num_experts
        Number of logical experts, ``E``.
    layer_ids
        Layer numbers of the model's MoE layers (``3..60`` for DeepSeek-V3).
    num_hidden_layers
        Number of decoder layers, including dense ones (61 for DeepSeek-V3). SGLang's maps have a
        row for each.
    num_redundant
        Number of redundant slots ``S - E`` that the engine will be configured with.
    model_key
        Name of the model whose map to read from a file with the maps of several models.
    planner, trace
        Planner of the placement (``Plan.planner``) and its recording, which our own format records.
    """

    num_ranks: int | None = None
    num_experts: int | None = None
    layer_ids: tuple[int, ...] | None = None
    num_hidden_layers: int | None = None
    num_redundant: int | None = None
    model_key: str | None = None
    planner: str | None = None
    trace: str | None = None

    __repr__ = in_short


NOTHING_KNOWN = MapContext()
"""A context without any facts."""


@dataclass(frozen=True, kw_only=True)
class RawMap:
    """The content of a map file before it is checked.

    Parameters
    ----------
    rows
        Content of the slots, one list for each layer, of any type.
    layer_keys
        Keys of the rows in the file, in row order.
    num_ranks, num_experts, num_slots
        Numbers that the file itself states, else ``None``.
    findings
        Structural defects found while parsing (unknown keys, wrong types, duplicate layers).
    notes
        Notes for the user on what was found, other than defects.
    models
        Map of each model, if the file is keyed by model; then it has no rows itself.
    """

    rows: Sequence[Sequence[Any]] = ()
    layer_keys: Sequence[int | str] = ()
    num_ranks: int | None = None
    num_experts: int | None = None
    num_slots: int | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    models: Mapping[str, RawMap] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MapFormat:
    """A format of placement files.

    Parameters
    ----------
    name
        Short, unique name, as users type it (``trtllm``, ``vllm-49572``).
    summary
        Line for the documentation and ``--help``.
    matches
        Function that tells by content whether a file has this format. It never raises an error.
    parse
        Function that returns the raw content; it raises ``FormatError`` if that is impossible.
    check
        Function that returns every defect in one run.
    to_placement
        Function that makes the placement of a map without errors.
    suffixes
        File name endings of this format, the usual one first; empty if it is not written here.
    write
        Function that writes a placement atomically; ``None`` if only another program writes it.
    losses
        Function that lists, one sentence each, what the file cannot express of a placement.
    decoder_rows
        Flag that the file has a row for every decoder layer, so that writing needs
        ``num_hidden_layers``.
    by_model
        Flag that a file may hold the maps of several models.
    signature
        Pattern of text that only files of this format have, even damaged ones.
    version
        Only version of the engine that reads it; ``None`` for every version that reads maps.
    """

    name: str
    summary: str
    matches: Callable[[Path], bool]
    parse: Callable[[Path], RawMap]
    check: Callable[[RawMap, MapContext], list[Finding]]
    to_placement: Callable[[RawMap, MapContext], Placement]
    suffixes: tuple[str, ...] = ()
    write: Callable[[Placement, Path, MapContext], None] | None = None
    losses: Callable[[Placement], list[str]] = lambda _placement: []
    decoder_rows: bool = False
    by_model: bool = False
    signature: str | None = None
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Options that determine the launch flags in addition to the map. ``None`` is the default.

    Parameters
    ----------
    version
        Release of the engine as people write it, or a build from ``equipoise explain launch``.
    model
        Configuration of the model, for notes on its architecture, quantisation and speculative
        layers (all engines).
    architecture
        First of the model's ``architectures`` (TensorRT-LLM), checked against those that the engine
        balances; the model's own if ``None``.
    backend
        MoE backend to select (TensorRT-LLM).
    a2a_backend
        All-to-all backend (SGLang, vLLM), such as ``none``, ``deepep``, ``mooncake``,
        ``deepep_low_latency`` or ``allgather_reducescatter``.
    dispatch
        Value of ``--ep-dispatch-algorithm`` (SGLang): ``static``, ``dynamic`` or ``lp``; one that
        suits the backend if ``None``.
    window_size, step_interval
        Number of steps recorded before a rearrangement, and between two (vLLM).
    use_async
        Flag to move experts in the background (vLLM).
    """

    version: str | None = None
    model: ModelConfig | None = None
    architecture: str | None = None
    backend: str | None = None
    a2a_backend: str | None = None
    dispatch: str | None = None
    window_size: int | None = None
    step_interval: int | None = None
    use_async: bool | None = None


ENGINE_DEFAULTS = LaunchOptions()
"""Launch options without any setting."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The flags, variables and files that start an engine with a map.

    Parameters
    ----------
    engine, version
        Engine and release that the flags are for.
    command
        Arguments to add to the engine's start command, in order.
    environment
        Environment variables to set.
    files
        Names and contents of configuration files to write next to the map.
    notes
        Notes that the operator must know.
    """

    engine: str
    version: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The launch flags of one engine.

    Parameters
    ----------
    options
        Names of the ``LaunchOptions`` that determine its flags. Others are refused if they are set,
        except the model, which every engine takes.
    launch
        Function that makes the flags for a placement and the path of its map, as the engine's
        processes will see it. It raises ``EquipoiseError`` for anything that the engine would
        ignore in silence or fail on.
    versions
        Releases and builds whose flags are known, the default first.
    """

    options: frozenset[str]
    launch: Callable[[Placement, str, LaunchOptions], Launch]
    versions: tuple[str, ...]
