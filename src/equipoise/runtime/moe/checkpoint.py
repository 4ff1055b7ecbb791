"""Reading a saved model: everything but the routed experts, and any routed experts.

The layout is that of transformers, for the types in ``MODEL_TYPES``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.errors import EquipoiseError, FormatError
from equipoise.layer_ids import format_ids
from equipoise.runtime.moe.model_types import model_type
from equipoise.runtime.moe.stored import StoredTensors, read_object, told

_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")

logger = logging.getLogger("equipoise.runtime")


class Checkpoint:
    """A saved model, of which only the routed experts asked for are read.

    Parameters
    ----------
    folder
        Folder with ``config.json`` and safetensors files, as ``save_pretrained`` writes them.
        Nothing is downloaded and no code from the folder is run.
    dtype
        Number type of weights and computation.
    device
        Device of the tensors.

    Raises
    ------
    EquipoiseError
        The model is of a type that is not in ``MODEL_TYPES``, is quantised, has values that are not
        served, or has no routed experts.
    FormatError
        The configuration is missing or damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.dtype, self.device = Path(folder), dtype, torch.device(device)
        self._config = self.folder / "config.json"
        self._type = model_type(read_object(self._config), self.folder)
        model = self._without_weights()
        self.top_k: int = model.config.num_experts_per_tok
        self.vocab_size: int = model.config.vocab_size
        """Number of token ids of the model, which start at 0."""
        self.most_tokens: int = model.config.max_position_embeddings
        """Longest sequence that the model is made for, in tokens."""
        blocks = moe_blocks(model)
        if not blocks:
            raise EquipoiseError(
                f"{self.folder} holds a model in which no layer routes to experts."
            )
        self._experts = {layer_id: block.experts for layer_id, block in blocks.items()}
        experts = next(iter(self._experts.values()))
        self.num_experts: int = experts.num_experts
        self.compute = self._type.compute(experts)
        """Function that computes the experts."""
        self._check_routers(model.config, blocks)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """The model's number of each MoE layer, ascending."""
        return tuple(self._experts)

    def read_slots(self, layer_id: int, experts: Sequence[int]) -> dict[str, Tensor]:
        """Read the tensors of some experts of a layer, ``(len(experts), ...)`` each, by name.

        Raises
        ------
        FormatError
            The file is missing or damaged, or lacks a tensor.
        """
        prefix = f"model.layers.{layer_id}.mlp.experts"
        slots = {
            name: torch.empty(
                (len(experts), *whole.shape[1:]), dtype=self.dtype, device=self.device
            )
            for name, whole in self._experts[layer_id].named_parameters()
        }
        stored = StoredTensors(self.folder, self.device)
        for slot, expert in enumerate(experts):
            with told(f"{stored.path} does not fit its config.json"):
                read = self._type.read(stored, prefix, expert)
            for name, held in slots.items():
                if read[name].shape != held.shape[1:]:
                    raise FormatError(
                        f"{stored.path}: {prefix} have {name} {tuple(read[name].shape)}; expected "
                        f"{tuple(held.shape[1:])} by its config.json."
                    )
                held[slot] = read[name]
        return slots

    def read_rest(self) -> Any:
        """Read the model with all weights but the routed experts, whose places are left empty.

        Layers that predict further tokens (MTP) are left aside; a warning says so.

        Raises
        ------
        FormatError
            The file is missing or damaged, or not what the configuration says.
        """
        model = self._without_weights()
        for block in moe_blocks(model).values():
            block.experts = nn.Identity()
        stored = StoredTensors(self.folder, self.device)
        aside = self._left_aside(model.config, stored)
        state = {
            name: stored.read(name).to(self._dtype_of(name))
            for name in stored.names
            if ".mlp.experts." not in name and _layer_id(name) not in aside
        }
        if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        with told(f"{stored.path} does not fit its config.json"):
            model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        # The only part that is computed, not stored; so far it has no memory, like the others.
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(self.device)
        return model.eval()

    def _left_aside(self, config: Any, stored: StoredTensors) -> set[int]:
        """Numbers of the stored layers that predict further tokens, which are not served."""
        key = self._type.further_layers
        if key is None:
            return set()
        first = config.num_hidden_layers
        with told(f"{self._config} is not a model configuration"):
            further = range(first, first + (getattr(config, key, None) or 0))
        found = {layer_id for layer_id in map(_layer_id, stored.names) if layer_id in further}
        if found:
            logger.warning(
                "%s: layers %s predict further tokens (MTP); they are left aside.",
                self.folder,
                format_ids(sorted(found)),
            )
        return found

    def _dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if name.endswith(self._type.in_float32) else self.dtype

    def _without_weights(self) -> Any:
        """Make the model as configured, without memory for its weights."""
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise EquipoiseError(
                "Loading a model needs transformers; install equipoise[runtime]."
            ) from error
        auto: Any = AutoModelForCausalLM  # transformers does not annotate all of it
        with told(f"{self._config} is not a model configuration"), torch.device("meta"):
            config: Any = AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            return auto.from_config(config, dtype=self.dtype)

    def _check_routers(self, config: Any, blocks: dict[int, Any]) -> None:
        """Refuse a configuration by which no token can be routed."""
        with told(f"{self._config} has routers that cannot choose experts"):
            top_k = config.num_experts_per_tok
            if not 0 < top_k <= self.num_experts:
                raise FormatError(
                    f"{self._config} chooses {top_k} of {self.num_experts} experts for each "
                    "token; expected at least 1 and at most all of them."
                )
            token = torch.empty(1, config.hidden_size, dtype=self.dtype, device="meta")
            for block in blocks.values():
                getattr(block, self._type.router)(token)


def _layer_id(name: str) -> int:
    """Number of the decoder layer that a stored tensor belongs to; -1: to none."""
    layer = _LAYER.match(name)
    return int(layer[1]) if layer else -1


def moe_blocks(model: Any) -> dict[int, Any]:
    """The modules of a model that have routed ``experts``, by the model's layer numbers."""
    layers = enumerate(model.model.layers)
    return {number: layer.mlp for number, layer in layers if hasattr(layer.mlp, "experts")}
