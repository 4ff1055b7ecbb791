"""What a user can set about the plug-in: one environment variable of JSON, or a file of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.checks import brief, check_number
from equipoise.engines._shared.json_text import parse_json
from equipoise.engines.files import check_readable, output_file
from equipoise.engines.map_io import read_map
from equipoise.engines.vllm.plugin import VARIABLE
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


class Then(Enum):
    """What follows the first change: the map that is given, or without one the first plan."""

    HOLD = "hold"
    BALANCE = "balance"


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginOptions:
    """The options, by the names users know.

    Parameters
    ----------
    max_moves_share
        Share of the slots that one rebalance may change, from 0 to 1.
    gate
        Mean rank loads that the mean peak has to sink by, or a rebalance changes nothing.
    time_budget_seconds
        Seconds that the search for one plan may take.
    map
        Placement to start from; ``None``: whatever vLLM starts with.
    then
        What follows the first change.
    status
        File that says what became of the plans, for the server's metrics; ``None``: there is none.
    """

    max_moves_share: float = 0.5
    gate: float = 0.005
    time_budget_seconds: float = 0.5
    map: Placement | None = None
    then: Then = Then.BALANCE
    status: Path | None = None


def read_options(value: str) -> PluginOptions:
    """The options from the value of the environment variable.

    Parameters
    ----------
    value
        A JSON object, or the path of a file that holds one.

    Raises
    ------
    EquipoiseError
        No such object, an unknown option, a value out of range, or options without effect.
    """
    given = _document(value)
    unknown = set(given) - {field.name for field in fields(PluginOptions)}
    if unknown:
        raise _error(
            f"has no option {brief(min(unknown))}; there are "
            f"{', '.join(field.name for field in fields(PluginOptions))}."
        )
    found: dict[str, Any] = {name: _READERS[name](name, value) for name, value in given.items()}
    if "map" in found:
        found.setdefault("then", Then.HOLD)
    unread = {"max_moves_share", "gate"} & set(found)
    if unread and "map" in found and found["then"] is Then.HOLD:
        raise _error(
            f"holds the slots of a map, so {min(unread)} has no effect; leave it out, or set then "
            'to "balance".'
        )
    return PluginOptions(**found)


def _document(value: str) -> dict[str, Any]:
    if value.lstrip().startswith("{"):
        given = parse_json(value.encode(errors="surrogatepass"), VARIABLE)
    else:
        given = parse_json(_content(value), f"{value}, named by {VARIABLE}")
    if not isinstance(given, dict):
        raise _error(f"is {brief(given)}; expected a JSON object of options, {{}} for none.")
    return given


def _content(path: str) -> bytes:
    try:
        check_readable(Path(path))
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _error(
            f"is {brief(path)}, which is no JSON object such as {{}}; taken for the path of a file "
            f"it cannot be read ({brief(error)})."
        ) from error


def _share(name: str, value: Any) -> float:
    return check_number(f"{VARIABLE}: {name}", value, low=0, high=1)


def _at_least_zero(name: str, value: Any) -> float:
    return check_number(f"{VARIABLE}: {name}", value, low=0, high=np.inf)


def _map(name: str, value: Any) -> Placement:
    if not isinstance(value, str):
        raise _error(f"has {brief(value)} as {name}; expected the path of a file.")
    return read_map(value)


def _status(name: str, value: Any) -> Path:
    if not isinstance(value, str):
        raise _error(f"has {brief(value)} as {name}; expected the path of a file.")
    return output_file(Path(value))


def _then(name: str, value: Any) -> Then:
    for known in Then:
        if value == known.value:
            return known
    choices = " or ".join(f'"{known.value}"' for known in Then)
    raise _error(f"has {brief(value)} as {name}; expected {choices}.")


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "max_moves_share": _share,
    "gate": _at_least_zero,
    "time_budget_seconds": _at_least_zero,
    "map": _map,
    "then": _then,
    "status": _status,
}


def _error(text: str) -> EquipoiseError:
    return EquipoiseError(f"{VARIABLE} {text}")
