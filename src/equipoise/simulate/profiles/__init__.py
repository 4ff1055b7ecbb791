"""Profiles of hardware, and fitted kernels, as data with sources and uncertainties.

A value is a number with its relative uncertainty, source and date. If no number was published, the
value is ``null`` with a reason. An assumed number is marked as such, and its uncertainty widens
every interval that depends on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from equipoise.checks import brief, check_count, check_fields, check_number, check_type
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_json
from equipoise.simulate.compute import Device, KernelCost
from equipoise.simulate.network import ExchangeCost, Link

_MAX_BYTES = 4 << 20
_ASSUMED_UNCERTAINTY = 0.5
BORROWED_LOG_ERROR = 0.17
"""Error added to a fit from another GPU, as a standard deviation of logarithms. It was measured
between the wide-EP kernels of H100 and GB200, each predicted from the other."""

_UNITS = ("bfloat16", "fp8", "fp4")
_DATA = "equipoise.simulate.profiles"


@dataclass(frozen=True)
class Quantity:
    """A number with its uncertainty and source.

    Parameters
    ----------
    value
        Number, possibly assumed.
    uncertainty
        Relative uncertainty, as one standard deviation.
    source
        Publisher and date; the reason if there is none.
    is_assumed
        Flag that the number was not published.
    """

    value: float
    uncertainty: float
    source: str
    is_assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """A GPU: its peak rates, and the link to others in its node or domain.

    Parameters
    ----------
    key
        Name in tables and commands: the profile's name, or that of its file.
    name, memory_bytes, memory_bytes_per_second
        Full name, memory size and memory bandwidth.
    maker
        Maker. Fits are less certain for a GPU of another maker.
    flops_per_second
        Dense operations per second by format.
    link_bytes_per_second, ranks_per_node
        Bandwidth of the link within a node or domain, and number of GPUs on it.
    coherent_message_share
        Share of a host proxy's time per message that remains if the host shares the GPU's memory
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
        """Return the plain numbers, for ``KernelCost.on``; unknown rates are left out."""
        return Device(
            memory_bytes_per_second=self.memory_bytes_per_second.value,
            flops_per_second={units: flops.value for units, flops in self.flops_per_second.items()},
        )

    @property
    def link(self) -> Link:
        """Return the link within the node or domain, in one direction."""
        return Link(bytes_per_second=self.link_bytes_per_second.value)

    def is_called(self, gpu: str) -> bool:
        """Tell whether a table's name for a GPU means this one."""
        return gpu.lower() == self.key.lower()

    def uncertainty(self, units: str) -> float:
        """Return the relative uncertainty of a time that depends on the memory and these units."""
        flops = self.flops_per_second.get(units)
        return max(self.memory_bytes_per_second.uncertainty, flops.uncertainty if flops else 0)


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A link between nodes: one rank's share of it, in one direction.

    Parameters
    ----------
    name, latency_seconds, bytes_per_second
        Name, latency and bandwidth.
    message_seconds
        Time of a host proxy per message; ``None`` if the GPU sends by itself.
    """

    name: str
    latency_seconds: Quantity
    bytes_per_second: Quantity
    message_seconds: Quantity | None = None

    @property
    def link(self) -> Link:
        """Return the plain numbers."""
        return Link(
            latency_seconds=self.latency_seconds.value,
            bytes_per_second=self.bytes_per_second.value,
            message_seconds=0.0 if self.message_seconds is None else self.message_seconds.value,
        )

    @property
    def uncertainty(self) -> float:
        """Return the relative uncertainty of times over this link."""
        parts = (self.bytes_per_second, self.message_seconds)
        return max(part.uncertainty for part in parts if part is not None)

    def from_gpu(self, gpu: HardwareProfile) -> Link:
        """Return the link from a GPU, with its message time if host and GPU share memory."""
        share = gpu.coherent_message_share
        kept = 1.0 if share is None else share.value
        return replace(self.link, message_seconds=kept * self.link.message_seconds)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a statistic over layers and kinds of traffic."""

    mean: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class RoutingPrior:
    """The routing statistics of a family of models, for users without a recording.

    Parameters
    ----------
    name, phase
        Name of the family, and phase of the steps.
    num_layers, num_experts, top_k
        Numbers of layers, experts and choices per token.
    window_tokens
        Number of tokens of the windows that ``drift`` was fitted to.
    skew
        Standard deviation of the logarithm of an expert's popularity, within a layer.
    drift
        Standard deviation of the number that each window adds to that logarithm.
    layer_correlation
        Correlation of these logarithms between experts of the same number in neighbouring layers.
    source
        Data that it was fitted to, with its licence.
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
        """Write the document that ``prior`` reads."""
        return json.dumps({"format": "equipoise prior 1", **asdict(self)}, indent=1) + "\n"


@dataclass(frozen=True, kw_only=True)
class FittedKernel:
    """The cost of a compute kernel, fitted to a table.

    Parameters
    ----------
    table
        Kind of the table, which says what its times mean.
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
    """The cost of an exchange, fitted to a table; ``dtype`` is the format of the payload."""

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
    """The fitted costs that ``equipoise calibrate`` writes.

    Parameters
    ----------
    source
        Data that the costs were fitted to.
    """

    source: str
    kernels: tuple[FittedKernel, ...]
    exchanges: tuple[FittedExchange, ...]

    def nearest(
        self, *, table: str, phase: str, kernel: str = "", dtype: str = "", gpu: str = ""
    ) -> FittedKernel:
        """Find the most similar fit: by kernel first, then by format, then by GPU.

        Its shares of a device's rates are used for other devices too, with a larger error: see
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
        """Write the document that ``calibration`` reads."""
        document = {"format": "equipoise calibration 1", **asdict(self)}
        return json.dumps(document, indent=1) + "\n"


def hardware(name_or_path: str | Path) -> HardwareProfile:
    """Read a GPU's profile: a built-in one by name, or a file.

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
    """Read a link between nodes: a built-in one by name, or a file; errors as ``hardware``."""
    document, where = _document(name_or_path, "link")
    return LinkProfile(
        name=_text(document, "name", where),
        latency_seconds=_known(document, "latency_seconds", where),
        bytes_per_second=_known(document, "bytes_per_second", where),
        message_seconds=_optional(document, "message_seconds", where, high=1),
    )


def calibration(path: str | Path = "published") -> Calibration:
    """Read fitted kernels: the published ones, or a file of ``equipoise calibrate``."""
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
    """Read a routing prior: a built-in one by name, or a file; errors as ``hardware``."""
    document, where = _document(name_or_path, "prior")
    entry = {name: value for name, value in document.items() if name != "format"}
    try:
        check_fields("the prior", entry, RoutingPrior)
        for name in ("name", "phase", "source"):
            check_type(name, entry[name], str)
        for name in ("skew", "drift", "layer_correlation"):
            check_fields(name, entry[name], Spread)
            entry[name] = Spread(**entry[name])
        return RoutingPrior(**entry)
    except EquipoiseError as error:
        raise FormatError(f"{where}: {error}") from error


@cache
def names(kind: str) -> tuple[str, ...]:
    """List the built-in profiles: of ``hardware``, ``link``, ``calibration`` or ``prior``."""
    folder = files(_DATA) / "data" / kind
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir()))


def _document(name_or_path: str | Path, kind: str) -> tuple[dict[str, Any], str]:
    """Read a document of a kind; also return its name in messages."""
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
        raise FormatError(f'{name} is not a {kind} profile; expected "format": "{expected}".')
    return document, name


def _known(document: dict[str, Any], key: str, where: str) -> Quantity:
    quantity = _quantity(document, key, where)
    if quantity is None:
        raise FormatError(f'{where}: {key} is null without "assumed"; give what to assume.')
    return quantity


def _optional(document: dict[str, Any], key: str, where: str, high: float) -> Quantity | None:
    """Read a quantity up to ``high``; ``None`` without the key."""
    if key not in document:
        return None
    quantity = _known(document, key, where)
    if quantity.value > high:
        raise FormatError(f"{where}: {key} is {quantity.value:g}; expected from 0 to {high:g}.")
    return quantity


def _quantity(document: Mapping[str, Any], key: str, where: str) -> Quantity | None:
    """Read a quantity; ``None`` if it is null with a reason and no assumed value."""
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
    """Read a fit with its cost; the classes check the numbers."""
    try:
        check_fields("a fit", entry, kind)
        check_fields("cost", entry["cost"], cost_kind)
        check_number("log_error", entry["log_error"], low=0, high=math.inf)
        check_count("num_cells", entry["num_cells"])
        for name in set(entry) - {"cost", "log_error", "num_cells"}:
            check_type(name, entry[name], str)
        return kind(**{**entry, "cost": cost_kind(**entry["cost"])})
    except (EquipoiseError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from error
