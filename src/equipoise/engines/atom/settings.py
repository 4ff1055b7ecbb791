"""The options of ATOM for balancing: its ``EPLBConfig``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from equipoise.checks import check_count, check_number
from equipoise.control.settings import Settings
from equipoise.engines._shared.options import (
    NO_PLANNER,
    REDUNDANT,
    Facts,
    Found,
    Option,
    OptionTable,
)


def _chunk(value: Any, _facts: Facts) -> int:
    """Read a number of layers; the engine refuses 0, with which nothing would move."""
    return check_count("the number of layers", value)


def _excess(value: Any, _facts: Facts) -> float | None:
    """Convert mean over maximum into the excess of maximum over mean; ``None`` for no threshold."""
    check_number("the balancedness", value, low=1e-3, high=math.inf)
    return 1 / value - 1 if value < 1 else None


def together(found: Found, _by: Mapping[str, str]) -> Found:
    """Keep the threshold at which the alarm ends below the one at which it starts."""
    excess = found.pop("excess_on", None)
    if excess is None:
        return found
    return {"excess_off": min(Settings.excess_off, excess / 2)} | found | {"excess_on": excess}


_MEAN = "the mean over the layers is compared, not the worst layer"

TABLE = OptionTable(
    engine="ATOM",
    given_as="--eplb-config",
    options={
        "load_window_size": Option(
            here="Steps whose loads are looked at; at most `rebalance_interval`. 1000 if not "
            "given.",
            sets=("window",),
        ),
        "rebalance_interval": Option(
            here="Steps from one look at the loads to the next. The first is after the warm-up and "
            "a window, not after a quarter of the interval. 3000 if not given.",
            sets=("update_interval",),
        ),
        "rebalance_layers_per_chunk": Option(
            here="Most layers that move in a step. 1 if not given, not 64.",
            sets=("layers_per_step",),
            read=_chunk,
        ),
        "num_redundant_experts": REDUNDANT,
        "rebalance_min_balancedness": Option(
            here="Balancedness below which a plan is made: 0.9 is an imbalance of 11 % "
            "(`excess_on` 0.11). From 1 on the engine has no threshold, and here 5 % holds, as if "
            "it is not given.",
            sets=("excess_on",),
            read=_excess,
            advice="what chance explains is taken off the imbalance before it is compared, and "
            "from 1 on the threshold is that of this package, 5 %",
        ),
        "rebalance_balancedness_agg": Option(here=_MEAN, harmless=("min", "mean"), advice=_MEAN),
        "p2p_batch_chunk_size": Option(
            here="layers_per_step and max_bytes_per_step say how much moves in a step",
            harmless=(32,),
        ),
        "placement_policy": Option(here=NO_PLANNER, harmless=("naive",)),
    },
    together=together,
    sections=(("eplb_config",),),
)
"""Every option, with the setting that it changes or the reason why it has no effect."""
