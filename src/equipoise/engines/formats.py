"""What a file format is to us: how to recognise it, read it, check it and write it; and a launch.

One folder an engine holds what belongs to that engine; ``registry`` lists it all.
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
"""Called with (done, total), in bytes or files, while a long file is read."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def given(options: DataclassInstance) -> frozenset[str]:
    """The names of the fields that were set to something other than their default."""
    return frozenset(f.name for f in fields(options) if getattr(options, f.name) != f.default)


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """What a recording may leave unsaid. ``None`` means not given.

    ``num_experts`` and ``layer_ids`` serve every format: what a file states is fitted to them.

    Parameters
    ----------
    num_experts
        ``E``: stands for what the file does not state; other experts are added without load.
    drop_experts
        Leave out what was assigned to ids from ``num_experts`` on: experts without weights.
    layer_ids
        The model's numbers of the MoE layers: numbers the rows of a file that has rows only;
        layers that the recording does not have are added without load, others are left out.
    first_axis
        What the first axis of bare arrays of counts ``(n, L, E)`` is: ``step`` or ``rank``.
    placement
        The map the recorded run used: counts per slot are folded to experts with it.
    window_tokens
        Tokens per step, for recordings of single tokens.
    top_k
        ``K``, choices of a token: for choices that come without their shape.
    columns
        What a table of tokens calls its columns: our name to the table's, such as
        ``{"experts": "topk_ids"}``. A table that is named so is read as one of tokens.
    iterations
        First and past-the-last step id to read.
    allow_pickle
        Read formats that only a (restricted) unpickler can read.
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
"""The ``TraceOptions`` that every format takes: a trace is fitted to them once it is read."""


@dataclass(frozen=True, kw_only=True)
class TraceFormat:
    """One kind of recording.

    Parameters
    ----------
    name
        Short and unique, as users type it (``trtllm``).
    summary
        One line for the documentation and ``--help``.
    matches
        Whether a file or directory is of this kind, decided by content; cheap; never raises for
        content it does not know.
    read
        Reads it. Raises ``FormatError`` with the file's name.
    options
        Names of the ``TraceOptions`` this reader uses; any other that is set is refused, unless
        every format takes it (``ANY_FORMAT``).
    complete
        Whether its files were checked when they were written, so that none of their layers and
        experts is left out as padding.
    write
        Writes a trace, atomically; ``None`` where only the engine writes.
    folder
        Whether what it writes is a folder.
    losses
        What the written file cannot say of a trace, one sentence each.
    watch
        Follows a file while it grows, given the number of ranks if the user knows it; ``None``
        where a recording is read again as a whole.
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
        """The options as this reader sees them, without those it does not use."""
        unused: dict[str, Any] = dict.fromkeys(given(options) - self.options - {"drop_experts"})
        return replace(options, **unused)

    def check_options(self, options: TraceOptions) -> None:
        """Refuse options this format would ignore."""
        unused = sorted(given(options) - self.options - ANY_FORMAT)
        if unused:
            usable = ", ".join(sorted(self.options | ANY_FORMAT))
            raise EquipoiseError(
                f"The format {self.name} does not use {', '.join(unused)}; it can use: {usable}."
            )


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"  # the engine refuses the map, or answers wrongly with it
    WARNING = "warning"  # the engine takes it; wasteful, fragile, or a guess of the reader
    NOTE = "note"  # no defect: what the engine does with any such map


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One defect of a map: where it is, what is wrong, what to do.

    Parameters
    ----------
    code
        The rule in ``equipoise explain maps`` (``T4``).
    message, remedy
        What was found, and what to do.
    severity
        Whether the engine can use the map.
    layer, slot, expert
        Where it is; the layer is the file's own key.
    count
        How many defects this one stands for.
    readable
        Whether the placement is certain all the same: the file is read, and a warning says what
        the engine would refuse.
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
        """What was found, and what to do."""
        return Message(f"{marked(self.message)} {marked(self.remedy)}")


@dataclass(frozen=True, kw_only=True)
class MapContext:
    """What a map file does not say, and the deployment does. ``None`` means not known.

    Parameters
    ----------
    num_ranks
        ``R``, the expert-parallel size.
    num_experts
        ``E``.
    layer_ids
        The model's numbers of its MoE layers (``3..60`` for DeepSeek-V3).
    num_hidden_layers
        All decoder layers, dense ones included (61 for DeepSeek-V3); SGLang maps have a row each.
    num_redundant
        ``S - E`` as the engine will be configured.
    model_key
        The model whose map to read, where a file holds the maps of several.
    planner, trace
        What made the placement (``Plan.planner``), and from which recording; our own format
        records it.
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
"""The context of a caller who gives none."""


@dataclass(frozen=True, kw_only=True)
class RawMap:
    """A map file as found, before anything is believed.

    Parameters
    ----------
    rows
        One list of whatever stands in the slots per layer.
    layer_keys
        The file's own key of each row, in row order.
    num_ranks, num_experts, num_slots
        What the file itself states, else ``None``.
    findings
        Structural defects met on the way (unknown keys, wrong types, duplicate layers).
    notes
        What was found that is not a defect, for the user.
    models
        The map of each model, where the file is keyed by model; it then has no rows of its own.
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
    """One kind of placement file.

    Parameters
    ----------
    name
        Short and unique, as users type it (``trtllm``, ``vllm-49572``).
    summary
        One line for the documentation and ``--help``.
    suffixes
        File name endings this format may have; the first is the usual one. None if it is not
        written here.
    matches
        Whether a file is of this kind, decided by content; never raises.
    parse
        The file as found; raises ``FormatError`` where nothing can be made of it.
    check
        Every defect that this format's strict validator knows, all of them in one run.
    to_placement
        The placement of a map without errors.
    write
        Writes a placement, atomically; ``None`` where only another program writes.
    losses
        What the written file will not say of this placement, one sentence each.
    decoder_rows
        Whether the file has a row for every decoder layer, so that writing it needs
        ``num_hidden_layers``.
    by_model
        Whether a file may hold the maps of several models.
    signature
        A pattern of text that only files of this kind have, damaged ones too.
    version
        The only version of the engine that reads it; ``None``: every one that reads maps.
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
    """What decides the flags besides the map. ``None`` means the engine's default.

    Parameters
    ----------
    version
        The engine's release as people write it, or a build listed in ``equipoise explain launch``.
    model
        The model's configuration, from which notes on its architecture, its quantisation and its
        speculative layers are made; any engine.
    architecture
        TensorRT-LLM: the first of the model's ``architectures``, checked against what the engine
        balances; that of the model if ``None``.
    backend
        TensorRT-LLM: the MoE backend to select.
    a2a_backend
        SGLang, vLLM: the all-to-all backend, such as ``none``, ``deepep``, ``mooncake`` and
        ``deepep_low_latency``, ``allgather_reducescatter``.
    dispatch
        SGLang: ``--ep-dispatch-algorithm``, one of ``static``, ``dynamic`` and ``lp``; what suits
        the backend if ``None``.
    window_size, step_interval
        vLLM: steps recorded before a rearrangement, and steps between two.
    use_async
        vLLM: whether experts move in the background.
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
"""The options of a caller who gives none."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start an engine with a map.

    Parameters
    ----------
    engine, version
        The engine and the release the flags are for.
    command
        Arguments to add to the engine's own start command, in order.
    environment
        Variables to set.
    files
        Configuration files to write next to the map: name to content.
    notes
        What the operator must know before relying on it.
    """

    engine: str
    version: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """How one engine is started.

    Parameters
    ----------
    options
        Names of the ``LaunchOptions`` that decide its flags; any other that is set is refused, but
        for the model, which every engine has.
    launch
        The flags for a placement whose map has a path, as the engine's processes will see it.
        Raises ``EquipoiseError`` for whatever the engine would ignore in silence or fail on.
    versions
        Releases and builds whose flags are known, the default first.
    """

    options: frozenset[str]
    launch: Callable[[Placement, str, LaunchOptions], Launch]
    versions: tuple[str, ...]
