"""Bytes of one expert's weights, scales included, for each way of storing them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from equipoise.checks import check_whole
from equipoise.engines.transformers.config_keys import UnknownFactError

Matrix = tuple[int, int]
"""Outputs and inputs of a projection."""

DTYPE_BYTES = {
    "float32": 4,
    "float": 4,
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "float8_e4m3fn": 1,
    "uint8": 1,
}
_ALL = 1 << 62  # a block as long as the matrix, however long that is
_EXCEPTIONS = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
_MAX_PATTERNS = 64


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The way in which a weight matrix is stored.

    Parameters
    ----------
    name
        Common name of the weights' type: fp8, int4, bfloat16.
    bits
        Bits of a weight.
    block
        Outputs and inputs that share a scale; ``None`` without scales.
    scale_bytes
        Bytes of a scale, and of the zero point stored with it.
    matrix_bytes
        Bytes of scales of the whole matrix.
    """

    name: str
    bits: int
    block: Matrix | None = None
    scale_bytes: float = 0
    matrix_bytes: int = 0

    def matrix(self, outputs: int, inputs: int) -> int:
        """Return the bytes of a weight matrix and its scales."""
        scales = 0.0
        if self.block is not None:
            blocks = math.ceil(outputs / self.block[0]) * math.ceil(inputs / self.block[1])
            scales = blocks * self.scale_bytes
        return math.ceil(outputs * inputs * self.bits / 8 + scales) + self.matrix_bytes


def storage(
    quantisation: Mapping[str, Any] | None, dtype: str | None, layer_ids: Collection[int]
) -> Storage:
    """Return the way in which the experts of all MoE layers are stored.

    Parameters
    ----------
    quantisation
        The section ``quantization_config``.
    dtype
        Type of weights that are not quantised.
    layer_ids
        Ids of the MoE layers; the section may exclude the experts of some.

    Raises
    ------
    UnknownFactError
        The method is not known here, or it treats experts or layers differently.
    """
    excepted = 0 if quantisation is None else _num_excepted(quantisation, layer_ids)
    if quantisation is None or excepted == len(layer_ids):
        return Storage(name=dtype or "", bits=8 * dtype_bytes(dtype))
    if excepted:
        raise UnknownFactError(f"the experts of {excepted} MoE layers are not quantised")
    try:
        match quantisation.get("quant_method"):
            case "fp8":
                return _fp8(quantisation)
            case "mxfp4":
                return Storage(name="mxfp4", bits=4, block=(1, 32), scale_bytes=1)
            case "awq" | "gptq":
                return _whole_numbers(quantisation)
            case "modelopt" | "modelopt_fp4":
                return _modelopt(quantisation)
            case "compressed-tensors":
                return _compressed_tensors(quantisation, dtype_bytes(dtype))
    except ValueError as error:
        raise UnknownFactError(f"quantization_config is not understood ({error})") from error
    method = str(quantisation.get("quant_method"))[:40]
    raise UnknownFactError(f"nothing is known here of the quantisation {method}")


def dtype_bytes(dtype: str | None) -> int:
    """Return the bytes of a number of this type, given by torch's name."""
    if dtype not in DTYPE_BYTES:
        said = "torch_dtype is missing" if dtype is None else f"the type {dtype[:40]} is not known"
        raise UnknownFactError(said)
    return DTYPE_BYTES[dtype]


def _fp8(section: Mapping[str, Any]) -> Storage:
    static = 4 if section.get("activation_scheme") == "static" else 0
    if section.get("weight_block_size") is None:
        return Storage(name="fp8", bits=8, matrix_bytes=4 + static)
    return Storage(
        name="fp8",
        bits=8,
        block=_pair("weight_block_size", section["weight_block_size"]),
        scale_bytes=4,
        matrix_bytes=static,
    )


def _whole_numbers(section: Mapping[str, Any]) -> Storage:
    """AWQ and GPTQ: whole numbers; each group has a half-precision scale and a zero point."""
    bits = check_whole("bits", section.get("bits", 4), low=1, high=16)
    return Storage(
        name=f"int{bits}",
        bits=bits,
        block=(1, _group(section.get("group_size"))),
        scale_bytes=2 + bits / 8,
    )


def _modelopt(section: Mapping[str, Any]) -> Storage:
    match section.get("quant_algo"):
        case "FP8":
            return Storage(name="fp8", bits=8, matrix_bytes=8)
        case "NVFP4":
            return _nvfp4(scales=2)
    algorithm = str(section.get("quant_algo"))[:40]
    raise UnknownFactError(f"nothing is known here of the quantisation modelopt {algorithm}")


def _nvfp4(scales: int) -> Storage:
    return Storage(name="nvfp4", bits=4, block=(1, 16), scale_bytes=1, matrix_bytes=4 * scales)


def _compressed_tensors(section: Mapping[str, Any], scale_bytes: int) -> Storage:
    """Numbers with scales of the type that the weights had, unless they are of four bits."""
    scheme = _scheme_of_experts(section)
    weights = _section("weights", scheme.get("weights")) or {}
    inputs = _section("input_activations", scheme.get("input_activations")) or {}
    bits = check_whole("num_bits", weights.get("num_bits", 0), low=1, high=16)
    kind = "fp" if weights.get("type") == "float" else "int"
    if kind == "fp" and bits == 4:
        return _four_bit_floats(weights, scales=2 if inputs else 1)
    fixed = scale_bytes if inputs.get("dynamic") is False else 0
    return Storage(
        name=f"{kind}{bits}",
        bits=bits,
        block=_block(weights),
        scale_bytes=scale_bytes + (0 if weights.get("symmetric", True) else bits / 8),
        matrix_bytes=fixed,
    )


def _four_bit_floats(weights: Mapping[str, Any], scales: int) -> Storage:
    """NVFP4 has scales of groups and of the matrix; MXFP4 has a power of two for each group."""
    if weights.get("strategy") == "tensor_group":
        return _nvfp4(scales)
    return Storage(name="mxfp4", bits=4, block=_block(weights), scale_bytes=1)


def _block(weights: Mapping[str, Any]) -> Matrix:
    match weights.get("strategy"):
        case "tensor":
            return _ALL, _ALL
        case "channel":
            return 1, _ALL
        case "group":
            return 1, _group(weights.get("group_size"))
        case "block":
            return _pair("block_structure", weights.get("block_structure"))
    raise UnknownFactError(f"scales by {str(weights.get('strategy'))[:40]} are not known")


def _scheme_of_experts(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the one group of layers that experts belong to."""
    groups = _section("config_groups", section.get("config_groups")) or {}
    schemes = [_section("a group", group) or {} for group in groups.values()]
    linear = [scheme for scheme in schemes if "Linear" in _texts(scheme.get("targets"))]
    named = [scheme for scheme in schemes if "expert" in " ".join(_texts(scheme.get("targets")))]
    if len(schemes) == 1 and (linear or named):
        return schemes[0]
    raise UnknownFactError("its config_groups do not say plainly which scheme experts have")


def _num_excepted(section: Mapping[str, Any], layer_ids: Collection[int]) -> int:
    """Count the layers whose routed experts stay unquantised.

    Raises
    ------
    UnknownFactError
        A regular expression matches experts; it is not run, since the file may come from anybody.
    """
    listed = [text for name in _EXCEPTIONS for text in _texts(section.get(name))]
    rules = [text for text in listed if text.startswith("re:")]
    if any("expert" in rule.replace("shared_expert", "") for rule in rules):
        raise UnknownFactError("a regular expression says which experts are not quantised")
    modules = {text.strip(".*") for text in listed}
    patterns = {text for text in listed if "*" in text.strip(".*")}
    if len(patterns) > _MAX_PATTERNS:
        raise UnknownFactError("too many patterns say what is not quantised")
    return sum(_is_excepted(layer, modules, patterns) for layer in layer_ids)


def _is_excepted(layer: int, modules: Collection[str], patterns: Collection[str]) -> bool:
    path = f"model.layers.{layer}.mlp.experts.0.gate_proj"
    names = path.split(".")
    starts = range(len(names))
    parts = {".".join(names[i:j]) for i in starts for j in range(i + 1, len(names) + 1)}
    return not parts.isdisjoint(modules) or any(fnmatchcase(path, text) for text in patterns)


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _section(name: str, value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise UnknownFactError(f"{name} is not an object")
    return value


def _pair(name: str, value: Any) -> Matrix:
    if not isinstance(value, list) or len(value) != 2:
        raise UnknownFactError(f"{name} is not two numbers")
    outputs, inputs = (check_whole(name, size, low=1) for size in value)
    return outputs, inputs


def _group(value: Any) -> int:
    """Return how many inputs share a scale; -1 means all."""
    return _ALL if value == -1 else check_whole("group_size", value, low=1)
