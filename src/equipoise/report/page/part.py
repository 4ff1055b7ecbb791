"""The common fields of figures and tables of a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A figure or a table under its heading.

    Parameters
    ----------
    name
        Name of the place in the page, and of saved files.
    title
        Title, a few words.
    says
        Sentence on how to read it.
    """

    name: str
    title: str
    says: str
