"""Vega-Lite: its scripts for the page, and pictures of single figures.

Both come from ``vl-convert``, of the extra ``page``, which holds the libraries themselves, so that
nothing is fetched: neither when a page is made nor when it is opened.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from equipoise.errors import EquipoiseError
from equipoise.report.page.figures import Figure

PALETTES = {
    "light": {
        "ink": "#1d2129", "soft": "#5b6370", "rule": "#dcd8ce", "panel": "#ffffff",
        "band": "#d3d6da", "cold": "#2f6fb3", "cool": "#b5cde3", "even": "#f1eee6",
        "warm": "#f6cfae", "hot": "#ea7a2f", "glow": "#c93a25", "fire": "#7d1226",
        "before": "#c9551a", "after": "#12766a", "third": "#5a55b5", "fourth": "#a3366f",
        "fifth": "#7a6a12", "sixth": "#4a4f57",
    },
    "dark": {
        "ink": "#e7e9ec", "soft": "#9aa4b1", "rule": "#3a424c", "panel": "#1b1f25",
        "band": "#434b56", "cold": "#3f8fd8", "cool": "#30557a", "even": "#262c34",
        "warm": "#6b4630", "hot": "#e2702d", "glow": "#f5a13c", "fire": "#ffe08a",
        "before": "#f08a4b", "after": "#4cc3b0", "third": "#a9a4f2", "fourth": "#e58abb",
        "fifth": "#d3bf4e", "sixth": "#b9c0ca",
    },
}  # fmt: skip
"""The colours of the names in specifications, by theme."""

CONFIG: dict[str, Any] = {
    "background": "$panel",
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "$soft", "titleColor": "$soft", "titleFontWeight": "normal",
        "gridColor": "$rule", "domainColor": "$rule", "tickColor": "$rule",
        "labelFontSize": 11, "titleFontSize": 11.5,
    },
    "legend": {
        "labelColor": "$soft", "titleColor": "$soft", "titleFontWeight": "normal",
        "labelFontSize": 11, "titleFontSize": 11, "symbolOpacity": 1,
    },
}  # fmt: skip

FORMATS = ("png", "pdf", "svg")
_WIDTH = 900  # pixels of a picture
_DATA = ("values", "domain")  # keys of a specification under which words of files stand


def checklibrary() -> None:
    """Raise ``EquipoiseError`` unless the plotting library is there."""
    library()


@cache
def scripts() -> str:
    """The scripts of Vega, Vega-Lite and Vega-Embed, to stand in a page."""
    bundle: str = library().javascript_bundle()
    return bundle.replace("</script", r"<\/script")


def picture(figure: Figure, kind: str) -> bytes:
    """One figure as the bytes of a PNG, PDF or SVG file, in the light theme."""
    spec = painted({"config": CONFIG, **figure.spec, "width": _WIDTH, "title": figure.title})
    convert = getattr(library(), f"vegalite_to_{kind}")
    made = convert(spec, scale=2) if kind == "png" else convert(spec)
    return made.encode() if isinstance(made, str) else bytes(made)


def painted(spec: Any, theme: str = "light") -> Any:
    """A specification with the colours of a theme; what stands in data stays as it is."""
    if isinstance(spec, dict):
        return {k: v if k in _DATA else painted(v, theme) for k, v in spec.items()}
    if isinstance(spec, list):
        return [painted(v, theme) for v in spec]
    if isinstance(spec, str) and spec.startswith("$"):
        return PALETTES[theme].get(spec[1:], spec)
    return spec


@cache
def library() -> ModuleType:
    """The plotting library; ``EquipoiseError`` if it is not installed."""
    try:
        import vl_convert  # 80 MB, and only pages need it
    except ImportError:
        raise EquipoiseError(
            "A page needs the plotting library vl-convert; install equipoise[page]."
        ) from None
    return vl_convert
