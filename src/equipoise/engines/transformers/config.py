"""Facts from a model's ``config.json``: its experts, their bytes and its KV cache.

Neither torch nor ``transformers`` is imported. The file is read as JSON, and the meaning of its
keys is listed by model type.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from equipoise.checks import MAX_COUNT, brief
from equipoise.engines.files import check_readable
from equipoise.engines.transformers.config_keys import (
    Keys,
    MissingKeyError,
    UnknownFactError,
)
from equipoise.engines.transformers.expert_storage import Storage, dtype_bytes, storage
from equipoise.engines.transformers.kv_cache import cache_number_bytes, kv_bytes_per_token
from equipoise.engines.transformers.model_types import (
    EXPERTS,
    MODEL_TYPES,
    SHARED_EXPERTS,
    SHARED_WIDTH,
    SPECULATIVE,
    TOP_K,
    ModelType,
)
from equipoise.engines.transformers.own_work import own_work
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.json_text import parse_json, read_json
from equipoise.layer_ids import format_ids
from equipoise.sample import sample_model_path
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.own_work import OwnWork

Fact = TypeVar("Fact")

CONFIG = "config.json"
_SAMPLE = Path("sample")
QUANTISATION = "hf_quant_config.json"
"""File in which checkpoints of NVIDIA's quantiser keep the quantisation section."""

PROFILE_FORMAT = "equipoise model 1"
"""Format name of our own document with a configuration, its source and its date."""

_FORMATS = {
    "bfloat16": "bfloat16",
    "float16": "bfloat16",
    "fp8": "fp8_block",
    "nvfp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
    "int4": "w4a16_mxfp4",
}
"""Weight formats of timed kernels; four-bit weights are read as such and computed in 16 bits."""

_LARGEST_FILE = 1 << 24
_MOST_LAYERS = 1024
_MODELS = files("equipoise.engines.transformers") / "models"
_INNER = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Facts about a mixture-of-experts model; ``None`` if its configuration does not say.

    Parameters
    ----------
    source
        Path of the file.
    architecture
        First of ``architectures``: the class by which engines recognise the model.
    model_type
        Type of the language model.
    num_hidden_layers
        Number of decoder layers, including dense and excluding speculative ones.
    moe_layer_ids
        Ids of the MoE layers among them.
    speculative_layer_ids
        Ids of the layers that draft further tokens (MTP), which follow the others.
    num_experts
        Number of routed experts of an MoE layer.
    top_k
        Number of experts that a token chooses.
    num_expert_groups, groups_per_token
        Number of expert groups, and of those that a token may use; ``None`` without a limit.
    num_shared_experts
        Number of experts of a layer that every token visits; they are not in the map.
    hidden_size, expert_intermediate_size
        Widths of the model and of a routed expert.
    quantisation
        Method of quantisation, as the configuration names it; ``None`` without quantisation.
    weight_type
        Type of an expert's weights: fp8, mxfp4, int4, bfloat16.
    expert_bytes
        Bytes of one expert in one layer as the checkpoint stores it, with scales and biases.
    scale_bytes
        Bytes of scales among them.
    kv_bytes_per_token
        Bytes of KV cache that a token takes, all layers and heads together.
    num_window_layers
        Number of layers with sliding or chunked attention, which free tokens outside their window.
    own_work
        Work of a rank for its own tokens: attention, shared experts, dense layers.
    unknown
        Reasons why facts are ``None``, by name, as the end of a sentence.
    """

    source: str
    architecture: str | None
    model_type: str
    num_hidden_layers: int
    moe_layer_ids: tuple[int, ...] | None
    speculative_layer_ids: tuple[int, ...] | None
    num_experts: int
    top_k: int | None
    num_expert_groups: int | None
    groups_per_token: int | None
    num_shared_experts: int | None
    hidden_size: int | None
    expert_intermediate_size: int | None
    quantisation: str | None
    weight_type: str | None
    expert_bytes: int | None
    scale_bytes: int | None
    kv_bytes_per_token: int | None
    num_window_layers: int | None
    own_work: OwnWork | None
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def slot_bytes(self) -> int | None:
        """Bytes of one slot of a rank in every MoE layer."""
        if self.expert_bytes is None or self.moe_layer_ids is None:
            return None
        return self.expert_bytes * len(self.moe_layer_ids)

    def need_expert_bytes(self) -> int:
        """Return the bytes of one expert in one layer.

        Raises
        ------
        EquipoiseError
            Unknown bytes.
        """
        if self.expert_bytes is None:
            raise EquipoiseError(
                f"{self.source}: the bytes of an expert are not known, since "
                f"{self.unknown['expert_bytes']}; give {argument('expert_bytes')} as well."
            )
        return self.expert_bytes

    @property
    def expert_shape(self) -> ExpertShape:
        """Return the shape of a routed expert for the time model.

        Raises
        ------
        EquipoiseError
            An unknown width, number of choices or weight format.
        """
        needed = {
            name: getattr(self, name)
            for name in ("hidden_size", "expert_intermediate_size", "top_k", "weight_type")
        }
        for name, value in needed.items():
            if value is None:
                raise EquipoiseError(
                    f"{self.source}: what a step takes cannot be told, since {self.unknown[name]}."
                )
        if self.weight_type not in _FORMATS:
            raise EquipoiseError(
                f"{self.source}: has weights in {self.weight_type}, whose kernels nobody has "
                f"timed here; known are {', '.join(_FORMATS)}."
            )
        return ExpertShape(
            hidden_size=needed["hidden_size"],
            inter_size=needed["expert_intermediate_size"],
            num_experts=self.num_experts,
            top_k=needed["top_k"],
            dtype=_FORMATS[self.weight_type],
        )

    def check_fits(self, what: str, num_experts: int, layer_ids: Sequence[int]) -> None:
        """Raise ``EquipoiseError`` unless a map or a recording can be of this model.

        Layers may be missing, and speculative layers may be included. If layers are numbered from 0
        because their real numbers are unknown, only their number has to agree.

        Parameters
        ----------
        what
            Name of the map or recording, for the message.
        num_experts
            Number of logical experts of the map or recording.
        layer_ids
            Layers of the map or recording.
        """
        if num_experts != self.num_experts:
            raise EquipoiseError(
                f"{what} has {num_experts} experts in a layer and {self.source} "
                f"{self.num_experts}; give the configuration of the model that it is of."
            )
        if self.moe_layer_ids is None or self._are_layers(layer_ids):
            return
        raise EquipoiseError(
            f"{what} has the layers {format_ids(list(layer_ids))}, and {self.source} says that the "
            f"MoE layers are {format_ids(list(self.moe_layer_ids))}; give the configuration of the "
            "model that it is of."
        )

    def _are_layers(self, layer_ids: Sequence[int]) -> bool:
        """Tell whether layers are MoE layers of the model, by their ids or positions."""
        moe, speculative = self.moe_layer_ids or (), self.speculative_layer_ids
        if all(layer in moe or self._is_speculative(layer) for layer in layer_ids):
            return True
        numbers = {len(moe), len(moe) + len(speculative or ())}
        return tuple(layer_ids) == tuple(range(len(layer_ids))) and len(layer_ids) in numbers

    def _is_speculative(self, layer: int) -> bool:
        if self.speculative_layer_ids is None:
            return layer >= self.num_hidden_layers
        return layer in self.speculative_layer_ids


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of the built-in models."""
    return tuple(sorted(entry.name.removesuffix(".json") for entry in _MODELS.iterdir()))


def read_model_config(path: str | Path) -> ModelConfig:
    """Read the configuration of a mixture-of-experts model.

    Parameters
    ----------
    path
        Path of a ``config.json`` as on Hugging Face, of a folder with one, or of our own profile;
        or, if there is no such file, a name from ``model_names`` or ``sample``, the model of the
        recording that ships.

    Raises
    ------
    FormatError
        A missing file, a file that is not a model configuration, or keys that are missing or
        contradict each other.
    EquipoiseError
        A model without routed experts.
    """
    path = Path(path)
    if not os.path.lexists(path) and len(path.parts) == 1 and path.suffix != ".json":
        if path != _SAMPLE:
            return _shipped(str(path))
        path = sample_model_path()
    check_readable(path)
    file = path / CONFIG if path.is_dir() else path
    return _facts(_document(file), file, str(file))


def _shipped(name: str) -> ModelConfig:
    """Read the facts of a built-in model."""
    if name.lower() not in model_names():
        raise FormatError(
            f"There is no model {brief(name)}; give its config.json, or the name of one of "
            f"{', '.join(model_names())}."
        )
    document = parse_json((_MODELS / f"{name.lower()}.json").read_bytes(), name)
    return _facts(_configuration(document, name), None, name)


def _facts(document: dict[str, Any], file: Path | None, where: str) -> ModelConfig:
    keys = _language_model(document, where)
    return _Model(keys, document, _quantisation(keys, document, file)).facts()


def _document(file: Path) -> dict[str, Any]:
    check_readable(file)
    if file.stat().st_size > _LARGEST_FILE:
        raise FormatError(f"{file}: has more than 16 MiB, which no configuration of a model needs.")
    return _configuration(read_json(file), str(file))


def _configuration(document: Any, where: str) -> dict[str, Any]:
    """Return the configuration, possibly from our own profile with its source."""
    if isinstance(document, dict) and document.get("format") == PROFILE_FORMAT:
        for name in ("source", "date"):
            if not _text(document.get(name)):
                raise FormatError(f"{where}: {name} is {brief(document.get(name))}; expected text.")
        document = document.get("config")
    if not isinstance(document, dict) or not document.keys() & {"model_type", "architectures"}:
        raise FormatError(
            f"{where}: is not the configuration of a model, which says its model_type; give the "
            "config.json that came with the model."
        )
    return document


def _language_model(document: dict[str, Any], where: str) -> Keys:
    """Find the part that describes the language model: the root, or a section of it."""
    keys = Keys(document, where)
    for name in (*_INNER, *_INNER):  # a section may contain another
        section = keys.get(name)
        if isinstance(section, dict) and not keys.has(*EXPERTS):
            keys = Keys(section, f"{keys.where}, {name}")
    return keys


def _quantisation(
    keys: Keys, document: Mapping[str, Any], file: Path | None
) -> dict[str, Any] | None:
    section = document.get("quantization_config") or keys.get("quantization_config")
    in_folder = file is not None and file.name == CONFIG
    aside = file.with_name(QUANTISATION) if file is not None and in_folder else None
    if section is None and aside is not None and aside.is_file():
        check_readable(aside)
        inner = read_json(aside) if aside.stat().st_size <= _LARGEST_FILE else None
        section = inner.get("quantization") if isinstance(inner, dict) else None
        if isinstance(section, dict):
            return {"quant_method": "modelopt"} | section
    if section is not None and not isinstance(section, dict):
        raise FormatError(f"{file}: quantization_config is {brief(section)}; expected an object.")
    return section


class _Model:
    """A reader of a configuration; the method of a fact may raise ``UnknownFactError``."""

    def __init__(
        self, keys: Keys, document: Mapping[str, Any], quantisation: Mapping[str, Any] | None
    ) -> None:
        self.keys = keys
        self.document = document
        self.quantisation = quantisation
        self.name = _text(keys.get("model_type")) or _text(document.get("model_type")) or ""
        self.num_experts = _num_experts(keys, self.name)
        keys.need("num_hidden_layers", *self._needed())
        self.num_layers = keys.whole("num_hidden_layers", low=1, high=_MOST_LAYERS)

    def facts(self) -> ModelConfig:
        """Read all facts, with the reasons for those that are unknown."""
        unknown: dict[str, str] = {}

        def take(name: str, fact: Callable[[], Fact]) -> Fact | None:
            try:
                return fact()
            except UnknownFactError as reason:
                unknown[name] = str(reason)
                return None

        groups, of_a_token = self.groups()
        stored = take("weight_type", self.storage)
        return ModelConfig(
            source=self.keys.where,
            architecture=self.architecture(),
            model_type=self.name,
            num_hidden_layers=self.num_layers,
            moe_layer_ids=take("moe_layer_ids", self.moe_layers),
            speculative_layer_ids=take("speculative_layer_ids", self.speculative_layers),
            num_experts=self.num_experts,
            top_k=take("top_k", self.top_k),
            num_expert_groups=groups,
            groups_per_token=of_a_token,
            num_shared_experts=take("num_shared_experts", self.shared_experts),
            hidden_size=take("hidden_size", self.hidden_size),
            expert_intermediate_size=take("expert_intermediate_size", self.width),
            quantisation=self.method(),
            weight_type=None if stored is None else stored.name,
            expert_bytes=take("expert_bytes", self.expert_bytes),
            scale_bytes=take("scale_bytes", self.scale_bytes),
            kv_bytes_per_token=take("kv_bytes_per_token", self.kv_bytes_per_token),
            num_window_layers=take("num_window_layers", self.window_layers),
            own_work=take("own_work", self.own_work),
            unknown=unknown,
        )

    @property
    def kind(self) -> ModelType:
        if self.name not in MODEL_TYPES:
            raise UnknownFactError(f"models of the type {brief(self.name)} are not known")
        return MODEL_TYPES[self.name]

    def _needed(self) -> tuple[str | tuple[str, ...], ...]:
        known = MODEL_TYPES.get(self.name)
        return () if known is None else ("hidden_size", known.width, TOP_K)

    def architecture(self) -> str | None:
        names = self.document.get("architectures")
        return _text(names[0]) if isinstance(names, list) and names else None

    def moe_layers(self) -> tuple[int, ...]:
        return self.kind.moe_layers(self.keys, self.num_layers)

    def speculative_layers(self) -> tuple[int, ...]:
        if self.kind.speculative and not self.keys.has(*SPECULATIVE):
            raise UnknownFactError(self.kind.speculative)
        number = self.keys.whole(*SPECULATIVE, default=0, high=_MOST_LAYERS)
        return tuple(range(self.num_layers, self.num_layers + number))

    def top_k(self) -> int:
        if not self.keys.has(*TOP_K):
            raise UnknownFactError("no key gives the experts of a token")
        return self.keys.of_all_layers(*TOP_K)

    def groups(self) -> tuple[int | None, int | None]:
        """Return the number of expert groups and of those that a token may use, if limited."""
        groups = self.keys.whole("n_group", "num_expert_group", default=1)
        of_a_token = self.keys.whole("topk_group", default=groups)
        return (groups, of_a_token) if 0 < of_a_token < groups else (None, None)

    def shared_experts(self) -> int:
        if self.kind.shared is not None:
            return self.kind.shared
        if self.keys.has(*SHARED_EXPERTS):
            return self.keys.of_all_layers(*SHARED_EXPERTS)
        return int(self.keys.whole(*SHARED_WIDTH, default=0) > 0)

    def hidden_size(self) -> int:
        if not self.keys.has("hidden_size"):
            raise UnknownFactError("hidden_size is missing")
        return self.keys.whole("hidden_size", low=1)

    def width(self) -> int:
        return self.keys.of_all_layers(*self.kind.width)

    def dtype(self) -> str | None:
        """Return the type of numbers that are not quantised."""
        for values in (self.document.get, self.keys.get):
            for name in ("dtype", "torch_dtype"):
                if text := _text(values(name)):
                    return text.removeprefix("torch.")
        return self.kind.dtype

    def method(self) -> str | None:
        if self.quantisation is None:
            return None
        names = (self.quantisation.get(name) for name in ("quant_method", "quant_algo"))
        return " ".join(filter(None, map(_text, names))) or "a method without a name"

    def storage(self) -> Storage:
        return storage(self.quantisation, self.dtype(), self.moe_layers())

    def expert_bytes(self) -> int:
        stored = self.storage()
        weights = sum(stored.matrix(*shape) for shape in self._matrices())
        return weights + self._biases() * (dtype_bytes(self.dtype()) if self._biases() else 0)

    def scale_bytes(self) -> int:
        """Return the bytes of an expert that are neither weights nor biases."""
        stored = self.storage()
        bare = replace(stored, scale_bytes=0, matrix_bytes=0)
        return sum(stored.matrix(*shape) - bare.matrix(*shape) for shape in self._matrices())

    def _matrices(self) -> tuple[tuple[int, int], ...]:
        """Return outputs and inputs of the projections: gate, up and down."""
        up = (self.width(), self.hidden_size())
        return up, up, up[::-1]

    def _biases(self) -> int:
        return 2 * self.width() + self.hidden_size() if self.kind.biases else 0

    def kv_bytes_per_token(self) -> int:
        number = cache_number_bytes(self.quantisation, dtype_bytes(self.dtype()))
        try:
            return kv_bytes_per_token(self.keys, self.kind, self.num_layers, number)
        except MissingKeyError as error:  # only the KV cache needs these keys
            raise UnknownFactError(f"{', '.join(error.names)} is missing") from error

    def own_work(self) -> OwnWork:
        of_experts = self.storage().name
        return own_work(
            self.keys,
            width=self.width(),
            num_layers=self.num_layers,
            num_moe_layers=len(self.moe_layers()),
            weight_bytes=1 if of_experts == "fp8" else dtype_bytes(self.dtype()),
        )

    def window_layers(self) -> int:
        try:
            return self.kind.layers_with_cache(self.keys, self.num_layers)[1]
        except MissingKeyError as error:
            raise UnknownFactError(f"{', '.join(error.names)} is missing") from error


def _num_experts(keys: Keys, name: str) -> int:
    number = keys.whole(*EXPERTS, default=0, high=MAX_COUNT)
    if number < 2:
        raise EquipoiseError(
            f"{keys.where}: describes a model without routed experts (its model_type is "
            f"{brief(name)}), so that there is nothing to balance."
        )
    return number


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
