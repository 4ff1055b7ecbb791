"""Rows (request, layer, experts) that are combined to the tokens of requests."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import MAX_EXPERTS, refuse_oversize
from equipoise.engines._shared.requests import Request, place_in_run
from equipoise.errors import EquipoiseError
from equipoise.invariants import NO_CHOICE
from equipoise.layer_ids import MAX_LAYER

_WARM_UP = 16  # number of equal tokens at the start of a log that mark a warm-up
_MAX_CHOICES = 1024
_MAX_TOKEN = 1 << 48


@dataclass(eq=False)
class TokenRows:
    """The columns of a table of choices, in the order of its rows.

    The n-th row of a request and a layer is the request's n-th token.
    """

    names: dict[str, int] = field(default_factory=dict)  # requests by first occurrence
    request: array[int] = field(default_factory=lambda: array("q"))
    layer: array[int] = field(default_factory=lambda: array("q"))
    token: array[int] = field(default_factory=lambda: array("q"))
    experts: array[int] = field(default_factory=lambda: array("q"))
    top_k: int = 0

    def add(self, request: str, layer: int, token: int, experts: Sequence[int]) -> None:
        """Append a row.

        Parameters
        ----------
        token
            Number of the token, if rows have one, to distinguish passes; else -1.

        Raises
        ------
        EquipoiseError
            Impossible numbers, or another number of experts than in the rows before.
        """
        if not 0 <= layer <= MAX_LAYER or not -1 <= token < _MAX_TOKEN:
            raise EquipoiseError(f"Layer {layer}, token {token}: expected numbers from 0.")
        if not experts or len(experts) > _MAX_CHOICES:
            raise EquipoiseError(f"A token has {len(experts)} experts; expected some.")
        if min(experts) < NO_CHOICE or max(experts) >= MAX_EXPERTS:
            raise EquipoiseError(f"Experts {min(experts)} to {max(experts)} are not expert ids.")
        if self.top_k not in (0, len(experts)):
            raise EquipoiseError(
                f"A token has {len(experts)} experts, those before have {self.top_k}; expected "
                "one top-k."
            )
        self.top_k = len(experts)
        self.request.append(self.names.setdefault(request, len(self.names)))
        self.layer.append(layer)
        self.token.append(token)
        self.experts.extend(experts)

    def requests(self, file_bytes: int, notes: list[str]) -> tuple[list[Request], tuple[int, ...]]:
        """Return the requests (or their passes, if token numbers restart) and their layers.

        Raises
        ------
        EquipoiseError
            No rows, layers with different tokens, or only a warm-up.
        """
        if not self.request:
            raise EquipoiseError("There is no row of choices; expected at least one.")
        layers, layer = np.unique(np.asarray(self.layer), return_inverse=True)
        request = np.asarray(self.request)
        order = np.lexsort((layer, request))
        place = np.empty_like(request)
        place[order] = place_in_run((request * len(layers) + layer)[order])
        lengths = np.zeros(len(self.names), dtype=np.int64)
        np.maximum.at(lengths, request, place + 1)
        row = place + (np.cumsum(lengths) - lengths)[request]
        shape = (int(lengths.sum()), len(layers), self.top_k)
        refuse_oversize(shape, 4, "Choices (tokens, layers, top_k)", file_bytes)
        ids = np.full(shape, NO_CHOICE, dtype=np.int32)
        ids[row, layer] = np.asarray(self.experts).reshape(-1, self.top_k)
        token = self._tokens(row, shape[0])
        first = _opening(ids, notes)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        again = (owner[1:] != owner[:-1]) | ((token[1:] <= token[:-1]) & (token[1:] >= 0))
        starts = np.union1d([first], np.flatnonzero(again) + 1)
        starts = starts[starts >= first]
        names = list(self.names) if len(self.names) > 1 else [""]
        parts = np.split(ids, starts)[1:]
        passes = len(parts) - len(np.unique(owner[first:]))
        if passes:
            notes.append(
                f"Token numbers start again {passes} times within a request: each time was taken "
                "as a new pass of the model, a step of its own."
            )
        found = [Request(names[owner[s]], p) for s, p in zip(starts, parts, strict=True)]
        return found, tuple(layers.tolist())

    def _tokens(self, row: NDArray[np.int64], num_tokens: int) -> NDArray[np.int64]:
        """Return the number of each token; refuse layers that disagree."""
        given = np.asarray(self.token)
        token = np.full(num_tokens, -1, dtype=np.int64)
        token[row] = given
        if (token[row] != given).any():
            place = int(np.flatnonzero(token[row] != given)[0])
            raise EquipoiseError(
                f"Row {place} (layer {self.layer[place]}) is token {given[place]}, other layers "
                f"have token {token[row[place]]} there: layers do not list the same tokens in the "
                "same order."
            )
        return token


def _opening(ids: NDArray[np.int32], notes: list[str]) -> int:
    """Count the tokens of a warm-up at the start, whose choices are all the same."""
    differs = np.flatnonzero((ids != ids[0]).any(axis=(1, 2)))
    same = int(differs[0]) if len(differs) else len(ids)
    if same < _WARM_UP:
        return 0
    if same == len(ids):
        raise EquipoiseError(
            f"All {same} tokens have the same choices, as in the warm-up of an engine: no request "
            "was recorded after it."
        )
    notes.append(
        f"The first {same} tokens have the same choices, as the dummies of an engine's warm-up; "
        "they were left out."
    )
    return same
