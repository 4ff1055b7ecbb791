"""The field ``routed_experts`` of engines' answers: the experts of a request's tokens.

vLLM writes base64 of the bytes of an ``.npy`` file, SGLang base64 of 32-bit numbers without a
header. TensorRT-LLM returns tensors, which logs hold as lists.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count
from equipoise.engines._shared.requests import Request
from equipoise.engines.formats import TraceOptions
from equipoise.engines.tabular.npy import load_npy
from equipoise.errors import FormatError, argument

_NPY = b"\x93NUMPY"
_RAW = np.dtype("<i4")
_PAIRS_TO_TELL = 1 << 22
_EVIDENCE = 30.0  # shared choices to expect before their absence means anything
_LIST_AXES = 4  # of lists that are read: one tensor may stand in a list of its own


def decode_choices(
    value: Any, num_rows: int | None, options: TraceOptions, where: str
) -> NDArray[np.integer]:
    """Decode the choices in a value, ``(tokens, layers, top_k)``.

    Parameters
    ----------
    num_rows
        Number of tokens, if the answer states it; it gives the shape of numbers without one.
    where
        Place of the value, for the start of messages.

    Raises
    ------
    FormatError
        The value cannot be decoded, or its shape stays unknown.
    """
    ids = _decoded(value, where)
    if ids.dtype.kind not in "iu" or not ids.size:
        raise FormatError(f"{where}: routed_experts holds no expert ids.")
    if ids.ndim == 1:
        ids = ids.reshape(_raw_shape(ids.size, num_rows, options, where))
    if ids.ndim == _LIST_AXES and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 3:
        raise FormatError(
            f"{where}: routed_experts has shape {ids.shape}; expected (tokens, layers, top_k)."
        )
    if options.top_k not in (None, ids.shape[2]):
        raise FormatError(
            f"{where}: tokens have {ids.shape[2]} experts, but {argument('top_k')} is "
            f"{options.top_k}; leave it out, as the answer states it."
        )
    return ids


def refuse_cut_choices(requests: Sequence[Request]) -> None:
    """Refuse routing if each layer looks like part of a layer, as with a ``top_k`` given too small.

    Two layers sometimes choose an expert of the same number for a token; two parts of one layer
    never do.

    Raises
    ------
    FormatError
        Neighbouring layers never share a choice, and chance does not explain it.
    """
    _, L, K = requests[0].ids.shape
    of_one_shape = [r.ids for r in requests if r.ids.shape[1:] == (L, K)]
    ids = np.concatenate(of_one_shape)[: 1 + _PAIRS_TO_TELL // (L * K * K)]
    chosen = ~(ids == ids[:1]).all(axis=(0, 2))  # the others are dense
    a, b = ids[:, :-1, :, None], ids[:, 1:, None, :]
    shared: NDArray[np.int64] = ((a == b) & (a >= 0)).sum(axis=(0, 2, 3))
    pairs = np.flatnonzero(chosen[:-1] & chosen[1:])
    for parts in (n for n in range(L, 1, -1) if L % n == 0):
        within = pairs[pairs % parts != parts - 1]  # parts of one layer, if this is their number
        expected = len(within) * len(ids) * K * K / (int(ids.max(initial=0)) + 1)
        if expected > _EVIDENCE and not shared[within].any():
            raise FormatError(
                f"Layers next to each other never choose the same expert for a token, as parts of "
                f"one layer do not: {argument('top_k')} is {K}, but looks like {K * parts}."
            )


def _decoded(value: Any, where: str) -> NDArray[Any]:
    if isinstance(value, list):
        return _from_lists(value, where)
    if not isinstance(value, str):
        raise FormatError(f"{where}: routed_experts is a {type(value).__name__}; expected base64.")
    try:
        data = binascii.a2b_base64(value, strict_mode=True)
    except ValueError as error:
        raise FormatError(f"{where}: routed_experts is not base64.") from error
    if data.startswith(_NPY):
        return load_npy(data, where)
    if len(data) % _RAW.itemsize:
        raise FormatError(
            f"{where}: routed_experts is neither an .npy file nor numbers of 32 bits "
            f"({len(data)} bytes)."
        )
    return np.frombuffer(data, dtype=_RAW)


def _from_lists(value: list[Any], where: str) -> NDArray[Any]:
    """Read nested lists of whole numbers; NumPy would turn anything else into text or objects."""
    flat: list[Any] = value
    for _ in range(_LIST_AXES - 1):
        if flat and all(isinstance(item, list) for item in flat):
            flat = [item for items in flat for item in items]
    if not set(map(type, flat)) <= {int}:
        raise FormatError(f"{where}: routed_experts holds something other than whole numbers.")
    try:
        return np.array(value, dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{where}: routed_experts has rows of different lengths.") from error


def _raw_shape(
    size: int, num_rows: int | None, options: TraceOptions, where: str
) -> tuple[int, int, int]:
    """Infer ``(tokens, layers, top_k)`` of ``size`` numbers from the options and the answer."""
    top_k, layers = options.top_k, options.layer_ids
    if top_k is None:
        raise FormatError(
            f"{where}: routed_experts is numbers without their shape, as SGLang returns them; "
            f"give {argument('top_k')}, the model's num_experts_per_tok."
        )
    check_count(argument("top_k"), top_k)
    if num_rows:
        num_layers = size // (num_rows * top_k)
        if num_layers and num_layers * num_rows * top_k == size:
            return num_rows, num_layers, top_k
    elif layers is not None and size % (len(layers) * top_k) == 0:
        return size // (len(layers) * top_k), len(layers), top_k
    told = (
        f"the {num_rows} tokens that the answer counts"
        if num_rows
        else "an answer that does not count its tokens"
    )
    raise FormatError(
        f"{where}: {size} numbers do not fit {told} and {argument('top_k')} {top_k}. Check "
        f"{argument('top_k')}, and record whole answers without routed_experts_start_len; where "
        f"they count no tokens, give {argument('layer_ids')} 0-60, a number for each hidden layer."
    )
