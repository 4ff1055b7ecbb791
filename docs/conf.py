"""The site: `make site` builds it into `site/`, and any warning fails."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from equipoise.report.pages import KINDS
from equipoise.version import __version__

DOCS = Path(__file__).parent

project = "equipoise"
author = "The equipoise authors"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
exclude_patterns = ["generate.py"]
html_theme = "furo"
html_title = f"equipoise {__version__}"
html_show_sourcelink = False
html_copy_source = False
myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them
suppress_warnings = ["myst.header"]  # generated pages skip a level


def _drop_links_out(app: Sphinx, name: str, source: list[str]) -> None:
    """Leave only the words of links to files that the site does not have."""
    folder = Path(app.srcdir, name).parent

    def words(link: re.Match[str]) -> str:
        target = (folder / link[2].partition("#")[0]).resolve()
        return link[0] if "://" in link[2] or target.is_relative_to(DOCS) else link[1]

    source[0] = re.sub(r"\[([^\]]+)\]\(([^)\s#][^)\s]*)\)", words, source[0])


def _add_contents(_app: Sphinx, name: str, source: list[str]) -> None:
    """Give the front page the list of all pages, which a reader of the files does not need."""
    if name != root_doc:
        return
    for kind, title in KINDS.items():
        pages = sorted(path.relative_to(DOCS) for path in (DOCS / kind).rglob("*.md"))
        listed = "\n".join(page.with_suffix("").as_posix() for page in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


def _add_index(app: Sphinx, error: Exception | None) -> None:
    """Let the folder open with the front page."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Register what the site needs of its own."""
    app.connect("source-read", _drop_links_out)
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _add_index)
