"""Words for people at a terminal."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"'[^']{121,}'|\"[^\"]{121,}\"")
_UNBROKEN = re.compile(r"\S{401,}")  # longer than the path of most files


def shortened(message: str) -> str:
    """A message that quotes no more than a line of what came."""
    message = _QUOTED.sub(lambda found: f"{found[0][:100]}...{found[0][0]}", message)
    return _UNBROKEN.sub(lambda found: f"{found[0][:200]}...", message)


def one_line(words: str) -> str:
    """Words, of a file perhaps, on one line, without anything that a terminal would obey."""
    line = " ".join(words.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
