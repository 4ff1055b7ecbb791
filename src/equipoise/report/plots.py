"""Plots of a summary with matplotlib, which is imported when the first is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from equipoise.errors import EquipoiseError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from equipoise.report.summary import TraceSummary

_BLUE, _RED, _GREY = "#33658a", "#c8553d", "#9aa5b1"


@dataclass(frozen=True, repr=False)
class Plots:
    """The plots of a summary: ``summary.plot.heat()`` and so on.

    Every plot is drawn into the given axes, or into a new figure, and returns the axes, so that a
    title or a limit can be set afterwards. All raise ``EquipoiseError`` without matplotlib.
    """

    summary: TraceSummary

    def __repr__(self) -> str:
        return "Plots(heat(), layers(), experts(), drift())"

    def heat(self, ax: Axes | None = None) -> Axes:
        """Plot the load of every rank over the mean, by layer: the 95th percentile over steps.

        Raises
        ------
        EquipoiseError
            A summary without ranks, or matplotlib is missing.
        """
        if not self.summary.rank_p95:
            raise EquipoiseError(
                "This summary has no ranks; give num_ranks to summarise, or plot experts()."
            )
        axes = _axes(ax)
        image = axes.imshow(np.array(self.summary.rank_p95), aspect="auto", cmap="Oranges")
        axes.figure.colorbar(image, ax=axes, label="load over mean, p95 over steps")
        rows = range(0, len(self.summary.layers), max(1, len(self.summary.layers) // 16))
        axes.set_yticks(rows, [str(self.summary.layers[row].layer) for row in rows])
        axes.set(xlabel="rank", ylabel="layer")
        return axes

    def layers(self, ax: Axes | None = None) -> Axes:
        """Plot the imbalance of every layer, over the band that chance explains.

        The band is the noise floor plus or minus two standard deviations of a step. Without ranks,
        the imbalance of experts is shown.
        """
        axes = _axes(ax)
        layers = self.summary.layers
        numbers = [x.layer for x in layers]
        if self.summary.balance is None:
            axes.plot(numbers, [x.expert_imbalance for x in layers], "o", color=_RED)
            axes.set(xlabel="layer", ylabel="hottest expert over the mean")
            return axes
        known = [(x.layer, x.balance) for x in layers if x.balance is not None]
        numbers = [number for number, _ in known]
        floor = np.array([b.floor for _, b in known])
        spread = np.array([b.floor_std for _, b in known])
        axes.fill_between(
            numbers, floor, floor + 2 * spread, color=_GREY, alpha=0.5, label="chance"
        )
        axes.plot(numbers, [b.p95 for _, b in known], color=_RED, linewidth=1, label="p95")
        axes.plot(numbers, [b.imbalance for _, b in known], "o", color=_BLUE, label="mean")
        axes.set(xlabel="layer", ylabel="busiest rank over the mean")
        axes.legend(frameon=False)
        return axes

    def experts(self, ax: Axes | None = None) -> Axes:
        """Plot experts from hottest to coldest: median layer, 8 of 10 layers, steepest layer."""
        axes = _axes(ax)
        curves = self.summary.expert_curves
        place = np.arange(1, len(curves.median) + 1)
        axes.fill_between(
            place, curves.low, curves.high, color=_GREY, alpha=0.5, label="8 of 10 layers"
        )
        axes.plot(place, curves.median, color=_BLUE, label="median layer")
        axes.plot(place, curves.steepest, color=_RED, label=f"layer {curves.steepest_layer}")
        axes.axhline(1, color=_GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="experts, hottest first", ylabel="load over mean", xscale="log")
        axes.legend(frameon=False)
        return axes

    def drift(self, ax: Axes | None = None) -> Axes:
        """Plot the similarity of loads: between windows, within labels and between labels."""
        axes = _axes(ax)
        drift = self.summary.drift
        bars = {"next window": drift.correlation}
        for name, x in drift.labels.items():
            bars |= {f"within one {name}": x.within, f"between two {name}s": x.between}
        known = {name: value for name, value in bars.items() if value is not None}
        axes.barh(list(known), list(known.values()), color=_BLUE)
        axes.invert_yaxis()
        axes.set(
            xlabel="correlation of expert loads",
            xlim=(min([0.0, *known.values()]), 1),
            title=f"windows of {drift.window_steps} steps",
        )
        return axes


def _axes(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure, which a notebook shows by itself."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise EquipoiseError(
            "Plots need matplotlib, which is not installed; run: pip install 'equipoise[plot]'."
        ) from error
    return pyplot.subplots(layout="constrained")[1]
