"""Two simulations of the same requests, and whether one is better for the users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_type
from equipoise.errors import EquipoiseError
from equipoise.plan.weigh.budget import LEAST_GAIN, LEAST_WINDOWS, chances
from equipoise.simulate.gain import CONFIDENCE, gain, gain_interval
from equipoise.simulate.serving import ServingResult, Slo

Floats = NDArray[np.float64]
Kind = Literal["better", "worse", "mixed", "no difference", "insufficient evidence"]

_SURE = 0.05  # probability of chance below which a difference counts, as in a forecast
_BLOCKS = 16  # number of blocks of consecutive requests


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure that users notice, without and with the change.

    Parameters
    ----------
    name
        Name in words.
    before, after
        Means over all requests: seconds, or a share.
    gain
        Relative improvement; negative if it gets worse.
    chance
        Probability that chance alone makes a difference this large in this direction.
    """

    name: str
    before: float
    after: float
    gain: float
    chance: float
    more_is_better: bool

    @property
    def kind(self) -> Kind:
        """Better or worse, if by at least a percent and more than chance explains."""
        if abs(self.gain) < LEAST_GAIN or self.chance >= _SURE:
            return "no difference"
        return "better" if self.gain > 0 else "worse"

    @property
    def text(self) -> str:
        """Change in words."""
        if self.more_is_better:
            word, values = ("more", "less"), (f"{self.after:.1%}", f"{self.before:.1%}")
        else:
            word = "shorter", "longer"
            values = f"{1e3 * self.after:.4g} ms", f"{1e3 * self.before:.4g} ms"
        size = f"{abs(self.gain):.1%}"
        change = "the same" if size == "0.0%" else f"{size} {word[self.gain < 0]}"
        return f"{self.name} {values[0]} against {values[1]} ({change})"


@dataclass(frozen=True, eq=False, kw_only=True)
class SideBySide:
    """A comparison of the same requests served without and with a change.

    Parameters
    ----------
    before, after
        Results without and with the change.
    slo
        Limits that requests should stay within.
    step_before, step_after
        Seconds of steps of the usual size, without and with the change, ``(T,)``. They are the same
        batches, each from another part of the recording. They show how certain it is that the
        recorded steps distinguish the two.
    """

    before: ServingResult
    after: ServingResult
    slo: Slo
    step_before: Floats
    step_after: Floats

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            check_type(name, getattr(self, name), ServingResult)
        if self.before.requests is not self.after.requests:
            raise EquipoiseError(
                "Two simulations of other requests do not compare; serve the same."
            )

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Measures of token times, and of the requests that stay within the limits."""
        old, new = self.before, self.after
        within = [result.within(self.slo).astype(np.float64) for result in (old, new)]
        measures = [
            _measure("mean TTFT", old.ttft, new.ttft),
            _measure("share of requests within the SLO", *within, more_is_better=True),
        ]
        goes_on = old.requests.output_tokens > 1
        if goes_on.any():
            tpot = _measure("mean TPOT", old.tpot[goes_on], new.tpot[goes_on])
            measures.insert(1, tpot)
        return tuple(measures)

    @cached_property
    def step_gain(self) -> float:
        """Share of a step's time that the change saves, on the recorded routing."""
        return gain(self.step_before, self.step_after)

    @cached_property
    def step_interval(self) -> tuple[float, float] | None:
        """Confidence interval of that share for similar traffic; ``None`` for a single step."""
        return gain_interval(
            self.step_before[None],
            self.step_after[None],
            strata=np.zeros(len(self.step_before), np.int64),
            further_steps=len(self.step_before),
            spread=0.0,
            seed=0,
        )

    @property
    def kind(self) -> Kind:
        """Whether the change is an improvement."""
        kinds = {measure.kind for measure in self.measures}
        if {"better", "worse"} <= kinds:
            return "mixed"
        if "better" in kinds:
            return "better" if self._is_shown else "insufficient evidence"
        return "worse" if "worse" in kinds else "no difference"

    @property
    def text(self) -> str:
        """Result in a sentence."""
        changed = {
            kind: "; ".join(m.text for m in self.measures if m.kind == kind)
            for kind in ("better", "worse")
        }
        match self.kind:
            case "mixed":
                return f"mixed: better in {changed['better']}, but worse in {changed['worse']}."
            case "insufficient evidence":
                return (
                    f"insufficient evidence: the simulation shows {changed['better']}, but "
                    f"{self._doubt}; record more steps."
                )
            case "no difference":
                return "no difference: " + "; ".join(m.text for m in self.measures) + "."
            case kind:
                return f"{kind}: {changed[kind]}."

    @property
    def _is_shown(self) -> bool:
        """Whether recorded steps surely get shorter, so that the gain is not specific to them."""
        if len(self.step_before) < LEAST_WINDOWS or self.step_interval is None:
            return False
        return self.step_interval[0] > 0

    @property
    def _doubt(self) -> str:
        number = len(self.step_before)
        if number < LEAST_WINDOWS or self.step_interval is None:
            return f"{number} recorded step{'s' * (number > 1)} cannot tell it from chance"
        low, high = self.step_interval
        return (
            f"judged by {number} recorded steps, a step gets shorter by {low:.1%} to {high:.1%} "
            f"({CONFIDENCE:.0%} interval), which may be no gain"
        )


def _measure(name: str, before: Floats, after: Floats, *, more_is_better: bool = False) -> Measure:
    """Make a measure from the values of each request, without and with the change."""
    saved = after - before if more_is_better else before - after
    change = float(saved.mean() / (before.mean() or 1.0))
    parts = np.array_split(saved, min(len(saved), _BLOCKS))
    blocks = np.array([[part.mean() for part in parts]])
    return Measure(
        name=name,
        before=float(before.mean()),
        after=float(after.mean()),
        gain=change,
        chance=float(chances(np.sign(change) * blocks)[0]) if change else 1.0,
        more_is_better=more_is_better,
    )
