"""Every engine, and which modules of its folder hold what: the one list of formats and launches.

A module is imported when what it holds is asked for, so that reading a map loads no reader of
recordings. Rules of dispatch have a registry of their own, with the other dispatchers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from equipoise.dispatch.registry import DISPATCHERS
from equipoise.engines.doctor.knowledge import Knowledge
from equipoise.engines.formats import Launcher, MapFormat, TraceFormat
from equipoise.errors import EquipoiseError


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One folder next to this file.

    Parameters
    ----------
    folder
        Its name.
    maps
        Modules with a ``FORMAT`` of placement files, or several ``FORMATS``.
    traces
        The same for recordings.
    launch
        Whether the module ``launch`` has a ``LAUNCHER``.
    keeps
        Format of the file that is written where the engine itself is named as the target, since no
        release of it reads a map.
    advice
        Whether the module ``advice`` has the ``KNOWLEDGE`` of the doctor.
    """

    folder: str
    maps: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    launch: bool = False
    keeps: str | None = None
    advice: bool = False


ENGINES = (
    Engine(folder="native", maps=("maps",), traces=("traces",)),
    Engine(folder="trtllm", maps=("maps",), traces=("traces",), launch=True, advice=True),
    Engine(folder="sglang", maps=("maps",), traces=("traces",), launch=True, advice=True),
    Engine(
        folder="vllm",
        maps=("maps", "hygon_maps", "tensor_maps"),
        traces=("load_stats", "route_log"),
        launch=True,
        keeps="equipoise",
        advice=True,
    ),
    Engine(folder="replay", traces=("responses",)),
    Engine(folder="megatron", traces=("traces",)),
    Engine(folder="deepseek", traces=("traces",)),
    Engine(
        folder="ascend", maps=("maps",), traces=("load", "plain_load"), launch=True, advice=True
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
"""A new format is a module named here; so is a new engine, with its folder."""

TOKEN_TABLE = "token-table"
"""The format of a table of tokens whose columns the user names."""


@cache
def map_formats() -> tuple[MapFormat, ...]:
    """Every kind of placement file."""
    return tuple(known for engine in ENGINES for known in _formats(engine, engine.maps))


@cache
def trace_formats() -> tuple[TraceFormat, ...]:
    """Every kind of recording."""
    return tuple(known for engine in ENGINES for known in _formats(engine, engine.traces))


def map_format(name: str) -> MapFormat:
    """The map format of that name; raises ``EquipoiseError`` listing the known ones."""
    for known in map_formats():
        if known.name == name:
            return known
    names = ", ".join(known.name for known in map_formats())
    raise EquipoiseError(f"There is no map format {name!r}; choose one of {names}.")


def written_as(target: str) -> str:
    """The map format of a target: its own name, or what an engine keeps that reads no map."""
    keeps = {engine.folder: engine.keeps for engine in ENGINES if engine.keeps}
    return keeps.get(target, target)


def launcher_for(target: str) -> Launcher | None:
    """How the engine of a target is started: of a map format, or of an engine that reads no map.

    Raises
    ------
    EquipoiseError
        An unknown target, with the known ones.
    """
    engine = _engine_of(target)
    return launcher(engine) if engine.launch else None


def rule_of(target: str) -> str | None:
    """Name of the dispatcher that describes how the engine of a target shares batches.

    Of several that an engine has, the first; ``None`` for formats of no engine.

    Raises
    ------
    EquipoiseError
        An unknown target, with the known ones.
    """
    home = f"{__package__}.{_engine_of(target).folder}."
    rules = (name for name, entry in DISPATCHERS.items() if entry.where.startswith(home))
    return next(rules, None)


def trace_format(name: str) -> TraceFormat:
    """The recording format of that name; raises ``EquipoiseError`` listing the known ones."""
    for known in trace_formats():
        if known.name == name:
            return known
    names = ", ".join(known.name for known in trace_formats())
    raise EquipoiseError(f"There is no recording format {name!r}; known: {names}.")


def launcher(engine: Engine) -> Launcher:
    """How an engine with ``launch`` is started."""
    found: Launcher = _module(engine, "launch").LAUNCHER
    return found


@cache
def all_knowledge() -> tuple[Knowledge, ...]:
    """What the doctor knows, engine by engine."""
    return tuple(_module(engine, "advice").KNOWLEDGE for engine in ENGINES if engine.advice)


def _engine_of(target: str) -> Engine:
    """The engine of a map format, or the one of that name that reads no map."""
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
