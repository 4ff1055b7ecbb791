"""The types of model that this runtime serves, and what it has to know of each.

The model itself is transformers': attention, norms, routers and shared experts run as they are
there, on every rank. What differs between types is how the routed experts are stored and what they
compute. A new type is one entry in ``MODEL_TYPES``; the contract tests then run over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import EquipoiseError
from equipoise.runtime.moe.layer import ExpertFunction, each_slot, swiglu
from equipoise.runtime.moe.stored import StoredTensors

_SILU = {"hidden_act": ("silu",)}
_MOST_LAYERS = 1000  # more are not believed; making them takes memory even without weights


def _separate(tensors: StoredTensors, prefix: str, expert: int) -> dict[str, Tensor]:
    """Read an expert that has its own three matrices; gate and up become one."""
    parts = (f"{prefix}.{expert}.{part}_proj.weight" for part in ("gate", "up", "down"))
    gate, up, down = map(tensors.read, parts)
    return {"gate_up_proj": torch.cat([gate, up]), "down_proj": down}


def _stacked(tensors: StoredTensors, prefix: str, expert: int) -> dict[str, Tensor]:
    """Read an expert's rows of tensors that all experts of a layer share; with biases."""
    names = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    return {name: tensors.read(f"{prefix}.{name}", row=expert) for name in names}


@dataclass(frozen=True)
class ClampedSwiglu:
    """Computes the experts of gpt-oss: ``down((up(x) + 1) * gate(x) * sigmoid(alpha * gate(x)))``.

    All three have biases. Weights are ``gate_up_proj`` ``(C, H, 2 F)`` and its bias ``(C, 2 F)``,
    in which gate and up alternate, and ``down_proj`` ``(C, F, H)`` and its bias ``(C, H)``.

    Parameters
    ----------
    alpha
        Factor in the sigmoid.
    limit
        Bound of the gate from above, and of ``up`` on both sides.
    """

    alpha: float
    limit: float

    def __call__(
        self, rows: Tensor, counts: Sequence[int], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """See ``ExpertFunction``."""

        def expert(slot: int, part: Tensor) -> Tensor:
            gate_up = part @ weights["gate_up_proj"][slot] + weights["gate_up_proj_bias"][slot]
            gate = gate_up[:, ::2].clamp(max=self.limit)
            up = gate_up[:, 1::2].clamp(-self.limit, self.limit)
            inner = (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
            return inner @ weights["down_proj"][slot] + weights["down_proj_bias"][slot]

        return each_slot(expert, rows, counts)


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """The facts that this runtime needs about a type of model.

    The decoder layers are ``model.layers`` in transformers' class; those whose ``mlp`` has
    ``experts`` are MoE layers.

    Parameters
    ----------
    name
        Name of the type, ``model_type`` in ``config.json``.
    router
        Name of the router in a MoE block of transformers.
    read
        Function that reads an expert, given the stored tensors, the beginning of the names of its
        layer's experts, and its number. Returns tensors by the names that transformers gives them,
        without their axis of experts.
    compute
        Function that makes what the experts compute, given their module in transformers.
    only
        Values that the configuration may have for a key. With others transformers' class computes
        something else than the model, or nothing; a configuration may leave the key out.
    further_layers
        Name of the number of layers, stored after the last, that predict further tokens (MTP).
    in_float32
        Last parts of the names of tensors that keep this number type whatever the model's is.
    """

    name: str
    router: str = "gate"
    read: Callable[[StoredTensors, str, int], dict[str, Tensor]] = _separate
    compute: Callable[[Any], ExpertFunction] = lambda _experts: swiglu
    only: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: _SILU)
    further_layers: str | None = None
    in_float32: tuple[str, ...] = ()


_ENTRIES = (
    ModelType(name="qwen2_moe"),
    ModelType(name="qwen3_moe"),
    ModelType(name="olmoe"),
    ModelType(
        name="deepseek_v2",
        only=_SILU
        | {
            "scoring_func": ("softmax",),
            "topk_method": ("greedy", "group_limited_greedy"),
            "norm_topk_prob": (False,),
            "moe_layer_freq": (1,),
        },
    ),
    ModelType(
        name="deepseek_v3",
        only=_SILU
        | {
            "scoring_func": ("sigmoid",),
            "topk_method": ("noaux_tc",),
            "moe_layer_freq": (1,),
        },
        further_layers="num_nextn_predict_layers",
        in_float32=("e_score_correction_bias",),
    ),
    ModelType(
        name="gpt_oss",
        router="router",
        read=_stacked,
        compute=lambda experts: ClampedSwiglu(experts.alpha, experts.limit),
    ),
)

MODEL_TYPES: dict[str, ModelType] = {entry.name: entry for entry in _ENTRIES}


def model_type(config: Mapping[str, Any], where: object) -> ModelType:
    """Return the type of the model that a ``config.json`` describes.

    Parameters
    ----------
    config
        Content of the file.
    where
        Place of the model, for messages.

    Raises
    ------
    EquipoiseError
        The type is not known, the model is quantised, or has values that are not served.
    """
    name = config.get("model_type")
    kind = MODEL_TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise EquipoiseError(
            f"{where} holds a model of type {name!r:.100}; expected one of "
            f"{', '.join(MODEL_TYPES)}."
        )
    if config.get("quantization_config"):
        raise EquipoiseError(
            f"{where} holds a quantised model; this runtime computes with weights stored as "
            "bfloat16, float16 or float32. Save a copy of the model in one of these."
        )
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise EquipoiseError(f"{where} has {layers} layers; expected at most {_MOST_LAYERS}.")
    for key, values in kind.only.items():
        if config.get(key, values[0]) not in values:
            raise EquipoiseError(
                f"{where} has {key} {config[key]!r:.100}; models of type {name} are served with "
                f"{' or '.join(map(repr, values))} only."
            )
    return kind
