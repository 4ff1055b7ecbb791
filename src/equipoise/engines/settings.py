"""Settings of the controller, made from an engine's own options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from equipoise.checks import brief, check_count
from equipoise.control.settings import Settings
from equipoise.engines._shared.findings import shown_names
from equipoise.engines._shared.options import RECORD_PATH, Facts, Found, OptionTable
from equipoise.engines._shared.options_document import read_document
from equipoise.engines.ascend import settings as ascend
from equipoise.engines.atom import settings as atom
from equipoise.engines.fastdeploy import settings as fastdeploy
from equipoise.engines.files import output_file
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import check_map_path, examine_map, reading_warnings, write_map
from equipoise.engines.trtllm import settings as trtllm
from equipoise.engines.vllm import settings as vllm
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

TABLES: dict[str, OptionTable] = {
    "ascend": ascend.TABLE,
    "atom": atom.TABLE,
    "fastdeploy": fastdeploy.TABLE,
    "trtllm": trtllm.TABLE,
    "vllm": vllm.TABLE,
}
"""Tables of options, for each engine whose options are read."""

_RECORD_FORMAT = "ascend"  # the only engine that has an option to record
_SHORT_INTERVAL, _SHORT_WAIT = 100, 30  # steps, from the manual of SwiftBalancer


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The meaning of an engine's options in this package.

    Parameters
    ----------
    settings
        Settings of the controller.
    placement
        Placement of the map to start from; ``None`` without a map, or if ranks are unknown.
    record_path
        Path to which every served placement is written; ``None`` for none.
    advice
        Sentences that the user should know.
    """

    settings: Settings
    placement: Placement | None = None
    record_path: Path | None = None
    advice: tuple[str, ...] = ()

    @property
    def keep(self) -> Callable[[Placement], None] | None:
        """Return a function that records a placement, for ``Balancer``, or ``None``."""
        return None if self.record_path is None else partial(_record, path=self.record_path)


def from_options(
    engine: str, options: Mapping[str, Any], *, num_experts: int, **ours: Any
) -> Settings:
    """Make the settings from options in memory, like ``read_options``, without reading a map."""
    return read_options(engine, options, num_experts=num_experts, **ours).settings


def read_options(
    engine: str,
    source: str | Path | Mapping[str, Any],
    *,
    num_experts: int | None = None,
    num_ranks: int | None = None,
    layer_ids: tuple[int, ...] | None = None,
    **ours: Any,
) -> EngineOptions:
    """Read an engine's options; ``equipoise explain engine-options`` lists all of them.

    Parameters
    ----------
    engine
        Name of the engine: ``"ascend"`` (SwiftBalancer, old and new names), ``"atom"``,
        ``"fastdeploy"``, ``"trtllm"`` or ``"vllm"``.
    source
        Options as the engine takes them: a mapping, its text, or the path of a file. They may be
        nested as in the engine, in ``eplb_config`` or ``moe_config.load_balancer``.
    num_experts
        Number of experts ``E``, for engines that count slots; ``None`` if unknown.
    num_ranks
        Number of ranks ``R``, needed to check the redundancy and to read a map; ``None`` for
        neither.
    layer_ids
        Layer numbers of the model's MoE layers, for the map.
    ours
        Settings that the engine has no option for.

    Raises
    ------
    EquipoiseError
        Another engine, a document that cannot be read, an option that the engine does not have or
        that would have no effect here, the same thing set twice, options that contradict each
        other, and all that ``Settings``, ``read_map`` and ``check_map_path`` refuse. The message is
        in the engine's own words.
    """
    if engine not in TABLES:
        raise EquipoiseError(f"No options of {engine!r} are known; use one of {_names(TABLES)}.")
    if num_experts is not None:
        check_count("num_experts", num_experts)
    table = TABLES[engine]
    document = read_document(table, source)
    facts = Facts(num_experts=num_experts, file=document.file)
    found, by = _found(table, document.given, facts, ours)
    with _in_words_of(table, by):
        found = table.together(found, by)
        record_path = _checked_record(found.pop(RECORD_PATH, None), by)
        settings = Settings(**found)
        placement, doubts = _start(settings, by, num_experts, num_ranks, layer_ids)
    if placement is not None:
        settings = replace(settings, num_redundant=placement.num_redundant)
    return EngineOptions(
        settings=settings,
        placement=placement,
        record_path=record_path,
        advice=(*_advice(table, document.given, settings, by), *_on(document.foreign), *doubts),
    )


def _found(
    table: OptionTable, given: list[tuple[str, Any]], facts: Facts, ours: Mapping[str, Any]
) -> tuple[Found, dict[str, str]]:
    """Return the settings that the options set, and the option behind each."""
    unknown = set(ours) - set(Settings.__dataclass_fields__)
    if unknown:
        raise EquipoiseError(f"There is no setting {_names(unknown)}.")
    found, by = dict(ours), {name: name for name in ours}
    for option, value in given:
        for setting, read in _read(table, option, value, facts).items():
            if by.get(setting) == option:
                raise EquipoiseError(f"{option} is given twice; keep one of the two.")
            if setting in found:
                raise EquipoiseError(
                    f"{option} and {by[setting]} both set {setting}; give one of them."
                )
            found[setting], by[setting] = read, option
    return found, by


def _read(table: OptionTable, name: str, value: Any, facts: Facts) -> Found:
    """Read what one option sets."""
    option = table.options[name]
    if not option.sets:
        if not any(type(value) is type(same) and value == same for same in option.harmless):
            raise EquipoiseError(
                f"{name} {brief(value)} would have no effect: {option.here}. Leave it out."
            )
        return {}
    try:
        return dict.fromkeys(option.sets, option.read(value, facts) if option.read else value)
    except EquipoiseError as error:
        raise EquipoiseError(f"{name}: {error}") from error


@contextmanager
def _in_words_of(table: OptionTable, by: Mapping[str, str]) -> Iterator[None]:
    """Let errors name the engine's options: the given ones, and current names for others."""
    names = dict(by)
    for name, option in table.options.items():
        for setting in option.sets:
            names.setdefault(setting, name)
    try:
        yield
    except EquipoiseError as error:
        raise EquipoiseError(error.message.named(names)) from error


def _checked_record(path: Path | None, by: Mapping[str, str]) -> Path | None:
    """Return the path if a map can be written there."""
    if path is not None:
        with _said_of(by[RECORD_PATH]):
            check_map_path(path, _RECORD_FORMAT)
            output_file(path)
    return path


def _start(
    settings: Settings,
    by: Mapping[str, str],
    num_experts: int | None,
    num_ranks: int | None,
    layer_ids: tuple[int, ...] | None,
) -> tuple[Placement | None, list[str]]:
    """Read the placement of the map, if there is one, and what is doubtful about it.

    Without a map the redundancy is checked against the ranks.
    """
    if num_ranks is None:
        return None, []
    option = by.get("num_redundant")
    if settings.map_path is None:
        if num_experts is not None:
            with _said_of(option):
                settings.num_slots(num_experts, num_ranks)
        return None, []
    context = MapContext(num_ranks=num_ranks, num_experts=num_experts, layer_ids=layer_ids)
    reading = examine_map(settings.map_path, context)
    has, asked = reading.placement.num_redundant, settings.num_redundant
    if option is not None and asked != has:
        raise EquipoiseError(
            f"{option} asks for {asked} redundant slots, and {settings.map_path} has {has}; leave "
            "it out, or give another map."
        )
    return reading.placement, [f"{settings.map_path}: {text}" for text in reading_warnings(reading)]


@contextmanager
def _said_of(option: str | None) -> Iterator[None]:
    """Let errors begin with the option that they are about, if one was given."""
    try:
        yield
    except EquipoiseError as error:
        raise EquipoiseError(f"{option}: {error}" if option else f"{error}") from error


def _advice(
    table: OptionTable, given: list[tuple[str, Any]], settings: Settings, by: Mapping[str, str]
) -> Iterator[str]:
    """Yield advice on the given options and their values."""
    for name, _ in given:
        if table.options[name].advice:
            yield f"{name}: {table.options[name].advice}."
    if settings.layers_per_step == 0:
        return
    interval, wait = by.get("update_interval"), by.get("wait_steps")
    if interval and settings.update_interval < _SHORT_INTERVAL:
        yield (
            f"{interval} is {settings.update_interval}: 400 and more suit traffic that is stable, "
            f"{_SHORT_INTERVAL} to 200 traffic that changes; in fewer steps chance looks like load."
        )
    if wait and settings.wait_steps < _SHORT_WAIT:
        yield (
            f"{wait} is {settings.wait_steps}: {_SHORT_WAIT} and more are advised, so that a plan "
            "is ready in time. What planning takes is measured in the warm-up, and waited for."
        )


def _on(foreign: list[str]) -> Iterator[str]:
    if foreign:
        yield f"{shown_names(foreign)}: not for balancing, so without effect here."


def _record(placement: Placement, path: Path) -> None:
    write_map(placement, path, format=_RECORD_FORMAT)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
