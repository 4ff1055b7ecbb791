"""Logged answers of a server that returns the routing of its tokens, ``routed_experts``.

``equipoise explain traces-sglang-vllm`` tells where each engine puts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import naming
from equipoise.engines._shared.json_lines import json_object, read_lines
from equipoise.engines._shared.requests import Request, trace_of_requests
from equipoise.engines.formats import Progress, TraceFormat, TraceOptions
from equipoise.engines.replay.encoding import decode_choices, refuse_cut_choices
from equipoise.errors import FormatError, Message, argument
from equipoise.json_text import parse_json, read_json
from equipoise.trace import Provenance, Trace

KEY = "routed_experts"
SWITCH = (
    "Start the server with --enable-return-routed-experts; SGLang also wants "
    "return_routed_experts in each request."
)
_WRAPPERS = ("response", "body")  # of logs that keep the request too, and of batch files
_LISTS = ("choices", "outputs")
_MOE_ONLY = "additional_generation_outputs"  # TensorRT-LLM, whose tensors have MoE layers only
_HOLDERS = ("meta_info", "sglext", _MOE_ONLY)
_STREAM = b"data:"
_HEAD_BYTES = 1 << 20
_MAX_WRAPPED = 4
_NAME_CHARACTERS = 64


def matches(path: Path) -> bool:
    """Whether a file of JSON, or of a logged stream, names ``routed_experts`` near its start.

    Answers without it are recognised too, so that the error can say how to switch it on.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    keys = (f'"{KEY}"'.encode(), b'"choices"')
    return head.lstrip().startswith((b"{", b"[", _STREAM)) and any(key in head for key in keys)


def read(path: Path, options: TraceOptions, progress: Progress) -> Trace:
    """Read the answers of a file: one document, a list, one per line, or chunks of streams.

    Raises
    ------
    FormatError
        The JSON is damaged, there is no routing, or there is routing of different models.
    """
    notes: list[str] = []
    with naming(path):
        requests = list(requests_of(_documents(path, notes, progress), options, f"{path}", notes))
        if not requests:
            raise FormatError(f"{path}: no answer holds {KEY}. {SWITCH}")
        if options.top_k is not None:
            refuse_cut_choices(requests)
        provenance = Provenance("responses", str(path), tuple(notes))
        return trace_of_requests(requests, options, provenance)


def requests_of(
    documents: Iterable[Any], options: TraceOptions, where: str, notes: list[str]
) -> Iterator[Request]:
    """Yield the requests of answers in order; notes on them are appended to ``notes``.

    Consecutive documents of one id are chunks of one answer.
    """
    without, number, moe_only = 0, 0, False
    for number, chunks in enumerate(_answers(documents), start=1):
        answer = _Answer()
        for chunk in chunks:
            answer.add(chunk)
        found = list(answer.requests(options, f"{where}, answer {number}"))
        without += not found
        moe_only |= answer.moe_only
        yield from found
    if 0 < without < number:
        notes.append(f"{without} of {number} answers hold no {KEY}; they were left out.")
    if moe_only and options.layer_ids is None:
        notes.append(
            Message(
                "TensorRT-LLM returns MoE layers only, which are numbered from 0 here; give "
                f"{argument('layer_ids')} for the model's numbers, such as 3-60."
            )
        )


def _documents(path: Path, notes: list[str], progress: Progress) -> Iterator[Any]:
    """Yield each document of a file, whatever surrounds it."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"").lstrip()
    if not first.startswith(_STREAM) and not _is_whole(first):
        document = read_json(path)
        yield from document if isinstance(document, list) else [document]
        return
    for _, document in read_lines(path, _line, notes, progress):
        yield from document if isinstance(document, list) else [document]


def _is_whole(line: bytes) -> bool:
    try:
        parse_json(line, "")
    except FormatError:
        return False
    return True


def _line(line: bytes) -> Any:
    """Parse a line of JSON or of a stream; other fields of a stream, and its end, give nothing."""
    text = line.strip()
    if text.startswith(_STREAM):
        text = text.removeprefix(_STREAM).strip()
    elif text.startswith((b":", b"event:", b"id:", b"retry:")):
        return []
    if text == b"[DONE]":
        return []
    return parse_json(text, "not a JSON record") if text.startswith(b"[") else json_object(text)


def _answers(documents: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """Group documents into answers."""
    chunks: list[dict[str, Any]] = []
    for document in map(_unwrapped, documents):
        if chunks and (not _id(document) or _id(document) != _id(chunks[-1])):
            yield chunks
            chunks = []
        chunks.append(document)
    if chunks:
        yield chunks


def _unwrapped(document: Any) -> dict[str, Any]:
    """Return the answer within a record of request and response."""
    for _ in range(_MAX_WRAPPED):
        inner = [document[w] for w in _WRAPPERS if isinstance(document, dict) and w in document]
        if not inner:
            break
        document = inner[0]
    if not isinstance(document, dict):
        raise FormatError(f"An answer is {repr(document)[:40]}; expected a JSON object.")
    return document


def _id(document: dict[str, Any]) -> str:
    """Return the server's name of an answer; empty if it has none."""
    meta = document.get("meta_info")
    names = [document.get("id"), document.get("request_id")]
    names += [meta.get("id")] if isinstance(meta, dict) else []
    return next((f"{n}"[:_NAME_CHARACTERS] for n in names if isinstance(n, (str, int))), "")


@dataclass
class _Choice:
    """One generated sequence, as far as its chunks have been read."""

    values: list[Any] = field(default_factory=list)
    prompt: int | None = None
    generated: int | None = None


@dataclass
class _Answer:
    """An answer, put together from its chunks or read as a whole."""

    name: str = ""
    choices: dict[int, _Choice] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    moe_only: bool = False

    def add(self, document: dict[str, Any]) -> None:
        """Add a chunk."""
        self.name = _id(document)
        if isinstance(document.get("usage"), dict):
            self.usage = document["usage"]
        entries: list[Any] = []
        entries = next((e for n in _LISTS if isinstance(e := document.get(n), list)), entries)
        for place, entry in enumerate(entries):
            if isinstance(entry, dict):
                self._take(entry, entry.get("index", place), document)
        self._take(document, 0, document)

    def _take(self, entry: dict[str, Any], index: Any, document: dict[str, Any]) -> None:
        """Add one entry of a chunk, which belongs to one generated sequence."""
        choice = self.choices.setdefault(index if isinstance(index, int) else 0, _Choice())
        for holder in (entry, *(h for n in _HOLDERS if isinstance(h := entry.get(n), dict))):
            if holder.get(KEY) is not None:
                choice.values.append(holder[KEY])
                self.moe_only |= holder is entry.get(_MOE_ONLY)
        prompt = entry.get("prompt_token_ids", document.get("prompt_token_ids"))
        if isinstance(prompt, list):
            choice.prompt = len(prompt)
        if isinstance(entry.get("token_ids"), list):
            choice.generated = (choice.generated or 0) + len(entry["token_ids"])
        if isinstance(entry.get("meta_info"), dict):  # SGLang's, of the whole so far
            choice.prompt = _count(entry["meta_info"], "prompt_tokens")
            choice.generated = _count(entry["meta_info"], "completion_tokens")

    def requests(self, options: TraceOptions, where: str) -> Iterator[Request]:
        """Yield the sequences that have routing."""
        found = {index: choice for index, choice in self.choices.items() if choice.values}
        for index, choice in sorted(found.items()):
            prompt, generated = choice.prompt, choice.generated
            if len(self.choices) == 1:  # usage adds up several
                prompt = _count(self.usage, "prompt_tokens") if prompt is None else prompt
                if generated is None:
                    generated = _count(self.usage, "completion_tokens")
            total = None if prompt is None or generated is None else prompt + generated
            ids = _joined(
                [decode_choices(v, total and total - 1, options, where) for v in choice.values]
            )
            name = self.name if len(found) == 1 else f"{self.name}#{index}"
            yield Request(name, ids, _prompt_rows(len(ids), prompt, generated))


def _count(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _joined(parts: list[NDArray[np.integer]]) -> NDArray[np.integer]:
    """Join the rows of all chunks; a chunk may repeat the rows of those before it."""
    ids = parts[0]
    for part in parts[1:]:
        if part.shape[1:] != ids.shape[1:]:
            raise FormatError(f"Chunks of one answer have (layers, top_k) {part.shape[1:]}.")
        repeats = len(part) >= len(ids) and np.array_equal(part[: len(ids)], ids)
        ids = part if repeats else np.concatenate([ids, part])
    return ids


def _prompt_rows(num_rows: int, prompt: int | None, generated: int | None) -> int | None:
    """Return the number of rows of the prompt; a request may have asked for later rows only.

    The last generated token is never fed to the model, so it has no row, or an empty one.
    """
    if prompt is None or generated is None:
        return None
    skipped = max(0, prompt + generated - 1 - num_rows)
    return prompt - skipped if skipped <= prompt else None


FORMAT = TraceFormat(
    name="responses",
    summary="logged answers of vLLM, SGLang or TensorRT-LLM with routed_experts (.json, .jsonl)",
    matches=matches,
    read=read,
    options=frozenset({"num_experts", "layer_ids", "window_tokens", "top_k"}),
)
