"""Prompts of several domains, made from a seed, and requests whose domain changes with time.

The texts are short and of the kinds that the small model in ``models/`` was trained on; its router
sends each kind to other experts.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from equipoise.errors import EquipoiseError, FormatError
from equipoise.runtime.serving.requests import Request

_WORDS = (
    "amber", "anchor", "basket", "bridge", "candle", "canvas", "copper", "feather", "garden",
    "harbour", "ladder", "lantern", "marble", "meadow", "mirror", "needle", "orchard", "paper",
    "pebble", "ribbon", "river", "saddle", "shutter", "signal", "timber", "valley", "window",
)  # fmt: skip

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "code": (
        "class {Word}:\n    def __init__(self, {word}, {word}=None):\n"
        "        self.{word} = {word}\n        self._{word} = []\n",
        "def {word}_{word}(self, {word}):\n    if {word} is None:\n        return {number}\n"
        "    for {word} in self.{word}:\n",
        "import {word}\nfrom {word} import {word}\n\n{WORD} = {number}\n\n"
        "def {word}({word}, {word}):\n",
        "    try:\n        {word} = self.{word}({word}, {number})\n"
        "    except {Word}Error as error:\n        raise {Word}Error({word}) from error\n",
    ),
    "docs": (
        "Return the {word} of a {word}, or None where there is no {word}. The {word} is looked up "
        "by its name, and a {word} that was closed before is opened again.",
        "A {word} is called once for each {word} that is found. If it returns a true value, the "
        "{word} is skipped, otherwise the rest of the {word} is read.",
        "This module helps programs to work with a {word}. It gives access to the {word} and to "
        "the {word}, and it can be used without knowing how a {word} is stored.",
        "The optional argument {word} is the {word} that will be used when the {word} has none of "
        "its own. Note that a {word} may be shared, so that changing it is not safe.",
    ),
    "tables": (
        "item,{word},{word},total\n{word},{number},{number},{number}\n{word},{number},{number},"
        "{number}\n{word},{number},{number},{number}\n",
        "day,lowest,highest\n2021-03-01,{number}.4,{number}.1\n2021-03-02,{number}.9,{number}.3\n"
        "2021-03-03,{number}.2,{number}.8\n",
        "  name   {word}   {word}\n------  -------  -------\n{word}   {number}.25   {number}.50\n"
        "{word}   {number}.75   {number}.00\n",
    ),
    "maths": (
        "{number} + {number} = {number}\n{number} + {number} = {number}\n{number} + {number} =",
        "{number} * {number} = {number}\n{number} * {number} = {number}\n{number} * {number} =",
        "3, 6, 9, 12, 15\n{number}, {number}, {number}, {number}\n{number}, {number},",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """Prompts by number, from domains whose shares change at given times.

    Parameters
    ----------
    seed
        Random seed; equal seeds give equal prompts.
    schedule
        Times, and the weight of each domain from then on; times ascend from 0. The caller chooses
        the unit of time.

    Raises
    ------
    EquipoiseError
        The schedule does not begin at 0 or goes back in time; a domain is unknown; weights are
        negative or all 0.
    """

    seed: int
    schedule: Sequence[tuple[float, Mapping[str, float]]]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.schedule]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise EquipoiseError(
                f"The schedule has the times {starts}; expected 0, then ascending times."
            )
        for _, weights in self.schedule:
            _check(weights)

    def at(self, number: int, moment: float) -> tuple[str, str]:
        """Domain and text of a prompt by its number and the time at which it is asked for."""
        rng = random.Random(f"{self.seed} {number}")
        weights = [w for start, w in self.schedule if start <= max(moment, 0.0)][-1]
        (domain,) = rng.choices(list(weights), list(weights.values()))
        return domain, _text(domain, rng)


@dataclass(frozen=True)
class Stream:
    """Endless requests for ``Options.source``; the time of asking decides the domain of each.

    So a request that is asked for again, because the process that had it is gone, may then be of
    another domain.

    Parameters
    ----------
    prompts
        Prompts, with a schedule in seconds since the first request was asked for.
    tokenizer
        Path of a ``tokenizer.json``.

    Raises
    ------
    FormatError
        The file is not a tokenizer; raised when the first request is asked for.
    """

    prompts: Prompts
    tokenizer: Path

    def __call__(self, number: int) -> Request:
        """The request of a number, from a domain by the present time."""
        domain, text = self.prompts.at(number, time.monotonic() - self._began)
        return Request(number, tuple(self._tokenizer.encode(text).ids), domain)

    def check(self, vocab_size: int) -> None:
        """Make sure that the tokenizer fits a model with this number of token ids.

        Raises
        ------
        FormatError
            The file is not a tokenizer.
        EquipoiseError
            The tokenizer has more.
        """
        tokens = _read_tokenizer(self.tokenizer).get_vocab_size()
        if tokens > vocab_size:
            raise EquipoiseError(
                f"{self.tokenizer} has {tokens} tokens, the model has {vocab_size}; give the "
                "tokenizer that the model was trained with."
            )

    @cached_property
    def _began(self) -> float:
        return time.monotonic()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return _read_tokenizer(self.tokenizer)


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise FormatError(f"{path} cannot be read as a tokenizer: {error}.") from error


def _check(weights: Mapping[str, float]) -> None:
    unknown = sorted(set(weights) - set(TEMPLATES))
    if unknown:
        raise EquipoiseError(
            f"There are no prompts of the domain {unknown[0]!r}; there are {', '.join(TEMPLATES)}."
        )
    values = list(weights.values())
    if not all(math.isfinite(w) and w >= 0 for w in values) or not sum(values) > 0:
        raise EquipoiseError(
            f"The weights of domains are {dict(weights)}; expected shares above 0."
        )


def _text(domain: str, rng: random.Random) -> str:
    """One of the domain's templates, with words and numbers in it."""

    def fill(slot: re.Match[str]) -> str:
        if slot[0] == "{number}":
            return str(rng.randint(2, 99))
        word = rng.choice(_WORDS)
        return {"{word}": word, "{Word}": word.capitalize(), "{WORD}": word.upper()}[slot[0]]

    return re.sub(r"{\w+}", fill, rng.choice(TEMPLATES[domain]))
