"""Settings of the controller from the options of an engine, by the names its users know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from equipoise.checks import check_count
from equipoise.control.settings import Settings
from equipoise.engines._shared.options import Options
from equipoise.engines.ascend import settings as ascend
from equipoise.engines.trtllm import settings as trtllm
from equipoise.engines.vllm import settings as vllm
from equipoise.errors import EquipoiseError

_OPTIONS: dict[str, Options] = {
    "ascend": ascend.OPTIONS,
    "trtllm": trtllm.OPTIONS,
    "vllm": vllm.OPTIONS,
}


def from_options(
    engine: str, options: Mapping[str, Any], *, num_experts: int, **ours: Any
) -> Settings:
    """Settings from the options of an engine.

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
    found, by = dict(ours), {name: name for name in ours}
    for option, value in options.items():
        for name, setting in _read(engine, option, value, num_experts).items():
            if name in found:
                raise EquipoiseError(f"{option} and {by[name]} both set {name}; give one of them.")
            found[name], by[name] = setting, option
    unknown = set(found) - set(Settings.__dataclass_fields__)
    if unknown:
        raise EquipoiseError(f"There is no setting {_names(unknown)}.")
    return Settings(**found)


def _read(engine: str, option: str, value: Any, num_experts: int) -> dict[str, Any]:
    known = _OPTIONS[engine]
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


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
