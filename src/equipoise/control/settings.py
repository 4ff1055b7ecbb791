"""What a user may set about balancing live, and what it is called elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from equipoise.checks import check_count, check_number
from equipoise.errors import EquipoiseError
from equipoise.placement import check_slot_count

_LEAST = {
    "num_redundant": 0, "window": 8, "update_interval": 1, "wait_steps": 1, "warm_up_steps": 0,
    "cool_down_steps": 1, "layers_per_step": 0, "max_bytes_per_step": 1,
}  # fmt: skip
_MAY_BE_NONE = ("max_bytes_per_step", "cool_down_steps")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When to look, when to plan, how much to move at a time.

    A step is a forward pass. Shares are of the mean rank's load.

    Parameters
    ----------
    num_redundant
        Slots of a layer beyond one for each expert, all ranks together.
    window
        Steps whose loads are looked at, the last ones.
    update_interval
        Steps from one look at the loads to the next.
    wait_steps
        Steps the planner may take; a plan that comes later is dropped. Nothing waits for it.
    layers_per_step
        Most layers that move in a step; 0 measures and moves nothing, which needs a map.
    max_bytes_per_step
        What may move in a step on average, all ranks together; ``None``: no limit.
    warm_up_steps
        First steps that count for nothing.
    cool_down_steps
        Steps after a move until it is judged and loads are looked at again; ``None``: the window.
    excess_on, excess_off
        Imbalance above the noise floor that raises the alarm, and below which it falls again.
    background
        Move while serving; otherwise serving waits for every move.
    once
        Stop balancing after the first change that was completed.
    map_path
        A map to start from.

    Raises
    ------
    EquipoiseError
        Values out of range, or that contradict each other.
    """

    num_redundant: int = 0
    window: int = 1000
    update_interval: int = 3000
    wait_steps: int = 1000
    layers_per_step: int = 1
    max_bytes_per_step: int | None = None
    warm_up_steps: int = 100
    cool_down_steps: int | None = None
    excess_on: float = 0.05
    excess_off: float = 0.02
    background: bool = True
    once: bool = False
    map_path: str | Path | None = None

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                _check_whole(name, value, low)
        for name in ("background", "once"):
            if not isinstance(getattr(self, name), bool):
                raise EquipoiseError(f"{name} is {getattr(self, name)!r}; expected true or false.")
        self._check_thresholds()
        self._check_steps()
        self._check_map()

    @property
    def settle_steps(self) -> int:
        """Steps after a move until it is judged."""
        return self.window if self.cool_down_steps is None else self.cool_down_steps

    def num_slots(self, num_experts: int, num_ranks: int) -> int:
        """Slots of a layer, all ranks together.

        Raises
        ------
        EquipoiseError
            One rank only, slots that the ranks cannot share equally (the message names the nearest
            redundancy that they can), or more than one for every expert on every rank.
        """
        if num_ranks == 1:
            raise EquipoiseError("There is one rank, so nothing to balance; serve with more.")
        slots, most = num_experts + self.num_redundant, num_experts * (num_ranks - 1)
        check_slot_count(slots, num_ranks=num_ranks, num_experts=num_experts)
        if self.num_redundant > most:
            raise EquipoiseError(
                f"num_redundant is {self.num_redundant}; {most} already put every expert on each "
                f"of {num_ranks} ranks."
            )
        return slots

    def rounded_slots(self, num_experts: int, num_ranks: int) -> int:
        """Slots of a layer on other ranks than expected: rounded up to what they share equally."""
        slots_per_rank = -(-(num_experts + self.num_redundant) // num_ranks)
        return min(slots_per_rank, num_experts) * num_ranks

    def _check_thresholds(self) -> None:
        for name in ("excess_on", "excess_off"):
            check_number(name, getattr(self, name), low=0, high=math.inf)
        if self.excess_off >= self.excess_on:
            raise EquipoiseError(
                f"excess_off is {self.excess_off}, excess_on {self.excess_on}; the alarm has to "
                "fall at less than what raises it, or it flutters."
            )

    def _check_steps(self) -> None:
        if self.window > self.update_interval:
            raise EquipoiseError(
                f"A window of {self.window} steps is longer than the update interval of "
                f"{self.update_interval}: loads that a plan has answered would be planned for "
                "again; give a window of at most the interval."
            )
        if self.settle_steps < self.window:
            raise EquipoiseError(
                f"cool_down_steps is {self.cool_down_steps}, the window {self.window} steps: a "
                "move would be judged by steps from before it; cool down for the window or longer."
            )

    def _check_map(self) -> None:
        path = self.map_path
        if path is not None and not (isinstance(path, str | Path) and Path(path).is_file()):
            raise EquipoiseError(f"There is no map {str(path)!r}; give the path of a file.")
        if self.layers_per_step == 0 and self.map_path is None:
            raise EquipoiseError(
                "layers_per_step is 0 and there is no map: nothing would ever be balanced; give a "
                "map_path, or move 1 layer or more a step."
            )


def from_options(
    engine: str, options: Mapping[str, Any], *, num_experts: int, **ours: Any
) -> Settings:
    """Settings from the options of an engine, by the names its users know.

    Parameters
    ----------
    engine
        ``"ascend"`` (SwiftBalancer, old names and new), ``"trtllm"`` or ``"vllm"``.
    options
        Its section on balancing, as the engine would read it.
    num_experts
        ``E``, where an engine counts slots.
    ours
        Settings that the engine has no word for.

    Raises
    ------
    EquipoiseError
        Another engine, an option that it does not have or that would have no effect here, the same
        thing set twice, and all that ``Settings`` refuses.
    """
    check_count("num_experts", num_experts)
    if engine not in _OPTIONS:
        raise EquipoiseError(f"No options of {engine!r} are known; use one of {_names(_OPTIONS)}.")
    known, found, by = _OPTIONS[engine], dict(ours), {name: name for name in ours}
    for option, value in options.items():
        for name, setting in _read(engine, known, option, value, num_experts).items():
            if name in found:
                raise EquipoiseError(f"{option} and {by[name]} both set {name}; give one of them.")
            found[name], by[name] = setting, option
    unknown = set(found) - set(Settings.__dataclass_fields__)
    if unknown:
        raise EquipoiseError(f"There is no setting {_names(unknown)}.")
    return Settings(**found)


_Reader = Callable[[Any, int], dict[str, Any]]  # of its value and E: what it sets


def _is(*names: str) -> _Reader:
    """An option that sets these to its value."""
    return lambda value, _num_experts: dict.fromkeys(names, value)


def _online(value: Any, _num_experts: int) -> dict[str, Any]:
    return {} if _flag(value) else {"layers_per_step": 0}


def _offline(value: Any, num_experts: int) -> dict[str, Any]:
    return _online(not _flag(value), num_experts)


def _slots(value: Any, num_experts: int) -> dict[str, Any]:
    _check_whole("num_slots", value, num_experts)
    return {"num_redundant": value - num_experts}


_REDUNDANT = _is("num_redundant")
_MAP = _is("map_path")
_HEAT = _is("window", "update_interval")
_WAIT = _is("wait_steps")
_PLANNER = "plans are made by this package's own planner"
_METRICS = "the metrics always tell the balance"

_OPTIONS: dict[str, dict[str, _Reader | str]] = {
    "ascend": {
        "dynamic_eplb": _online,
        "expert_heat_collection_interval": _HEAT,
        "num_iterations_eplb_update": _HEAT,
        "algorithm_execution_interval": _WAIT,
        "num_wait_worker_iterations": _WAIT,
        "num_redundant_experts": _REDUNDANT,
        "init_redundancy_expert": _REDUNDANT,
        "gate_eplb": _is("once"),
        "expert_map_path": _MAP,
        "expert_map_record_path": "write the placement that is served with write_map",
        "eplb_policy_type": _PLANNER,
        "eplb_heat_collection_stage": "both phases are counted, each by itself",
        "load_collection_phase": "both phases are counted, each by itself",
    },
    "trtllm": {
        "num_slots": _slots,
        "layer_updates_per_iter": _is("layers_per_step"),
        "initial_global_assignments": "leave the map in its file and give map_path",
    },
    "vllm": {
        "window_size": _is("window"),
        "step_interval": _is("update_interval"),
        "num_redundant_experts": _REDUNDANT,
        "use_async": _is("background"),
        "disable_online_rebalancing": _offline,
        "initial_mapping_path": _MAP,
        "initial_expert_map_path": _MAP,
        "expert_map_path": _MAP,
        "policy": _PLANNER,
        "communicator": "experts travel over the process groups of the layers",
        "enable_migration_batching": "layers_per_step says how many layers move",
        "log_balancedness": _METRICS,
        "log_balancedness_interval": _METRICS,
    },
}
"""By engine and option: how it is read, or why it has no effect."""


def _read(
    engine: str, known: Mapping[str, _Reader | str], option: str, value: Any, num_experts: int
) -> dict[str, Any]:
    reader = known.get(option)
    if reader is None:
        raise EquipoiseError(
            f"{engine} has no option {option!r} for balancing; it has {_names(known)}."
        )
    if isinstance(reader, str):
        raise EquipoiseError(f"{option} would have no effect: {reader}. Leave it out.")
    try:
        return reader(value, num_experts)
    except EquipoiseError as error:
        raise EquipoiseError(f"{option}: {error}") from error


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EquipoiseError(f"{value!r} was given; expected true or false.")
    return value


def _check_whole(name: str, value: Any, low: int) -> None:
    check_number(name, value, low=low, high=math.inf)
    if not isinstance(value, Integral):
        raise EquipoiseError(f"{name} is {value}; expected a whole number.")


def _names(names: Any) -> str:
    return ", ".join(sorted(names))
