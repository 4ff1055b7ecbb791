"""Hardware and fitted kernels as data: what is known of them, from where, and how surely.

A value is a number with its relative uncertainty, its source and date. Where no number was
published the value is ``null`` with the reason; what is assumed in its place is marked, and its
uncertainty widens every interval that rests on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from equipoise.checks import brief, check_count, check_number, check_type
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_json
from equipoise.simulate.compute import Device, KernelCost
from equipoise.simulate.network import ExchangeCost, Link

_MAX_BYTES = 4 << 20
_ASSUMED_UNCERTAINTY = 0.5
BORROWED_LOG_ERROR = 0.17
"""What a fit from another GPU adds to its own error, as a standard deviation of logarithms:
measured between the wide-EP kernels of H100 and GB200, each predicted from the other."""

_UNITS = ("bfloat16", "fp8", "fp4")
_DATA = "equipoise.simulate.profiles"


@dataclass(frozen=True)
class Quantity:
    """A number with its uncertainty and source.

    Parameters
    ----------
    value
        The number; what is assumed if none was published.
    uncertainty
        Relative, one standard deviation.
    source
        Who published it and when; the reason if nobody did.
    is_assumed
        Nobody published it.
    """

    value: float
    uncertainty: float
    source: str
    is_assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """A GPU: what it can do at most, and the link to others in its node or domain.

    Parameters
    ----------
    key
        What tables and commands call it: the profile's name, or that of its file.
    maker
        Who makes it: fits carry over less surely between makers.
    coherent_message_share
        Share of a proxy's time for a message that is left where the host shares the GPU's memory
        coherently; ``None`` if it does not.
    """

    key: str
    name: str
    maker: str
    memory_bytes: Quantity
    memory_bytes_per_second: Quantity
    flops_per_second: Mapping[str, Quantity]
    link_bytes_per_second: Quantity
    ranks_per_node: Quantity
    coherent_message_share: Quantity | None = None

    @property
    def device(self) -> Device:
        """The numbers alone, for ``KernelCost.on``; a rate that it lacks is left out."""
        return Device(
            memory_bytes_per_second=self.memory_bytes_per_second.value,
            flops_per_second={units: flops.value for units, flops in self.flops_per_second.items()},
        )

    @property
    def link(self) -> Link:
        """The link within the node or domain, one direction."""
        return Link(bytes_per_second=self.link_bytes_per_second.value)

    def is_called(self, gpu: str) -> bool:
        """Whether a table means this GPU."""
        return gpu.lower() == self.key.lower()

    def uncertainty(self, units: str) -> float:
        """Relative uncertainty of a time that rests on the memory and on these units."""
        flops = self.flops_per_second.get(units)
        return max(self.memory_bytes_per_second.uncertainty, flops.uncertainty if flops else 0)


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A link between nodes, a rank's share of it, in one direction.

    Parameters
    ----------
    message_seconds
        What a proxy on the host takes for a message; ``None``: the GPU sends by itself.
    """

    name: str
    latency_seconds: Quantity
    bytes_per_second: Quantity
    message_seconds: Quantity | None = None

    @property
    def link(self) -> Link:
        """The numbers alone."""
        return Link(
            latency_seconds=self.latency_seconds.value,
            bytes_per_second=self.bytes_per_second.value,
            message_seconds=0.0 if self.message_seconds is None else self.message_seconds.value,
        )

    @property
    def uncertainty(self) -> float:
        """Relative uncertainty of what crosses it."""
        parts = (self.bytes_per_second, self.message_seconds)
        return max(part.uncertainty for part in parts if part is not None)

    def from_gpu(self, gpu: HardwareProfile) -> Link:
        """The link from that GPU, whose host may see what it writes without a detour."""
        share = gpu.coherent_message_share
        kept = 1.0 if share is None else share.value
        return replace(self.link, message_seconds=kept * self.link.message_seconds)


@dataclass(frozen=True)
class Spread:
    """A statistic of several layers and kinds of traffic: their mean and standard deviation."""

    mean: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class RoutingPrior:
    """What is known of how a family of models routes: for who has no recording.

    Parameters
    ----------
    skew
        Standard deviation of the logarithm of an expert's popularity, within a layer.
    drift
        The same of what a window adds to it, each window for itself.
    layer_correlation
        Correlation of these logarithms between an expert and that of its number in the next layer.
    window_tokens
        Tokens of the windows that drift was fitted to.
    source
        What it was fitted to, with its licence.
    """

    name: str
    phase: str
    num_layers: int
    num_experts: int
    top_k: int
    window_tokens: int
    skew: Spread
    drift: Spread
    layer_correlation: Spread
    source: str

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_experts", "top_k", "window_tokens"):
            check_count(name, getattr(self, name))
        for name, low, high in (("skew", 0, 5), ("drift", 0, 5), ("layer_correlation", -1, 1)):
            statistic = getattr(self, name)
            check_number(name, statistic.mean, low=low, high=high)
            check_number(f"spread of {name}", statistic.spread, low=0, high=5)
        if self.top_k > self.num_experts:
            raise EquipoiseError(
                f"top_k is {self.top_k} of {self.num_experts} experts; expected no more than that."
            )

    def to_json(self) -> str:
        """The document that ``prior`` reads."""
        return json.dumps({"format": "equipoise prior 1", **asdict(self)}, indent=1) + "\n"


@dataclass(frozen=True, kw_only=True)
class FittedKernel:
    """A compute kernel's cost, fitted to a table.

    Parameters
    ----------
    table
        Kind of the table, which says what one of its times means.
    log_error
        Standard deviation of log(measured / predicted) that the draws do not explain.
    """

    table: str
    gpu: str
    framework: str
    kernel: str
    dtype: str
    phase: str
    cost: KernelCost
    log_error: float
    num_cells: int


@dataclass(frozen=True, kw_only=True)
class FittedExchange:
    """An exchange's cost, fitted to a table; ``dtype`` is the payload's."""

    gpu: str
    framework: str
    kernel: str
    op: str
    dtype: str
    cost: ExchangeCost
    log_error: float
    num_cells: int


@dataclass(frozen=True)
class Calibration:
    """What ``equipoise calibrate`` fits and writes.

    Parameters
    ----------
    source
        What it was fitted to.
    """

    source: str
    kernels: tuple[FittedKernel, ...]
    exchanges: tuple[FittedExchange, ...]

    def nearest(
        self, *, table: str, phase: str, kernel: str = "", dtype: str = "", gpu: str = ""
    ) -> FittedKernel:
        """The fit that is most like what is asked for: kernel first, then format, then GPU.

        Its shares of a device's rates carry over to another device, less surely: see
        ``BORROWED_LOG_ERROR``.
        """
        known = [f for f in self.kernels if f.table == table and f.phase in (phase, "any")]
        if not known:
            have = sorted({f"{fit.table} ({fit.phase})" for fit in self.kernels})
            raise EquipoiseError(
                f"There is no fit of {brief(table)} for {brief(phase)}; there is {', '.join(have)}."
            )
        return min(
            known, key=lambda fit: (fit.kernel != kernel, fit.dtype != dtype, fit.gpu != gpu)
        )

    def to_json(self) -> str:
        """The document that ``calibration`` reads."""
        document = {"format": "equipoise calibration 1", **asdict(self)}
        return json.dumps(document, indent=1) + "\n"


def hardware(name_or_path: str | Path) -> HardwareProfile:
    """A GPU's profile: one that ships, by name, or a file.

    Raises
    ------
    EquipoiseError
        An unknown name.
    FormatError
        A damaged file.
    """
    document, where = _document(name_or_path, "hardware")
    flops = _mapping(document, "flops_per_second", where)
    quantities = {units: _quantity(flops, units, where) for units in _UNITS}
    _known(flops, "bfloat16", where)  # what stands in for a rate that is not known
    return HardwareProfile(
        key=Path(where).name.removesuffix(".json"),
        name=_text(document, "name", where),
        maker=_text(document, "maker", where),
        memory_bytes=_known(document, "memory_bytes", where),
        memory_bytes_per_second=_known(document, "memory_bytes_per_second", where),
        flops_per_second={units: known for units, known in quantities.items() if known},
        link_bytes_per_second=_known(document, "link_bytes_per_second", where),
        ranks_per_node=_known(document, "ranks_per_node", where),
        coherent_message_share=_optional(document, "coherent_message_share", where, high=1),
    )


def link(name_or_path: str | Path) -> LinkProfile:
    """A link between nodes: one that ships, by name, or a file; raises as ``hardware``."""
    document, where = _document(name_or_path, "link")
    return LinkProfile(
        name=_text(document, "name", where),
        latency_seconds=_known(document, "latency_seconds", where),
        bytes_per_second=_known(document, "bytes_per_second", where),
        message_seconds=_optional(document, "message_seconds", where, high=1),
    )


def calibration(path: str | Path = "published") -> Calibration:
    """Fitted kernels: those that ship, or a file of ``equipoise calibrate``; raises as above."""
    document, where = _document(path, "calibration")
    return Calibration(
        source=_text(document, "source", where),
        kernels=tuple(
            _fitted(FittedKernel, KernelCost, entry, where)
            for entry in _entries(document, "kernels", where)
        ),
        exchanges=tuple(
            _fitted(FittedExchange, ExchangeCost, entry, where)
            for entry in _entries(document, "exchanges", where)
        ),
    )


def prior(name_or_path: str | Path) -> RoutingPrior:
    """How a family of models routes: one that ships, by name, or a file; raises as above."""
    document, where = _document(name_or_path, "prior")
    entry = {name: value for name, value in document.items() if name != "format"}
    try:
        _check_keys(RoutingPrior, entry)
        for name in ("name", "phase", "source"):
            check_type(name, entry[name], str)
        for name in ("skew", "drift", "layer_correlation"):
            _check_keys(Spread, entry[name])
            entry[name] = Spread(**entry[name])
        return RoutingPrior(**entry)
    except EquipoiseError as error:
        raise FormatError(f"{where}: {error}") from error


@cache
def names(kind: str) -> tuple[str, ...]:
    """Names of the profiles that ship: of ``hardware``, ``link``, ``calibration`` or ``prior``."""
    folder = files(_DATA) / "data" / kind
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir()))


def _document(name_or_path: str | Path, kind: str) -> tuple[dict[str, Any], str]:
    """A document of a kind, and how messages call it."""
    name = str(name_or_path)
    source: Path | Traversable = Path(name)
    if name.lower() in names(kind):
        source = files(_DATA) / "data" / kind / f"{name.lower()}.json"
    elif not Path(name).is_file():
        raise EquipoiseError(
            f"There is no {kind} profile {brief(name)}; give a file or one of "
            f"{', '.join(names(kind))}."
        )
    with source.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise FormatError(f"{name} has more than {_MAX_BYTES >> 20} MiB; expected a profile.")
    document = parse_json(data, name)
    expected = f"equipoise {kind} 1"
    if not isinstance(document, dict) or document.get("format") != expected:
        raise FormatError(f'{name} is no {kind} profile; expected "format": "{expected}".')
    return document, name


def _known(document: dict[str, Any], key: str, where: str) -> Quantity:
    quantity = _quantity(document, key, where)
    if quantity is None:
        raise FormatError(f'{where}: {key} is null without "assumed"; give what to assume.')
    return quantity


def _optional(document: dict[str, Any], key: str, where: str, high: float) -> Quantity | None:
    """A quantity up to ``high``; ``None`` without the key."""
    if key not in document:
        return None
    quantity = _known(document, key, where)
    if quantity.value > high:
        raise FormatError(f"{where}: {key} is {quantity.value:g}; expected from 0 to {high:g}.")
    return quantity


def _quantity(document: Mapping[str, Any], key: str, where: str) -> Quantity | None:
    """A quantity; ``None`` if it is null with a reason and nothing is assumed."""
    entry = document.get(key)
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: {key} is {brief(entry)}; expected an object with a value.")
    if entry.get("value", "") is None:
        reason = _text(entry, "reason", f"{where}: {key}")
        if "assumed" not in entry:
            return None
        value = _number(entry, "assumed", f"{where}: {key}")
        return Quantity(value, _ASSUMED_UNCERTAINTY, reason, is_assumed=True)
    place = f"{where}: {key}"
    return Quantity(
        _number(entry, "value", place),
        _number(entry, "uncertainty", place, high=1),
        f"{_text(entry, 'source', place)}, {_text(entry, 'date', place)}",
    )


def _number(entry: Mapping[str, Any], key: str, where: str, high: float = 1e30) -> float:
    value = entry.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise FormatError(f"{where}: {key} is {brief(value)}; expected a number.")
    if not 0 <= value <= high or (value == 0 and key != "uncertainty"):
        raise FormatError(f"{where}: {key} is {brief(value)}; expected from 0 to {high:g}.")
    return float(value)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise FormatError(f"{where}: {key} is {brief(value)}; expected text.")
    return value


def _mapping(entry: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = entry.get(key)
    if not isinstance(value, dict):
        raise FormatError(f"{where}: {key} is {brief(value)}; expected an object.")
    return value


def _entries(document: dict[str, Any], key: str, where: str) -> list[Any]:
    entries = document.get(key)
    if not isinstance(entries, list):
        raise FormatError(f"{where}: {key} is {brief(entries)}; expected a list.")
    return entries


def _fitted(kind: Any, cost_kind: Any, entry: Any, where: str) -> Any:
    """A fit with its cost; the classes check the numbers."""
    try:
        _check_keys(kind, entry)
        _check_keys(cost_kind, entry["cost"])
        check_number("log_error", entry["log_error"], low=0, high=math.inf)
        check_count("num_cells", entry["num_cells"])
        for name in set(entry) - {"cost", "log_error", "num_cells"}:
            check_type(name, entry[name], str)
        return kind(**{**entry, "cost": cost_kind(**entry["cost"])})
    except (EquipoiseError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from error


def _check_keys(kind: Any, entry: Any) -> None:
    expected = {field.name for field in fields(kind)}
    if not isinstance(entry, dict) or set(entry) != expected:
        raise EquipoiseError(
            f"{brief(entry)} is not a {kind.__name__}; expected {', '.join(sorted(expected))}."
        )
