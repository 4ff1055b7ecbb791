"""Reading a saved model: everything but the routed experts, and any routed experts.

The layout is that of transformers' Qwen2-MoE in one safetensors file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from equipoise.errors import EquipoiseError, FormatError

_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Tensors of an expert, and the names under which each is stored."""


class Checkpoint:
    """A saved Qwen2-MoE model, of which only the routed experts asked for are read.

    Parameters
    ----------
    folder
        Folder with ``config.json`` and ``model.safetensors``, as ``save_pretrained`` writes them.
        Nothing is downloaded and no code from the folder is run.
    dtype
        Number type of weights and computation.
    device
        Device of the tensors.

    Raises
    ------
    EquipoiseError
        The model is of another family or activation, or has no routed experts.
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
        model = self._without_weights()
        self.num_experts: int = model.config.num_experts
        self.vocab_size: int = model.config.vocab_size
        """Number of token ids of the model, which start at 0."""
        self.most_tokens: int = model.config.max_position_embeddings
        """Longest sequence that the model is made for, in tokens."""
        self._experts = {i: block.experts for i, block in moe_blocks(model).items()}
        if not self._experts:
            raise EquipoiseError(
                f"{self.folder} holds a model in which no layer routes to experts."
            )

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
        slots = {}
        with self._open() as file:
            for name, parts in _PARTS.items():
                shape = self._experts[layer_id].get_parameter(name).shape[1:]
                held = torch.empty((len(experts), *shape), dtype=self.dtype, device=self.device)
                for slot, expert in enumerate(experts):
                    stored = [file.get_tensor(f"{prefix}.{expert}.{part}.weight") for part in parts]
                    whole = torch.cat(stored)
                    if whole.shape != shape:
                        raise FormatError(
                            f"{self._path}: {prefix} have {name} {tuple(whole.shape)}; expected "
                            f"{tuple(shape)} by its config.json."
                        )
                    held[slot] = whole
                slots[name] = held
        return slots

    def read_rest(self) -> Any:
        """Read the model with all weights but the routed experts, whose places are left empty.

        Raises
        ------
        FormatError
            The file is missing or damaged, or not what the configuration says.
        """
        model = self._without_weights()
        for block in moe_blocks(model).values():
            block.experts = nn.Identity()
        with self._open() as file:
            names: list[str] = file.keys()
            state = {
                name: file.get_tensor(name).to(self.dtype)
                for name in names
                if ".mlp.experts." not in name
            }
        if model.config.tie_word_embeddings and "model.embed_tokens.weight" in state:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        with _told(f"{self._path} does not fit its config.json"):
            model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        # The only part that is computed, not stored; so far it has no memory, like the others.
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(self.device)
        return model.eval()

    @property
    def _path(self) -> Path:
        return self.folder / "model.safetensors"

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Open the file of tensors; errors of the library become a ``FormatError``."""
        try:
            with safe_open(self._path, "pt", device=str(self.device)) as file:
                yield file
        except (OSError, SafetensorError, RuntimeError) as error:
            raise FormatError(f"{self._path} does not fit its config.json: {error}.") from error

    def _without_weights(self) -> Any:
        """Make the model as configured, without memory for its weights."""
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise EquipoiseError(
                "Loading a model needs transformers; install equipoise[runtime]."
            ) from error
        path = self.folder / "config.json"
        try:
            family = json.loads(path.read_bytes()).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise FormatError(f"{path} cannot be read: {error}.") from error
        if family != "qwen2_moe":
            raise EquipoiseError(
                f"{self.folder} holds a model of type {family!r}; expected qwen2_moe."
            )
        with _told(f"{path} is no configuration of a model"):
            config: Any = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        if config.hidden_act != "silu":
            raise EquipoiseError(
                f"{self.folder} has activation {config.hidden_act!r}; expected silu."
            )
        if not 0 < config.num_experts_per_tok <= config.num_experts:
            raise FormatError(
                f"{path} chooses {config.num_experts_per_tok} of {config.num_experts} experts for "
                "each token; expected at least 1 and at most all of them."
            )
        auto: Any = AutoModelForCausalLM  # transformers does not annotate all of it
        with _told(f"{path} is no configuration of a model"), torch.device("meta"):
            return auto.from_config(config, dtype=self.dtype)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn any error of a library about a value into a ``FormatError`` of one line."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())
        raise FormatError(f"{what}: {why:.300}") from error


def moe_blocks(model: Any) -> dict[int, Any]:
    """The modules of a model that have routed ``experts``, by the model's layer numbers."""
    layers = enumerate(model.model.layers)
    return {number: layer.mlp for number, layer in layers if hasattr(layer.mlp, "experts")}
