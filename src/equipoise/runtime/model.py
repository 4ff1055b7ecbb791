"""A transformers model whose routed experts are spread over the ranks of a process group.

Everything else of the model is on every rank, which serves its own sequences: data-parallel
attention, expert-parallel experts, the usual layout of wide expert parallelism.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from equipoise.balance import check_count
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError, FormatError
from equipoise.layers import format_ids
from equipoise.placement import Placement
from equipoise.runtime.agreement import Group, agree
from equipoise.runtime.layer import ExpertParallelLayer, one_layer
from equipoise.runtime.recorder import LoadRecorder
from equipoise.topology import Topology


class ExpertParallelModel:
    """A causal language model and its expert-parallel layers, run in step with all ranks.

    ``load_model`` makes one. Every rank runs as many forward passes as every other; a rank with
    nothing to serve gives an empty batch.

    Parameters
    ----------
    model
        Called as transformers' causal language models are; its routed experts are ``layers``.
    layers
        By ascending layer number, all of one group.
    """

    def __init__(self, model: nn.Module, layers: Sequence[ExpertParallelLayer]) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.recorder: LoadRecorder | None = None

    @property
    def group(self) -> Group:
        """The ranks that serve together."""
        return self.layers[0].group

    @property
    def placement(self) -> Placement:
        """Where experts are now, all layers."""
        first = self.layers[0].placement
        return Placement(
            np.concatenate([layer.placement.slots for layer in self.layers]),
            num_ranks=first.num_ranks,
            num_experts=first.num_experts,
            layer_ids=[layer.layer_id for layer in self.layers],
        )

    def record(self, *, window: int = 1000, iterations: tuple[int, int] | None = None) -> None:
        """Begin to record what is routed, anew: see ``LoadRecorder``."""
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
        """One forward pass, with all ranks.

        Parameters
        ----------
        input_ids
            The new tokens of this rank's sequences, ``(B, T)``; ``B`` may be 0.
        attention_mask
            1 for tokens, 0 for padding, which is on the left; those in the cache come first,
            ``(B, past + T)``.
        cache
            What the last step of these sequences answered.

        Returns
        -------
        The logits of each sequence's last token, ``(B, V)``, and the cache.
        """
        idle = not len(input_ids)
        if idle:  # the model runs a token that no expert sees, so that all collectives take place
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
        """Let experts see these tokens only."""
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
        """Decode greedily, as many tokens on every rank; nothing ends a sequence early.

        Parameters
        ----------
        input_ids, attention_mask
            This rank's prompts, padded on the left, ``(B, T)``; ``B`` may be 0, and ``B`` and
            ``T`` may be others on other ranks.
        max_new_tokens
            Tokens to generate.

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
    dispatch: str | Dispatcher = "even",
    topology: Topology | None = None,
    group: Group = None,
    max_num_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ExpertParallelModel:
    """Load a saved Qwen2-MoE model, of the routed experts only those in this rank's slots.

    Every rank of the group has to call it.

    Parameters
    ----------
    folder
        With ``config.json`` and ``model.safetensors``, as ``save_pretrained`` writes them.
        Nothing is downloaded and no code from the folder is run.
    placement
        Of the model's MoE layers.
    dispatch, topology, group, max_num_tokens
        See ``ExpertParallelLayer``.
    dtype
        Of weights and computation.

    Raises
    ------
    EquipoiseError
        A model of another family or activation, a placement of other layers, experts or ranks.
    FormatError
        Files that are missing, damaged or lack a tensor.
    """
    path = Path(folder)
    model = _skeleton(path, dtype)
    blocks = {i: layer.mlp for i, layer in enumerate(model.model.layers) if _is_moe(layer.mlp)}
    _check_fits(placement, tuple(blocks), model.config.num_experts, dist.get_world_size(group))
    here = placement.by_rank[:, dist.get_rank(group)]
    slots, rest = _read(path / "model.safetensors", blocks, here, dtype, device)
    for row, block in enumerate(blocks.values()):
        block.experts = ExpertParallelLayer(
            one_layer(placement, row),
            slots[row],
            dispatch=dispatch,
            topology=topology,
            group=group,
            max_num_tokens=max_num_tokens,
        )
    _fill(model, rest)
    return ExpertParallelModel(model.eval(), [block.experts for block in blocks.values()])


def _skeleton(path: Path, dtype: torch.dtype) -> Any:
    """The model without weights, and with none of its memory taken."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise EquipoiseError(
            "Loading a model needs transformers; install equipoise[capture]."
        ) from error
    try:
        family = json.loads((path / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise FormatError(f"{path / 'config.json'} cannot be read: {error}.") from error
    if family != "qwen2_moe":
        raise EquipoiseError(f"{path} holds a model of type {family!r}; expected qwen2_moe.")
    config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    if config.hidden_act != "silu":
        raise EquipoiseError(f"{path} has activation {config.hidden_act!r}; expected silu.")
    auto: Any = AutoModelForCausalLM  # not annotated throughout
    with torch.device("meta"):
        return auto.from_config(config, dtype=dtype)


def _is_moe(mlp: nn.Module) -> bool:
    return hasattr(mlp, "experts")


def _check_fits(
    placement: Placement, layer_ids: tuple[int, ...], num_experts: int, num_ranks: int
) -> None:
    if placement.layer_ids != layer_ids or placement.num_experts != num_experts:
        raise EquipoiseError(
            f"The placement has layers {format_ids(placement.layer_ids)} of "
            f"{placement.num_experts} experts, the model layers {format_ids(layer_ids)} of "
            f"{num_experts}; make a placement for this model."
        )
    if placement.num_ranks != num_ranks:
        raise EquipoiseError(
            f"The placement is for {placement.num_ranks} ranks, the group has {num_ranks}; "
            "make a placement for this group."
        )


def _read(
    path: Path,
    blocks: Mapping[int, Any],
    experts_LC: NDArray[np.int64],
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Stacked tensors of the experts in this rank's slots, by layer; and all that is no expert."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            slots = [
                _read_slots(file, f"model.layers.{layer}.mlp.experts", experts, block.experts)
                for (layer, block), experts in zip(blocks.items(), experts_LC.tolist(), strict=True)
            ]
            names: list[str] = file.keys()
            rest = {name: file.get_tensor(name) for name in names if ".mlp.experts." not in name}
    except (OSError, SafetensorError, RuntimeError) as error:
        raise FormatError(f"{path} is not the checkpoint of its config.json: {error}.") from error
    return [_cast(one, dtype) for one in slots], _cast(rest, dtype)


def _read_slots(file: Any, prefix: str, experts: list[int], like: nn.Module) -> dict[str, Tensor]:
    """These experts' tensors, ``(C, ...)`` by name, of the shapes the model has for them."""
    slots = {}
    for name, parts in {
        "gate_up_proj": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    }.items():
        of_expert = [
            torch.cat([file.get_tensor(f"{prefix}.{expert}.{part}.weight") for part in parts])
            for expert in experts
        ]
        slots[name] = torch.stack(of_expert)
        wanted, got = like.get_parameter(name).shape[1:], slots[name].shape[1:]
        if got != wanted:
            raise RuntimeError(f"{prefix} have {name} {tuple(got)}, expected {tuple(wanted)}")
    return slots


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _fill(model: Any, state: dict[str, Tensor]) -> None:
    """Load everything but the routed experts, which are in place."""
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise FormatError(f"The checkpoint is not that of its config.json: {error}") from error
    model.tie_weights()
    # The one part that is computed, not stored; it was made without memory like the others.
    rotary = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary(model.config).to(model.model.embed_tokens.weight.device)
