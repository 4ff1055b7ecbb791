"""Answers of a vLLM server that return the routing of their tokens: ``choices[].routed_experts``.

Base64 of the bytes of an ``.npy`` array ``(tokens - 1, hidden layers, top_k)``; dense layers are
zeros. A file holds one answer, a list of them, or one a line.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.choices import Sequences, trace_of_choices
from equipoise.engines._shared.json_text import parse_json
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.tabular.npy import load_npy
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Provenance, Trace

_KEY = b'"routed_experts"'
_HEAD_BYTES = 1 << 16


class _Choice(msgspec.Struct):
    routed_experts: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


def matches(path: Path) -> bool:
    """Whether a JSON file names ``routed_experts`` within ``choices`` near its start."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.lstrip()[:1] in (b"{", b"[") and b'"choices"' in head and _KEY in head


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """One step a request, in the order of the file.

    Raises
    ------
    FormatError
        Damaged JSON, an answer without routing, or arrays of different shapes.
    """
    with naming(path):
        data = path.read_bytes()
        parts = [
            _part(f"{path}, answer {number}", choice)
            for number, answer in enumerate(_answers(path, data))
            for choice in answer.choices
        ]
        progress(len(data), len(data))
        if not parts:
            raise FormatError(f"{path} holds no answer.")
        shapes = {part.ids.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise EquipoiseError(
                f"Answers have (layers, top_k) {sorted(shapes)[:4]}; expected those of one model."
            )
        return trace_of_choices(parts, options, Provenance("vllm-completions", str(path)))


def _answers(path: Path, data: bytes) -> Iterator[_Answer]:
    """One answer, a list of them, or one a line."""
    try:
        document = parse_json(data, str(path))
        documents = document if isinstance(document, list) else [document]
    except FormatError:
        lines = [line for line in data.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        documents = [parse_json(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)]
    for number, document in enumerate(documents):
        try:
            yield msgspec.convert(document, _Answer)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise FormatError(f"{path}, answer {number} is no completion: {error}.") from error


def _part(where: str, choice: _Choice) -> Sequences:
    if choice.routed_experts is None:
        raise FormatError(
            f"{where} has no routed_experts; start the server with --enable-return-routed-experts."
        )
    try:
        data = binascii.a2b_base64(choice.routed_experts, strict_mode=True)
    except ValueError as error:
        raise FormatError(f"{where}: routed_experts is not base64.") from error
    if not data.startswith(b"\x93NUMPY"):
        raise FormatError(
            f"{where}: routed_experts has no .npy header, so its axes are not known. Save it as "
            "numpy.savez(FILE, topk_ids=..., seq_lens=...)."
        )
    ids = load_npy(data, where)
    if ids.ndim != 3 or ids.dtype.kind == "f":
        raise FormatError(
            f"{where}: routed_experts has shape {ids.shape} and type {ids.dtype}; expected ids "
            "(tokens, layers, top_k)."
        )
    return Sequences("", ids, np.array([len(ids)]))


FORMAT = TraceFormat(
    name="vllm-completions",
    summary="answers of a vLLM server with routed_experts (.json, .jsonl)",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "window_tokens"}),
)
