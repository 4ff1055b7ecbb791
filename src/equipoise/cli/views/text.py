"""Words for people at a terminal."""

from __future__ import annotations

import re

_OPTIONS = {  # what the library calls a parameter: the option that sets it
    "num_ranks": "--ranks",
    "num_experts": "--experts",
    "num_redundant": "--redundant",
    "num_hidden_layers": "--hidden-layers",
    "layer_ids": "--layers",
    "model_key": "--model-key",
    "ranks_per_node": "--ranks-per-node",
    "window_tokens": "--window-tokens",
    "allow_pickle": "--allow-pickle",
    "mirrored": "--mirrored",
    "the cost": "--rank-cost",
}
_ADVICE = re.compile(r"\b(?:[Gg]ive|leave|correct|set by)\b[^.;]*")
_QUOTED = re.compile(r"'[^']{121,}'|\"[^\"]{121,}\"")
_UNBROKEN = re.compile(r"\S{401,}")  # longer than the path of most files
_PARAMETER = re.compile(rf"\b(?:{'|'.join(_OPTIONS)})\b")


def in_options(message: str) -> str:
    """A message of the library with advice such as "give num_ranks" put as "give --ranks"."""
    return _ADVICE.sub(
        lambda advice: _PARAMETER.sub(lambda name: _OPTIONS[name[0]], advice[0]), message
    )


def shortened(message: str) -> str:
    """A message that quotes no more than a line of what came."""
    message = _QUOTED.sub(lambda found: f"{found[0][:100]}...{found[0][0]}", message)
    return _UNBROKEN.sub(lambda found: f"{found[0][:200]}...", message)


def one_line(words: str) -> str:
    """Words, of a file perhaps, on one line, without anything that a terminal would obey."""
    line = " ".join(words.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
