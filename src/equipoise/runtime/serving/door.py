"""Which requests are let in: only those that the model can serve."""

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
    """Asks a source for requests and looks at what it gives, before anything is computed.

    A token id that the model does not have would end a forward pass, and with it all ranks' pass.

    Parameters
    ----------
    source
        Makes the requests. Whatever it raises is a request that cannot be served.
    vocab_size
        Token ids that the model has, from 0.
    most_tokens
        Tokens of one sequence that the model is made for, prompt and answer together.
    new_tokens
        Of every answer.

    Raises
    ------
    EquipoiseError
        So many new tokens that no prompt fits.
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
        """The request of a number, its prompt a tuple of ids; or why it cannot be served."""
        try:
            request: Any = self._source(number)
        except Exception as error:  # one request that cannot be made is not the others' trouble
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
        """What is wrong with a prompt; empty if nothing is."""
        if not _is_row(prompt):
            return f"The prompt is {brief(prompt)}; expected a tuple of token ids."
        if not len(prompt):
            return "The prompt is empty; expected at least one token id."
        if len(prompt) + self._new_tokens > self._most_tokens:
            return (
                f"The prompt has {len(prompt)} tokens; with {self._new_tokens} new ones, at most "
                f"{self._most_tokens - self._new_tokens} fit what the model is made for."
            )
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                return f"The prompt has {brief(token)} in it; expected whole token ids."
            if not 0 <= token < self._vocab_size:
                return (
                    f"The prompt has token id {brief(token)}; the model has ids from 0 to "
                    f"{self._vocab_size - 1}."
                )
        return ""


def _is_row(prompt: Any) -> bool:
    """Whether it is a sequence at all, and not one of characters."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)
