"""The registry of engines: which modules of each folder hold formats, launches and so on.

A module is imported on first use, so that reading a map loads no reader of recordings. Dispatch
rules are in the registry of dispatchers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from equipoise.checks import brief
from equipoise.dispatch.registry import DISPATCHERS
from equipoise.engines.doctor.knowledge import Knowledge
from equipoise.engines.formats import Launcher, MapFormat, TraceFormat
from equipoise.errors import EquipoiseError

if TYPE_CHECKING:
    from equipoise.engines._shared.live import Live


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine: one folder next to this file.

    Parameters
    ----------
    folder
        Name of the folder.
    maps
        Names of modules with a ``FORMAT`` of placement files, or several ``FORMATS``.
    traces
        Names of modules with formats of recordings, in the same way.
    launch
        Flag that the module ``launch`` has a ``LAUNCHER``.
    keeps
        Format that is written if the engine itself is the target, because no release reads a map.
    advice
        Flag that the module ``advice`` has the doctor's ``KNOWLEDGE``.
    live
        Flag that the module ``live`` has a ``LIVE`` that interprets the serving engine.
    """

    folder: str
    maps: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    launch: bool = False
    keeps: str | None = None
    advice: bool = False
    live: bool = False


ENGINES = (
    Engine(folder="native", maps=("maps",), traces=("traces",)),
    Engine(folder="trtllm", maps=("maps",), traces=("traces",), launch=True, advice=True),
    Engine(
        folder="sglang", maps=("maps",), traces=("traces",), launch=True, advice=True, live=True
    ),
    Engine(
        folder="vllm",
        maps=("maps", "hygon_maps", "tensor_maps"),
        traces=("load_stats", "route_log"),
        launch=True,
        keeps="equipoise",
        advice=True,
        live=True,
    ),
    Engine(folder="replay", traces=("responses",)),
    Engine(folder="megatron", traces=("traces",)),
    Engine(folder="deepseek", traces=("traces",)),
    Engine(
        folder="ascend",
        maps=("maps",),
        traces=("load", "plain_load"),
        launch=True,
        advice=True,
        live=True,
    ),
    Engine(folder="atom", advice=True),
    Engine(folder="fastdeploy", advice=True),
    Engine(
        folder="tabular",
        traces=(
            "npz",
            "npy",
            "json",
            "csv",
            "layer_lines",
            "counts_json",
            "rank_tables",
            "rank_loads",
            "token_table",
        ),
    ),
)
"""All engines. A new format is a module named here, and a new engine is a new entry."""

TOKEN_TABLE = "token-table"
"""Name of the format of token tables whose columns the user names."""


@cache
def map_formats() -> tuple[MapFormat, ...]:
    """Return all formats of placement files."""
    return tuple(known for engine in ENGINES for known in _formats(engine, engine.maps))


@cache
def trace_formats() -> tuple[TraceFormat, ...]:
    """Return all formats of recordings."""
    return tuple(known for engine in ENGINES for known in _formats(engine, engine.traces))


def map_format(name: str) -> MapFormat:
    """Look up a map format; raise ``EquipoiseError`` with the known names otherwise."""
    for known in map_formats():
        if known.name == name:
            return known
    names = ", ".join(known.name for known in map_formats())
    raise EquipoiseError(f"There is no map format {name!r}; choose one of {names}.")


def written_as(target: str) -> str:
    """Return the map format of a target, which may be an engine that reads no map."""
    keeps = {engine.folder: engine.keeps for engine in ENGINES if engine.keeps}
    return keeps.get(target, target)


def launcher_for(target: str) -> Launcher | None:
    """Return the launcher of a target's engine; the target is a map format or an engine.

    Raises
    ------
    EquipoiseError
        An unknown target; the message lists the known ones.
    """
    engine = _engine_of(target)
    return launcher(engine) if engine.launch else None


def rule_of(target: str) -> str | None:
    """Return the name of the dispatcher that describes how a target's engine shares batches.

    If the engine has several, it is the first; ``None`` for formats that belong to no engine.

    Raises
    ------
    EquipoiseError
        An unknown target, with the known ones.
    """
    home = f"{__package__}.{_engine_of(target).folder}."
    rules = (name for name, entry in DISPATCHERS.items() if entry.where.startswith(home))
    return next(rules, None)


def trace_format(name: str) -> TraceFormat:
    """Look up a recording format; raise ``EquipoiseError`` with the known names otherwise."""
    for known in trace_formats():
        if known.name == name:
            return known
    names = ", ".join(known.name for known in trace_formats())
    raise EquipoiseError(f"There is no recording format {name!r}; known: {names}.")


def launcher(engine: Engine) -> Launcher:
    """Return the launcher of an engine with ``launch``."""
    found: Launcher = _module(engine, "launch").LAUNCHER
    return found


@cache
def all_knowledge() -> tuple[Knowledge, ...]:
    """Return the doctor's knowledge of all engines."""
    return tuple(_module(engine, "advice").KNOWLEDGE for engine in ENGINES if engine.advice)


def live(name: str) -> Live:
    """Return the interpreter of a serving engine's metrics and log.

    Raises
    ------
    EquipoiseError
        An engine without one; the message lists the others.
    """
    known = {engine.folder: engine for engine in ENGINES if engine.live}
    if name not in known:
        raise EquipoiseError(
            f"There is no bridge from {brief(name)}; choose one of {', '.join(known)}."
        )
    found: Live = _module(known[name], "live").LIVE
    return found


def _engine_of(target: str) -> Engine:
    """Find the engine of a map format, or the engine of this name that reads no map."""
    for engine in ENGINES:
        if engine.folder == target and engine.keeps:
            return engine
    known = map_format(target)
    return next(engine for engine in ENGINES if known in _formats(engine, engine.maps))


def _formats(engine: Engine, modules: tuple[str, ...]) -> Iterator[Any]:
    for module in modules:
        holder = _module(engine, module)
        yield from getattr(holder, "FORMATS", None) or (holder.FORMAT,)


def _module(engine: Engine, name: str) -> Any:
    return import_module(f"equipoise.engines.{engine.folder}.{name}")
