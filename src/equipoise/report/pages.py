"""The documentation as it was installed: pages by name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from equipoise.errors import EquipoiseError

KINDS = {
    "tutorial": "Lessons",
    "howto": "Tasks",
    "reference": "Reference",
    "explanation": "How and why",
    "results": "Measurements",
    "dev": "Working on equipoise",
}
"""Folders of pages, and what is in them."""

_PACKAGE = Path(__file__).parents[1]
_MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of the documentation.

    Parameters
    ----------
    name
        Name by which it is asked for: its file's, without the ending.
    kind
        A key of ``KINDS``.
    path
        Its file.
    """

    name: str
    kind: str
    path: Path

    @property
    def text(self) -> str:
        """All of it, in Markdown."""
        return self.path.read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """Its first heading."""
        heading = re.search(r"(?m)^# (.+)$", self.text)
        return heading[1].replace("`", "") if heading else self.name


def pages() -> dict[str, Page]:
    """Return every page by name, kind by kind.

    Raises
    ------
    EquipoiseError
        The package was installed without its documentation.
    """
    folder = _folder()
    return {
        path.stem: Page(name=path.stem, kind=kind, path=path)
        for kind in KINDS
        for path in sorted((folder / kind).rglob("*.md"))
    }


def page(topic: str) -> Page:
    """Return the page of this name.

    Raises
    ------
    EquipoiseError
        There is none. The message names the pages that speak of the topic.
    """
    known = pages()
    name = topic.lower().removesuffix(".md")
    if name in known:
        return known[name]
    if said := _about(topic, known):
        where = f"the word is in {', '.join(said)}. Read it: equipoise explain {said[0]}."
    elif near := difflib.get_close_matches(name, known, n=3, cutoff=0.7):
        where = f"did you mean {' or '.join(near)}?"
    else:
        where = "equipoise explain lists all."
    raise EquipoiseError(f"No page is called {topic!r}; {where}")


def _about(topic: str, known: dict[str, Page]) -> list[str]:
    """Pages that say a word: first those whose title says it, then those that say it most often."""
    word = re.compile(rf"(?i)\b{re.escape(topic)}\b")
    said = {name: len(word.findall(one.text)) for name, one in known.items()}
    most = sorted(
        (name for name in said if said[name]),
        key=lambda name: (not word.search(known[name].title), -said[name]),
    )
    return most[:_MOST_NAMED]


def _folder() -> Path:
    """Return the folder of the pages: in the package, or next to it in a checkout."""
    for folder in (_PACKAGE / "docs", _PACKAGE.parents[1] / "docs"):
        if (folder / "tutorial").is_dir():
            return folder
    raise EquipoiseError(
        "The pages of the documentation are not installed; install equipoise from its wheel."
    )
