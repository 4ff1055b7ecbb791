"""The drawings of the lab, with its numbers and seeds.

``draw("step")`` shows one in a notebook; ``python plots.py FOLDER`` writes all of them as SVG.
Needs matplotlib.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import equipoise as eq
from equipoise.balance import expert_loads, imbalance
from equipoise.lab import add_copies, best_placement, device_loads, dropped_tokens, ep_step_time
from equipoise.noise import noise_floor
from equipoise.simulate.routers import (
    hot_expert,
    lognormal,
    sample_topk,
    sample_trace,
    steady,
    uniform,
    zipf,
)

# Equal input gives equal files: no random ids, no date, text left to the viewer's fonts.
mpl.rcParams.update(
    {
        "svg.hashsalt": "equipoise",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
)
METADATA = {"Date": None, "Creator": None}
BLUE, RED, GREY, GOLD = "#33658a", "#c8553d", "#9aa5b1", "#e0a458"
DEVICES = np.arange(8)


def routed(popularity: np.ndarray) -> np.ndarray:
    """Loads of 8 experts after 1,600 tokens, as in section 1."""
    return expert_loads(sample_topk(popularity[0], num_tokens=1600, top_k=1, seed=0), 8)


def step(ax: Axes) -> None:
    """Section 1: the load of each device under a fair and a hot router."""
    fair, hot = routed(uniform(8)), routed(hot_expert(8, share=0.6))
    ax.bar(DEVICES - 0.2, fair, 0.4, color=BLUE, label="fair router")
    ax.bar(DEVICES + 0.2, hot, 0.4, color=RED, label="hot router")
    ax.axhline(200, color=GREY, linewidth=1, linestyle="--", label="mean of both")
    ax.set(xlabel="device", ylabel="assignments", xticks=DEVICES)
    ax.legend(frameon=False)


def capacity(ax: Axes) -> None:
    """Section 2: assignments dropped against the capacity factor."""
    loads = [84, 16, 10, 7, 5, 3, 2, 1]
    factor = np.arange(0.25, 6.01, 0.05)
    ax.plot(factor, [dropped_tokens(loads, f) for f in factor], color=RED)
    ax.plot(1, dropped_tokens(loads, 1), "o", color=RED)
    ax.annotate("68 of 128", (1, 68), (1.3, 72))
    ax.set(xlabel="capacity factor", ylabel="assignments dropped", xlim=(0, 6), ylim=(0, 128))


def noise(ax: Axes) -> None:
    """Section 3: the imbalance of a fair router against batch size."""
    batches = 4 ** np.arange(1, 7)
    seen = [
        imbalance(
            sample_trace(
                steady(uniform(8), num_steps=200), num_tokens=int(batch), top_k=2, seed=2
            ).counts
        ).mean()
        for batch in batches
    ]
    floor = [noise_floor(int(batch), 8, 2, 8).mean for batch in batches]
    ax.loglog(batches, np.array(floor) - 1, color=BLUE, label="noise floor")
    ax.loglog(batches, np.array(seen) - 1, "o", color=RED, label="200 sampled steps")
    ax.set(xlabel="tokens in the batch", ylabel="imbalance - 1")
    ax.set_xticks(batches, [str(batch) for batch in batches])
    ax.set_yticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
    ax.minorticks_off()
    ax.legend(frameon=False)


def placement(ax: Axes) -> None:
    """Sections 4 and 5: what placing and copying experts do to the step."""
    loads = [300, 40, 60, 20, 90, 50, 30, 80, 290, 70, 110, 20, 100, 60, 30, 50]
    labels = ["dealt", "placed"]
    times = [ep_step_time(loads, 8), ep_step_time(loads, 8, best_placement(loads, 8))]
    for copies in (1, 2, 4):
        load, _ = add_copies(loads, copies)
        labels.append(f"{copies} cop{'y' if copies == 1 else 'ies'}")
        times.append(ep_step_time(load, 8, best_placement(load, 8)))
    ax.bar(labels, times, 0.6, color=[RED, GOLD, BLUE, BLUE, BLUE])
    ax.axhline(sum(loads) / 8, color=GREY, linewidth=1, linestyle="--", label="mean")
    ax.set(ylabel="step time (assignments)")
    ax.legend(frameon=False)


def recovered(ax: Axes) -> None:
    """Section 6: the share of the waiting that placing, one copy and both remove."""
    routers = {
        "one hot": hot_expert(16, share=0.6),
        "few popular": zipf(16),
        "uneven": lognormal(16, seed=1),
    }
    for i, popularity in enumerate(routers.values()):
        loads = expert_loads(sample_topk(popularity[0], num_tokens=1600, top_k=1, seed=0), 16)
        load, _ = add_copies(loads, 1)
        lightest = int(np.argmin(device_loads(loads, 8)))
        after = [
            ep_step_time(loads, 8, best_placement(loads, 8)),
            ep_step_time(load, 8, [*range(8), *range(8), lightest]),
            ep_step_time(load, 8, best_placement(load, 8)),
        ]
        dealt, mean = ep_step_time(loads, 8), loads.sum() / 8
        gone = [float((dealt - step) / (dealt - mean)) for step in after]
        ax.bar(i + np.array([-0.25, 0, 0.25]), gone, 0.22, color=[GOLD, BLUE, GREY])
    for colour, label in ((GOLD, "placed"), (BLUE, "one copy"), (GREY, "both")):
        ax.bar(0, 0, color=colour, label=label)
    ax.set_xticks(range(3), list(routers))
    ax.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    ax.set(ylabel="waiting gone", ylim=(0, 1))
    ax.legend(frameon=False, ncols=3, loc="upper left")


def shared(ax: Axes) -> None:
    """Section 7: shared work poured into the gaps."""
    load, _ = add_copies(routed(hot_expert(8, share=0.6)), 3)
    base = device_loads(load, 8, best_placement(load, 8))
    level = (400 + base[4:].sum()) / 4  # devices 0 to 3 stand above the water
    ax.bar(DEVICES, base, 0.7, color=BLUE, label="routed experts")
    ax.bar(DEVICES[4:], level - base[4:], 0.7, base[4:], color=GOLD, label="shared expert")
    ax.set(xlabel="device", ylabel="assignments", xticks=DEVICES, ylim=(0, 330))
    ax.legend(frameon=False, ncols=2)


def layers(ax: Axes) -> None:
    """Section 10: the layers of the recording that comes with the package."""
    trace = eq.read_trace(eq.sample_trace_path())
    eq.summarise(trace, num_ranks=8).plot.layers(ax)


PLOTS: dict[str, Callable[[Axes], None]] = {
    plot.__name__: plot for plot in (step, capacity, noise, placement, recovered, shared, layers)
}


def draw(name: str) -> Axes:
    """Draw one in a new figure, which a notebook shows."""
    axes = pyplot.subplots(figsize=(6, 3), layout="constrained")[1]
    PLOTS[name](axes)
    return axes


def main(folder: Path) -> None:
    """Write every plot as SVG, named like its function."""
    for name, plot in PLOTS.items():
        figure = Figure(figsize=(6, 3), layout="constrained")
        plot(figure.subplots())
        figure.savefig(folder / f"{name}.svg", metadata=METADATA)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
