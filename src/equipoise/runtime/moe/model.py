"""A transformers model whose routed experts are spread over the ranks of a process group.

The rest of the model is on every rank, and each rank serves its own sequences: data-parallel
attention and expert-parallel experts, the usual layout of wide expert parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise.checks import check_count
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.runtime.members.agreement import ProcessGroup, agree
from equipoise.runtime.moe.assignment import TokenAssignment
from equipoise.runtime.moe.checkpoint import Checkpoint, moe_blocks
from equipoise.runtime.moe.layer import ExpertFunction, ExpertParallelLayer
from equipoise.runtime.moe.recorder import LoadRecorder
from equipoise.topology import Topology


class ExpertParallelModel:
    """A causal language model and its expert-parallel layers, run in step with all ranks.

    ``load_model`` makes one. All ranks run the same number of forward passes; a rank with nothing
    to serve gives an empty batch.

    Parameters
    ----------
    model
        Causal language model of transformers, whose routed experts are ``layers``.
    layers
        Expert-parallel layers in ascending order, all of one process group.
    """

    def __init__(self, model: nn.Module, layers: Sequence[ExpertParallelLayer]) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.recorder: LoadRecorder | None = None

    @property
    def group(self) -> ProcessGroup:
        """Process group of the ranks that serve together."""
        return self.layers[0].group

    def replace(self, row: int, layer: ExpertParallelLayer) -> None:
        """Replace the layer of a row by another."""
        old = self.layers[row]
        place = next(name for name, module in self.model.named_modules() if module is old)
        self.model.set_submodule(place, layer)
        self.layers = (*self.layers[:row], layer, *self.layers[row + 1 :])

    @property
    def placement(self) -> Placement:
        """Current placement of all layers."""
        first = self.layers[0].placement
        return Placement(
            np.concatenate([layer.placement.slots for layer in self.layers]),
            num_ranks=first.num_ranks,
            num_experts=first.num_experts,
            layer_ids=[layer.layer_id for layer in self.layers],
        )

    def record(self, *, window: int = 1000, iterations: tuple[int, int] | None = None) -> None:
        """Begin to record loads in a new ``LoadRecorder``."""
        first = self.layers[0]
        self._listen(
            LoadRecorder(
                [layer.layer_id for layer in self.layers],
                first.placement.num_experts,
                window=window,
                iterations=iterations,
                device=next(iter(first.weights.values())).device,
            )
        )

    def stop_recording(self) -> None:
        """Drop the recorder."""
        self._listen(None)

    def _listen(self, recorder: LoadRecorder | None) -> None:
        self.recorder = recorder
        for layer in self.layers:
            layer.recorder = recorder

    @torch.no_grad()
    def step(self, input_ids: Tensor, attention_mask: Tensor, cache: Any = None) -> tuple[Any, Any]:
        """Run one forward pass with all ranks.

        Parameters
        ----------
        input_ids
            New tokens of this rank's sequences, ``(B, T)``; ``B`` may be 0.
        attention_mask
            Mask of all tokens, those in the cache first, ``(B, past + T)``: 1 for tokens, 0 for
            padding, which is on the left.
        cache
            Cache that the last step of these sequences returned.

        Returns
        -------
        The logits of each sequence's last token, ``(B, V)``, and the cache.
        """
        idle = not len(input_ids)
        if idle:  # run a token that no expert sees, so that all collectives take place
            input_ids, attention_mask = input_ids.new_zeros((1, 1)), input_ids.new_ones((1, 1))
        new = input_ids.shape[1]
        real = (attention_mask[:, -new:] != 0).reshape(-1) & (not idle)
        if self.recorder is not None:
            self.recorder.begin("prefill" if new > 1 else "decode")
        with self._only(real):
            out = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:],
                past_key_values=cache,
                use_cache=not idle,
            )
        return out.logits[:0, -1] if idle else out.logits[:, -1], out.past_key_values

    @contextmanager
    def _only(self, real: Tensor) -> Iterator[None]:
        """Let experts see only the tokens that are true in ``real``."""
        for layer in self.layers:
            layer.real = real
        try:
            yield
        finally:
            for layer in self.layers:
                layer.real = None

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Decode greedily, the same number of tokens on every rank; no sequence ends early.

        Parameters
        ----------
        input_ids, attention_mask
            Prompts of this rank, padded on the left, ``(B, T)``; ``B`` may be 0, and both may
            differ between ranks.
        max_new_tokens
            Number of tokens to generate.

        Returns
        -------
        The tokens ``(B, max_new_tokens)``, and the logits each was chosen from
        ``(B, max_new_tokens, V)``.
        """
        check_count("max_new_tokens", max_new_tokens)
        agree("max_new_tokens", max_new_tokens, self.group)
        tokens, logits = [], []
        new, cache = input_ids, None
        for _ in range(max_new_tokens):
            scores, cache = self.step(new, attention_mask, cache)
            new = scores.argmax(dim=-1, keepdim=True)
            attention_mask = torch.cat([attention_mask, torch.ones_like(new)], dim=1)
            tokens.append(new)
            logits.append(scores)
        return torch.cat(tokens, dim=1), torch.stack(logits, dim=1)


def load_model(
    folder: str | Path,
    placement: Placement,
    *,
    dispatch: str | Dispatcher | TokenAssignment = "even",
    topology: Topology | None = None,
    group: ProcessGroup = None,
    max_num_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ExpertParallelModel:
    """Load a saved model, with only those routed experts that this rank's slots hold.

    Every rank of the process group has to call it.

    Parameters
    ----------
    folder, dtype, device
        See ``Checkpoint``.
    placement
        Placement of the model's MoE layers.
    dispatch, topology, group, max_num_tokens
        See ``ExpertParallelLayer``.

    Raises
    ------
    EquipoiseError
        The model cannot be served, see ``Checkpoint``, or the placement is for other layers,
        experts or ranks.
    FormatError
        Files are missing or damaged, or lack a tensor.
    """
    return load_from(
        Checkpoint(folder, dtype=dtype, device=device),
        placement,
        dispatch=dispatch,
        topology=topology,
        group=group,
        max_num_tokens=max_num_tokens,
    )


def load_from(
    checkpoint: Checkpoint,
    placement: Placement,
    *,
    compute: ExpertFunction | None = None,
    dispatch: str | Dispatcher | TokenAssignment = "even",
    topology: Topology | None = None,
    group: ProcessGroup = None,
    max_num_tokens: int | None = None,
) -> ExpertParallelModel:
    """Load a model from an open checkpoint: see ``load_model`` and ``ExpertParallelLayer``.

    Without ``compute`` the experts compute what those of the model do.
    """
    _check_fits(placement, checkpoint, dist.get_world_size(group))
    body = checkpoint.read_rest()
    here = placement.by_rank[:, dist.get_rank(group)].tolist()
    layers = [
        ExpertParallelLayer(
            placement.rows([row]),
            checkpoint.read_slots(layer_id, here[row]),
            compute=compute or checkpoint.compute,
            dispatch=dispatch,
            topology=topology,
            group=group,
            max_num_tokens=max_num_tokens,
        )
        for row, layer_id in enumerate(placement.layer_ids)
    ]
    return assemble(body, layers)


def assemble(body: nn.Module, layers: Sequence[ExpertParallelLayer]) -> ExpertParallelModel:
    """Put layers in the places that ``Checkpoint.read_rest`` has left empty for them."""
    for block, layer in zip(moe_blocks(body).values(), layers, strict=True):
        block.experts = layer
    return ExpertParallelModel(body, layers)


def _check_fits(placement: Placement, checkpoint: Checkpoint, num_ranks: int) -> None:
    layer_ids, num_experts = checkpoint.layer_ids, checkpoint.num_experts
    if placement.layer_ids != layer_ids or placement.num_experts != num_experts:
        raise EquipoiseError(
            f"The placement has layers {format_ids(placement.layer_ids)} of "
            f"{placement.num_experts} experts, the model has layers {format_ids(layer_ids)} of "
            f"{num_experts}; make a placement for this model."
        )
    if placement.num_ranks != num_ranks:
        raise EquipoiseError(
            f"The placement is for {placement.num_ranks} ranks, the process group has {num_ranks}; "
            f"make a placement for {num_ranks} ranks."
        )
