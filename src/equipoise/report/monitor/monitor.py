"""The state of the monitor: it follows a source and makes views, without clock or drawing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from equipoise.report.bars import Bar
from equipoise.report.monitor.events import events, has_begun_again
from equipoise.report.monitor.look import Floats, Heat, Loads, Look
from equipoise.report.monitor.rates import Rates, rates
from equipoise.report.monitor.view import Event, HotExpert, Moment, View
from equipoise.units import clock, duration

_MOST_LOOKS = 4096
_MOST_EVENTS = 256
_RATE_SECONDS = 10.0
_LATELY = 16  # number of recent looks that are averaged, so that the picture does not flicker
_HOTTEST = 64
_PHASES = ("all", "decode", "prefill")  # the curve shows the first of these that is known

KEYS = (
    ("s", "sort"), ("d", "one layer"), ("j", "next"), ("k", "previous"), ("p", "pause"),
    ("h", "HTML"), ("l", "look"), ("q", "quit"),
)  # fmt: skip
"""All keys and what they do, including those that the program handles."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A period in which one map was served.

    Parameters
    ----------
    map_version
        Version of the map; ``None`` if unknown.
    imbalance, noise_floor
        Means over the looks.
    """

    map_version: int | None
    seconds: float
    looks: int
    imbalance: float | None
    noise_floor: float | None
    tokens_per_second: float | None


class Monitor:
    """The state of a monitor that follows a source.

    Parameters
    ----------
    name
        Name of the source, as given by the user.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._looks: deque[Look] = deque(maxlen=_MOST_LOOKS)
        self._loads: deque[tuple[int | None, Loads]] = deque(maxlen=_LATELY)
        self._run: deque[Look] = deque(maxlen=_MOST_LOOKS)  # since counters started
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._told: Heat | None = None  # by the last look
        self._held: deque[Look] | None = None
        self._began: float | None = None
        self._failure = ""
        self._notice = ""
        self._worst_first = True
        self._layer: int | None = None

    # --- what comes ------------------------------------------------------------------------------

    def take(self, looks: Sequence[Look]) -> None:
        """Take new looks, oldest first; while paused, they wait."""
        self._failure = ""
        if self._held is not None:
            self._held.extend(looks)
            return
        for look in looks:
            self._take(look)

    def _take(self, look: Look) -> None:
        if self._began is None:
            self._began = look.time
        if self._looks:
            before = self._looks[-1]
            for text in events(before, look):
                self._events.append(Event(look.time - self._began, text))
            if has_begun_again(before, look):
                self._run.clear()
        if look.loads is not None:
            if self._loads and self._loads[-1][1].load_LE.shape != look.loads.load_LE.shape:
                self._loads.clear()
            self._loads.append((look.map_version, look.loads))
        self._told = look.heat
        light = replace(look, loads=None, heat=None)
        self._looks.append(light)
        self._run.append(light)

    def fail(self, why: str) -> None:
        """Note that the source could not be looked at."""
        self._failure = why

    def notice(self, text: str) -> None:
        """Show an answer to a key."""
        self._notice = text

    def press(self, key: str) -> None:
        """Act on a key: ``s``, ``d``, ``j``, ``k`` or ``p``; any other removes the notice."""
        self._notice = ""
        match key:
            case "s":
                self._worst_first = not self._worst_first
            case "p" if self._held is None:
                self._held = deque(maxlen=_MOST_LOOKS)
            case "p":
                held, self._held = self._held, None
                self.take(list(held or ()))
            case "d" | "j" | "k":
                self._drill(key)

    def _drill(self, key: str) -> None:
        values = self._looks[-1].layer_imbalance if self._looks else {}
        layers = sorted(values)
        if not layers:
            self._layer = None
            self._notice = "This source does not report single layers."
        elif key == "d":
            worst = max(layers, key=lambda layer: values[layer])
            self._layer = worst if self._layer is None else None
        elif self._layer in layers:
            step = 1 if key == "j" else -1
            self._layer = layers[(layers.index(self._layer) + step) % len(layers)]
        else:
            self._layer = layers[0 if key == "j" else -1]

    # --- what is shown ---------------------------------------------------------------------------

    def view(self, now: float) -> View:
        """Make the view at a time, in seconds since 1970."""
        look = self._looks[-1] if self._looks else Look(time=now)
        heat = self._heat()
        return View(
            title=look.model or self._name,
            facts=tuple(self._facts(look, now)),
            troubles=tuple(self._troubles(look)),
            curve_title=self._curve_title(look),
            curve=tuple(self._curve()),
            ranks_title="Ranks: load over the mean" + self._in_layer,
            ranks=tuple(self._ranks(look, heat)),
            heat=heat,
            layers=() if heat is not None else _worst_first(look.layer_imbalance),
            experts=tuple(self._experts()),
            events=tuple(self._events),
            notice=self._notice,
        )

    def line(self, now: float) -> str:
        """Write the current state in one line."""
        look = self._looks[-1] if self._looks else Look(time=now)
        said = [self._curve_title(look), *self._facts(look, now), *self._troubles(look)]
        if self._events:
            event = self._events[-1]
            said.append(f"at {clock(event.seconds)}: {event.text}")
        return f"{clock(look.time - (self._began or look.time)):>7}  " + "  ".join(said)

    def as_dict(self) -> dict[str, Any]:
        """Return the current state for JSON."""
        look = self._looks[-1] if self._looks else Look(time=0.0)
        counts, heat = look.counts, self._heat()
        return {
            "time": look.time,
            "source": self._name,
            "step": look.step,
            "model": look.model,
            "state": look.state,
            "epoch": look.epoch,
            "ranks": look.num_ranks,
            "map_version": look.map_version,
            "last_look": look.looked_at,
            "imbalance": dict(look.imbalance),
            "noise_floor": dict(look.noise_floor),
            "rank_load": {str(rank): value for rank, value in look.rank_load.items()},
            "layer_imbalance": {str(layer): v for layer, v in look.layer_imbalance.items()},
            "layer_rank_load": {} if heat is None else _rows(heat),
            "hottest_experts": [asdict(expert) for expert in self._experts()[:10]],
            **asdict(self._rates),
            "ttft_p99": look.ttft_p99,
            "steps": counts.steps or None,
            "tokens": counts.tokens,
            "moved_slots": counts.moved_slots,
            "moved_bytes": counts.moved_bytes,
            "rebalances": dict(counts.rebalances),
            "failures": counts.failures,
            "failed_requests": counts.failed_requests,
            "alarms": sorted(look.alarms),
            "silent": dict(look.silent),
            "problem": self._failure,
        }

    def summary(self) -> tuple[Stretch, ...]:
        """Summarise the time watched, by the map served."""
        parts = [list(part) for _, part in groupby(self._looks, key=lambda look: look.map_version)]
        ends = [*(part[0] for part in parts[1:]), *(part[-1] for part in parts[-1:])]
        return tuple(_stretch(part, end) for part, end in zip(parts, ends, strict=True))

    @property
    def events(self) -> tuple[Event, ...]:
        """Events so far, the latest last."""
        return tuple(self._events)

    @property
    def _rates(self) -> Rates:
        if not self._run:
            return Rates()
        last = self._run[-1]
        lately = (look for look in self._run if look.time >= last.time - _RATE_SECONDS)
        return rates(next(lately), last)

    @property
    def _in_layer(self) -> str:
        return "" if self._layer is None else f", layer {self._layer}"

    def _facts(self, look: Look, now: float) -> list[str]:
        known = self._rates
        facts = [] if self._held is None else ["PAUSED"]
        if look.num_ranks is not None:
            facts.append(f"{look.num_ranks} rank" + "s" * (look.num_ranks != 1))
        if look.epoch is not None:
            facts.append(f"epoch {look.epoch}")
        if look.map_version is not None:
            facts.append(f"map {look.map_version}")
        if look.state:
            facts.append(look.state)
        if look.looked_at is not None:
            facts.append(f"looked {duration(_age(now, look.looked_at))} ago")
        if look.step is not None:
            facts.append(f"step {look.step:,}, {duration(_age(now, look.time))} ago")
        if known.tokens_per_second is not None:
            facts.append(f"{known.tokens_per_second:,.0f} tokens/s")
        if known.step_p50 is not None and known.step_p99 is not None:
            facts.append(f"step p50 {duration(known.step_p50)}, p99 {duration(known.step_p99)}")
        elif known.step_seconds is not None:
            facts.append(f"{duration(known.step_seconds)} a step")
        if look.ttft_p99 is not None:
            facts.append(f"TTFT p99 {duration(look.ttft_p99)}")
        if known.stalled:
            facts.append(f"{known.stalled:.1%} stalled")
        return facts

    def _troubles(self, look: Look) -> list[str]:
        troubles = [self._failure] if self._failure else []
        troubles += [f"{name}: {why}" for name, why in look.silent.items()]
        return troubles + [f"alarm {name}" for name in sorted(look.alarms)]

    def _curve_title(self, look: Look) -> str:
        if self._layer is not None:
            value = look.layer_imbalance.get(self._layer)
            return f"Imbalance of layer {self._layer}" + ("" if value is None else f" {value:.2f}")
        told = [_with_floor(look, phase) for phase in _PHASES if phase in look.imbalance]
        return "Imbalance " + "; ".join(told) if told else "Imbalance not known yet"

    def _curve(self) -> list[Moment]:
        looks = list(self._looks)
        if not looks:
            return []
        phase = next((phase for phase in _PHASES if phase in looks[-1].imbalance), _PHASES[0])
        changed = [False, *(a.map_version != b.map_version for a, b in pairwise(looks))]
        return [
            Moment(look.imbalance.get(phase), look.noise_floor.get(phase), change)
            if self._layer is None
            else Moment(look.layer_imbalance.get(self._layer), None, change)
            for look, change in zip(looks, changed, strict=True)
        ]

    def _heat(self) -> Heat | None:
        """Return the ranks of each layer: as told, or averaged over looks at the same map."""
        if not self._loads:
            return self._told
        version, last = self._loads[-1]
        loads = [
            loads.load_LR
            for of, loads in self._loads
            if of == version and loads.load_LR is not None
        ]
        loads = [load_LR for load_LR in loads if load_LR.shape == loads[-1].shape]
        if not loads:
            return None
        return Heat(last.layer_ids, np.mean([_over_mean(load) for load in loads], axis=0))

    def _ranks(self, look: Look, heat: Heat | None) -> list[Bar]:
        if heat is None:
            values = dict(look.rank_load) if self._layer is None else {}
        else:
            chosen = [self._layer in (layer, None) for layer in heat.layer_ids]
            values = dict(enumerate(heat.multiples[chosen].mean(axis=0).tolist()))
        bars = [Bar(f"rank {rank}", value) for rank, value in values.items()]
        return sorted(bars, key=lambda bar: -bar.value) if self._worst_first else bars

    def _experts(self) -> list[HotExpert]:
        """Find the hottest experts in recent looks, and their trend."""
        if not self._loads:
            return []
        layer_ids = self._loads[-1][1].layer_ids
        multiples = np.array([_over_mean(loads.load_LE) for _, loads in self._loads])
        half = max(len(multiples) // 2, 1)
        now, before = multiples[-half:].mean(axis=0), multiples[:half].mean(axis=0)
        if self._layer is not None:
            now = np.where(np.array(layer_ids)[:, None] == self._layer, now, 0.0)
        hottest = np.argsort(-now, axis=None, kind="stable")[:_HOTTEST]
        rows, experts = np.unravel_index(hottest, now.shape)
        return [
            HotExpert(
                layer=layer_ids[row],
                expert=int(expert),
                multiple=float(now[row, expert]),
                trend=float(now[row, expert] / before[row, expert]) if before[row, expert] else 1.0,
            )
            for row, expert in zip(rows, experts, strict=True)
            if now[row, expert] > 0
        ]


def _rows(heat: Heat) -> dict[str, list[float]]:
    rows = heat.multiples.round(4).tolist()
    return {str(layer): row for layer, row in zip(heat.layer_ids, rows, strict=True)}


def _worst_first(imbalance: Any) -> tuple[Bar, ...]:
    ordered = sorted(imbalance.items(), key=lambda item: -item[1])
    return tuple(Bar(f"layer {layer}", value) for layer, value in ordered)


def _with_floor(look: Look, phase: str) -> str:
    value, floor = look.imbalance[phase], look.noise_floor.get(phase)
    name = "" if phase == "all" else f"{phase} "
    return f"{name}{value:.2f}" + ("" if floor is None else f", chance gives {floor:.2f}")


def _over_mean(load: Any) -> Floats:
    """Divide loads by the mean of their layer; 0 in a layer without load."""
    mean = load.mean(axis=1, keepdims=True, dtype=np.float64)
    over: Floats = np.divide(load, mean, out=np.zeros(load.shape), where=mean > 0)
    return over


def _age(now: float, then: float) -> float:
    """Return whole seconds since a time; 0 if the clocks of two machines disagree."""
    return float(round(max(now - then, 0.0)))


def _stretch(part: Sequence[Look], end: Look) -> Stretch:
    """Summarise the looks at one map; it lasts until the first look at the next map."""
    imbalance = [value for look in part for value in list(look.imbalance.values())[:1]]
    floor = [value for look in part for value in list(look.noise_floor.values())[:1]]
    return Stretch(
        map_version=part[0].map_version,
        seconds=end.time - part[0].time,
        looks=len(part),
        imbalance=float(np.mean(imbalance)) if imbalance else None,
        noise_floor=float(np.mean(floor)) if floor else None,
        tokens_per_second=rates(part[0], end).tokens_per_second,
    )
