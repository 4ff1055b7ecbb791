"""``equipoise explain``: a page of the documentation, in the terminal."""

from __future__ import annotations

from itertools import groupby

from equipoise.cli.options.output import Json
from equipoise.cli.views.console import print_json, stdout
from equipoise.report.pages import KINDS, Page, page, pages


def explain(topic: str | None = None, /, *, json: Json = False) -> int:
    """Show a page of the documentation; without a topic, list all pages.

    On a terminal the page is laid out; in a pipe it is the Markdown text.

    For example:

        equipoise explain
        equipoise explain forecast
        equipoise explain planners --json

    Parameters
    ----------
    topic
        Name of the page, such as forecast, or a word that pages are searched for.
    """
    if topic is None:
        return _list(json)
    found = page(topic)
    console = stdout()
    if json:
        print_json({**_row(found), "text": found.text})
    elif console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(found.text, hyperlinks=False))
    else:
        print(found.text, end="")
    return 0


def _list(json: bool) -> int:
    known = list(pages().values())
    if json:
        print_json({"pages": [_row(one) for one in known]})
        return 0
    console = stdout()
    width = max(len(one.name) for one in known)
    for kind, some in groupby(known, key=lambda one: one.kind):
        console.print(KINDS[kind], style="bold")
        for one in some:
            console.print(f"  {one.name:<{width}}  {one.title}")
    return 0


def _row(one: Page) -> dict[str, str]:
    return {"page": one.name, "kind": one.kind, "title": one.title, "path": str(one.path)}
