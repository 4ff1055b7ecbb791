"""Recording of the routing of a Hugging Face transformers model while it runs.

Needs torch and transformers: ``pip install equipoise[capture]``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError
from equipoise.trace import Provenance, TokenIds, Trace

try:
    import torch
    from torch import nn
except ImportError as error:
    raise EquipoiseError(
        "Recording from a model needs torch and transformers; install equipoise[capture]."
    ) from error


@dataclass(frozen=True)
class Layout:
    """The way in which a family of models passes tokens to the routed experts of a layer.

    The recorder observes the experts, not the router, because the experts' input is what is
    computed, whatever the router did (groups, bias, hashing).

    Parameters
    ----------
    families
        Names of the model families, for messages.
    choices
        Argument of the experts module with the chosen expert ids, ``(tokens, K)``.
        The module states ``num_experts``; a choice outside ``[0, E)`` is none.
    """

    families: str
    choices: str


LAYOUTS = (
    Layout(
        "Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V2, DeepSeek-V3, GLM-4-MoE and others "
        "whose experts take top_k_index",
        "top_k_index",
    ),
    Layout("gpt-oss and others whose experts take router_indices", "router_indices"),
)


@dataclass(frozen=True)
class _MoeLayer:
    """One MoE layer of a model: its layer number, its experts, and the argument with the ids."""

    layer_id: int
    name: str
    experts: nn.Module
    num_experts: int
    choices: str
    position: int  # of the argument ``choices``, for calls without keywords

    def choices_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        chosen: torch.Tensor = (
            kwargs[self.choices] if self.choices in kwargs else args[self.position]
        )
        return chosen.detach().reshape(-1, chosen.shape[-1])


@dataclass
class _Forward:
    """The facts about the current forward pass."""

    num_tokens: int
    counted: torch.Tensor | None  # (tokens,) bool; None counts all
    phase: str
    domain: str
    choices: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # by layer id


@dataclass(frozen=True)
class _Step:
    """One recorded forward pass."""

    iteration: int
    phase: str
    domain: str
    counts: NDArray[np.int32]  # (L, E)
    num_tokens: int
    ids: NDArray[np.integer] | None  # (tokens, L, K)


class RoutingRecorder:
    """A recorder that counts the assignments of every expert while a transformers model runs.

    It is a context manager: hooks are set on entering and removed on leaving. They do not change
    what the model computes. Every forward pass of ``model`` inside the block is one
    iteration, numbered from 0, and one step of the trace::

        with RoutingRecorder(model) as recorder:
            with recorder.labelled(domain="code"):
                model.generate(**inputs)
        trace = recorder.trace()

    Counted are the routed experts only, never shared ones, and only real tokens: a 2-D
    ``attention_mask`` given to the model tells padding apart. Where the mask has another form
    (4-D masks of static caches), padding cannot be told apart and is counted; the trace says so.

    Steps are labelled ``phase``: ``decode`` when every sequence brings one new token, else
    ``prefill`` (so the checking pass of speculative decoding is prefill).

    Parameters
    ----------
    model
        Model of a layout in ``LAYOUTS``, run eagerly, because compiled graphs do not call hooks.
    token_ids
        Flag to keep every token's choices too: ``L K`` bytes per token, twice above 255 experts.
    iterations
        Range ``(START, STOP)``: only iterations ``START <= i < STOP`` are recorded.
    finished_ids
        Tokens that only ended sequences are fed in decode steps (end-of-text and padding tokens).
        ``generate`` keeps running such sequences until all have ended, with a mask that marks them
        as real. They are not counted.

    Raises
    ------
    EquipoiseError
        No MoE layer of a known layout; layers that differ in experts; a model whose experts are
        spread over processes; an iteration range that is not one. While the model runs: a forward
        pass in which a MoE layer did not call its experts, as replaced kernels do.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        token_ids: bool = False,
        iterations: tuple[int, int] | None = None,
        finished_ids: Collection[int] = (),
    ) -> None:
        check_iterations(iterations)
        _check_not_distributed(model)
        self.domain = ""
        self._model = model
        self._layers = _find_layers(model)
        self._parameters = tuple(inspect.signature(model.forward).parameters)
        self._token_ids = token_ids
        self._iterations = iterations
        self._finished_ids = torch.tensor(sorted(finished_ids), dtype=torch.long)
        self._handles: list[Any] = []
        self._iteration = 0
        self._current: _Forward | None = None
        self._steps: list[_Step] = []
        self._top_k: int | None = None
        self._unreadable_masks = 0

    @property
    def num_experts(self) -> int:
        """Number of routed experts of a layer, ``E``."""
        return self._layers[0].num_experts

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Decoder layer numbers of the MoE layers, ascending."""
        return tuple(layer.layer_id for layer in self._layers)

    @property
    def done(self) -> bool:
        """Whether the iteration range is complete, so that nothing more is recorded."""
        return self._iterations is not None and self._iteration >= self._iterations[1]

    def __enter__(self) -> Self:
        if self._handles:
            raise EquipoiseError("This recorder is already recording; leave its block first.")
        hook = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._handles = [hook, self._model.register_forward_hook(self._end)]
        for layer in self._layers:
            self._handles.append(
                layer.experts.register_forward_pre_hook(self._note(layer), with_kwargs=True)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._current = None

    @contextmanager
    def labelled(self, *, domain: str) -> Iterator[Self]:
        """Label the steps recorded inside the block with ``domain``."""
        before = self.domain
        self.domain = domain
        try:
            yield self
        finally:
            self.domain = before

    def trace(self) -> Trace:
        """Return what was recorded so far.

        Raises
        ------
        EquipoiseError
            No recorded forward pass, possibly because none was in the iteration range.
        """
        if not self._steps:
            raise EquipoiseError(self._why_empty())
        labels = {"phase": np.array([step.phase for step in self._steps])}
        if any(step.domain for step in self._steps):
            labels["domain"] = np.array([step.domain for step in self._steps])
        return Trace(
            counts=np.stack([step.counts for step in self._steps]),
            layer_ids=self.layer_ids,
            step_ids=np.array([step.iteration for step in self._steps], dtype=np.int64),
            top_k=self._top_k,
            tokens=self._tokens() if self._token_ids else None,
            labels=labels,
            provenance=Provenance("transformers", _model_name(self._model), self._notes()),
        )

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass: learn its shape, padding and phase."""
        self._current = None  # drop a pass that raised an error
        if self._in_range():
            given = dict(zip(self._parameters, args, strict=False)) | kwargs
            self._current = self._describe(given)

    def _in_range(self) -> bool:
        if self._iterations is None:
            return True
        start, stop = self._iterations
        return start <= self._iteration < stop

    def _describe(self, given: Mapping[str, Any]) -> _Forward:
        input_ids = given.get("input_ids")
        inputs = given.get("inputs_embeds") if input_ids is None else input_ids
        if inputs is None:
            raise EquipoiseError(
                f"{type(self._model).__name__} was called without input_ids or inputs_embeds; "
                "record the module that is given the tokens."
            )
        batch, length = inputs.shape[:2]
        counted = self._real_tokens(given.get("attention_mask"), batch, length)
        if length == 1 and input_ids is not None and len(self._finished_ids):
            running = ~torch.isin(input_ids[:, 0], self._finished_ids.to(input_ids.device))
            counted = running if counted is None else counted & running.to(counted.device)
        return _Forward(
            batch * length, counted, "decode" if length == 1 else "prefill", self.domain
        )

    def _real_tokens(self, mask: Any, batch: int, length: int) -> torch.Tensor | None:
        """Tell which new tokens are not padding, ``(batch * length,)``; ``None`` for all."""
        if mask is None:
            return None
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape[1] < length:
            self._unreadable_masks += 1
            return None
        # The mask covers the cached tokens too; the new ones are last.
        return (mask[:, -length:] != 0).expand(batch, length).reshape(-1)

    def _note(self, layer: _MoeLayer) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """Make the hook that keeps the choices given to one layer's experts."""

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._current is not None:
                # A copy: kernels may reuse the tensor. int16 holds every id (see _find_layers).
                chosen = layer.choices_of(args, kwargs).to(torch.int16, copy=True)
                self._current.choices.setdefault(layer.layer_id, []).append(chosen)

        return note

    def _end(self, *_: Any) -> None:
        """After a forward pass: convert the choices to counts."""
        if self._current is not None:
            self._steps.append(self._finish(self._current))
            self._current = None
        self._iteration += 1

    def _finish(self, forward: _Forward) -> _Step:
        layers = [self._gather(layer, forward) for layer in self._layers]
        widths = {ids.shape[1] for ids in layers} | ({self._top_k} if self._top_k else set())
        if len(widths) > 1:
            raise EquipoiseError(
                f"Layers choose different numbers of experts ({sorted(widths)}); "
                "expected one top-k for the whole model."
            )
        ids = np.stack(layers, axis=1)
        if forward.counted is not None:
            ids = ids[forward.counted.cpu().numpy()]
        self._top_k = ids.shape[2]
        none = self.num_experts
        ids = np.where((ids < 0) | (ids > none), none, ids).astype(np.min_scalar_type(none))
        return _Step(
            iteration=self._iteration,
            phase=forward.phase,
            domain=forward.domain,
            counts=_count(ids, self.num_experts),
            num_tokens=len(ids),
            ids=ids if self._token_ids else None,
        )

    def _gather(self, layer: _MoeLayer, forward: _Forward) -> NDArray[np.int16]:
        """Join the choices of one layer in the whole forward pass, ``(tokens, K)``."""
        parts = forward.choices.get(layer.layer_id)
        if parts is None:
            raise EquipoiseError(
                f"Layer {layer.layer_id} ({layer.name}) ran without calling its experts module, "
                "so its routing cannot be seen; load the model without replaced kernels."
            )
        chosen: NDArray[np.int16] = torch.cat(parts).cpu().numpy()
        if len(chosen) != forward.num_tokens:
            raise EquipoiseError(
                f"Layer {layer.layer_id} ({layer.name}) routed {len(chosen)} tokens in a forward "
                f"pass of {forward.num_tokens}; expected every token once."
            )
        return chosen

    def _tokens(self) -> TokenIds:
        ids = [step.ids for step in self._steps if step.ids is not None]
        sizes = [step.num_tokens for step in self._steps]
        return TokenIds(np.concatenate(ids), np.cumsum([0, *sizes], dtype=np.int64))

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._iterations is not None and not self.done:
            notes.append(
                f"The run ended after iteration {self._iteration - 1}, before the end of the range "
                f"{self._iterations[0]}-{self._iterations[1]}."
            )
        if self._unreadable_masks:
            notes.append(
                f"{self._unreadable_masks} forward passes had an attention mask that is not 2-D; "
                "their padding, if any, is counted."
            )
        return tuple(notes)

    def _why_empty(self) -> str:
        if not self._iteration:
            return (
                f"No forward pass of {type(self._model).__name__} was recorded; call the model "
                "that was given to the recorder, inside its `with` block."
            )
        assert self._iterations is not None  # else every pass is recorded
        return (
            f"The run had {self._iteration} iterations (0 to {self._iteration - 1}) and never "
            f"reached the range {self._iterations[0]}-{self._iterations[1]}; "
            "start the range earlier or run longer."
        )


def _find_layers(model: nn.Module) -> list[_MoeLayer]:
    """Find every MoE layer of a known layout, by decoder layer number."""
    found: dict[int, _MoeLayer] = {}
    for name, module in model.named_modules():
        layer = _as_layer(name, module)
        if layer is None:
            continue
        if layer.layer_id in found:
            raise EquipoiseError(
                f"{found[layer.layer_id].name} and {name} are both layer {layer.layer_id}; "
                "give the recorder the one part of the model whose experts you serve."
            )
        found[layer.layer_id] = layer
    if not found:
        known = "; ".join(layout.families for layout in LAYOUTS)
        raise EquipoiseError(
            f"No mixture-of-experts layer of a known layout in {type(model).__name__}. "
            f"Known layouts: {known}."
        )
    layers = [found[layer_id] for layer_id in sorted(found)]
    for layer in layers:
        if layer.num_experts != layers[0].num_experts:
            raise EquipoiseError(
                f"Layer {layer.layer_id} has {layer.num_experts} experts, layer "
                f"{layers[0].layer_id} has {layers[0].num_experts}; expected the same in all."
            )
    return layers


def _as_layer(name: str, module: nn.Module) -> _MoeLayer | None:
    """Return the MoE layer whose experts this module is, if any."""
    num_experts = getattr(module, "num_experts", None)
    layer_id = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)  # the first index: the decoder layer
    if not isinstance(num_experts, int) or layer_id is None:
        return None
    if num_experts > np.iinfo(np.int16).max:
        raise EquipoiseError(f"{name} has {num_experts} experts; expected at most 32767.")
    parameters = list(inspect.signature(module.forward).parameters)
    for layout in LAYOUTS:
        if layout.choices in parameters:
            position = parameters.index(layout.choices)
            return _MoeLayer(int(layer_id[1]), name, module, num_experts, layout.choices, position)
    return None


def _count(ids: NDArray[np.integer], num_experts: int) -> NDArray[np.int32]:
    """Count assignments ``(L, E)`` from ids ``(tokens, L, K)``; id ``E`` is not counted."""
    num_layers, width = ids.shape[1], num_experts + 1
    bins = ids.astype(np.int64) + width * np.arange(num_layers)[:, None]
    counts = np.bincount(bins.ravel(), minlength=num_layers * width)
    return counts.reshape(num_layers, width)[:, :num_experts].astype(np.int32)


def check_iterations(iterations: tuple[int, int] | None) -> None:
    """Raise ``EquipoiseError`` unless ``iterations`` is ``None`` or a range of at least one."""
    if iterations is not None and not 0 <= iterations[0] < iterations[1]:
        raise EquipoiseError(
            f"Iterations {iterations[0]}-{iterations[1]} are not a range; "
            "expected START-STOP with 0 <= START < STOP."
        )


def _check_not_distributed(model: nn.Module) -> None:
    """Refuse expert parallelism, where a process sees only its own experts' renumbered ids."""
    config = getattr(getattr(model, "config", None), "distributed_config", None)
    ep_size = getattr(config, "ep_size", None) or 1
    if ep_size > 1 or getattr(config, "enable_expert_parallel", False):
        raise EquipoiseError(
            "The model's experts are spread over processes, so no process sees all choices; "
            "load it without expert parallelism to record its routing."
        )


def _model_name(model: nn.Module) -> str:
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    return str(path) or type(model).__name__
