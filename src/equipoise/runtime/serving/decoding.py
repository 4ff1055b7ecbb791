"""Requests decoded together on one rank, in forward passes that can be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.checks import check_count
from equipoise.errors import EquipoiseError
from equipoise.runtime.moe.model import ExpertParallelModel
from equipoise.runtime.serving.requests import Request


class Batch:
    """Requests that this rank continues greedily, all by the same number of tokens.

    A forward pass that fails, for example because another rank dies, leaves the batch as it was:
    call ``advance`` again, also with the model on another process group, to continue from there.

    Parameters
    ----------
    requests
        Requests of the batch, at least one.
    new_tokens
        Number of tokens to generate for each of them.
    """

    def __init__(self, requests: Sequence[Request], new_tokens: int) -> None:
        check_count("new_tokens", new_tokens)
        longest = max(len(request.prompt) for request in requests)
        if min(len(request.prompt) for request in requests) < 1:
            raise EquipoiseError("A request has no prompt; expected at least one token.")
        self.requests = tuple(requests)
        self.new_tokens = new_tokens
        self._new = torch.zeros(len(requests), longest, dtype=torch.long)
        self._mask = torch.zeros_like(self._new)
        for row, request in enumerate(requests):
            start = longest - len(request.prompt)
            self._new[row, start:] = torch.tensor(request.prompt)
            self._mask[row, start:] = 1
        self._cache: Any = None
        self._tokens: list[Tensor] = []

    @property
    def done(self) -> bool:
        """Whether all tokens were generated."""
        return len(self._tokens) >= self.new_tokens

    @property
    def tokens(self) -> list[list[int]]:
        """Tokens generated so far, one list per request."""
        if not self._tokens:
            return [[] for _ in self.requests]
        rows: list[list[int]] = torch.cat(self._tokens, dim=1).tolist()
        return rows

    def advance(self, model: ExpertParallelModel) -> int:
        """Run one forward pass with all ranks and take the next token of each request.

        Returns
        -------
        Number of tokens that were generated.
        """
        device = next(model.model.parameters()).device
        seen = self._mask.shape[1] - self._new.shape[1]
        windows = _windows(self._cache)
        try:
            scores, self._cache = model.step(
                self._new.to(device), self._mask.to(device), self._cache
            )
        except BaseException:
            _rewind(self._cache, seen, windows)
            raise
        self._new = scores.argmax(dim=-1, keepdim=True).cpu()
        self._mask = torch.cat([self._mask, torch.ones_like(self._new)], dim=1)
        self._tokens.append(self._new)
        return len(self._new)


def idle_step(model: ExpertParallelModel) -> None:
    """Take part in a forward pass with nothing to serve, while other ranks have requests."""
    device = next(model.model.parameters()).device
    nothing = torch.zeros((0, 1), dtype=torch.long, device=device)
    model.step(nothing, nothing)


def _windows(cache: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return the content of the cache's layers that keep only a window of the last tokens.

    A pass puts new tensors in the place of these; it does not change them.
    """
    layers = cache.layers if cache is not None else ()
    return [(layer, dict(vars(layer))) for layer in layers if layer.is_sliding]


def _rewind(cache: Any, length: int, windows: list[tuple[Any, dict[str, Any]]]) -> None:
    """Remove from the cache what a broken pass has added, perhaps in some layers only.

    We do not use ``crop`` of transformers: it assumes that all layers are equally long, and its
    argument is a length in some releases and an amount to remove in others.
    """
    for layer in cache.layers if cache is not None else ():
        if layer.is_initialized:
            layer.keys = layer.keys[..., :length, :]
            layer.values = layer.values[..., :length, :]
    for layer, held in windows:  # cutting does not bring back what left the window
        vars(layer).update(held)
