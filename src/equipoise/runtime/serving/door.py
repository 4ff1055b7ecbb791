"""Admission of requests: only those that the model can serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from equipoise.checks import brief, check_count
from equipoise.control.findings import said
from equipoise.errors import EquipoiseError
from equipoise.runtime.serving.requests import Request, Source


class Door:
    """Takes requests from a source and checks them before anything is computed.

    A token id that the model does not have would break the forward pass of all ranks.

    Parameters
    ----------
    source
        Source of the requests. If it raises, that request cannot be served.
    vocab_size
        Number of token ids of the model, which start at 0.
    most_tokens
        Longest sequence that the model is made for, prompt and answer together, in tokens.
    new_tokens
        Number of tokens of every answer.

    Raises
    ------
    EquipoiseError
        ``new_tokens`` leaves no room for a prompt.
    """

    def __init__(
        self, source: Source, *, vocab_size: int, most_tokens: int, new_tokens: int
    ) -> None:
        check_count("new_tokens", new_tokens)
        if new_tokens >= most_tokens:
            raise EquipoiseError(
                f"new_tokens is {new_tokens}; the model is made for {most_tokens} tokens in all, "
                "so no prompt fits. Ask for fewer."
            )
        self._source = source
        self._vocab_size, self._most_tokens = vocab_size, most_tokens
        self._new_tokens = new_tokens

    def admit(self, number: int) -> Request | str:
        """The request of a number, with a tuple as its prompt; or why it cannot be served."""
        try:
            request: Any = self._source(number)
        except Exception as error:  # only this request fails, not the others
            return f"The source could not make request {number}: {said(error)}"
        if not isinstance(request, Request):
            return f"The source made {brief(request)}; expected a Request."
        if request.number != number:
            return f"The source made request {brief(request.number)} where {number} was asked for."
        domain: Any = request.domain
        if not isinstance(domain, str):
            return f"The domain is {brief(domain)}; expected text."
        wrong = self._refusal(request.prompt)
        return wrong or replace(request, prompt=tuple(int(token) for token in request.prompt))

    def _refusal(self, prompt: Any) -> str:
        """Return what is wrong with a prompt; an empty text if nothing is."""
        if not _is_row(prompt):
            return f"The prompt is {brief(prompt)}; expected a tuple of token ids."
        if not len(prompt):
            return "The prompt is empty; expected at least one token id."
        if len(prompt) + self._new_tokens > self._most_tokens:
            return (
                f"The prompt has {len(prompt)} tokens; with {self._new_tokens} new ones, at most "
                f"{self._most_tokens - self._new_tokens} fit the model."
            )
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                return f"The prompt contains {brief(token)}; expected token ids, whole numbers."
            if not 0 <= token < self._vocab_size:
                return (
                    f"The prompt has token id {brief(token)}; the model has ids from 0 to "
                    f"{self._vocab_size - 1}."
                )
        return ""


def _is_row(prompt: Any) -> bool:
    """Whether a prompt is a sequence, but not a text."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)
