"""Fitting kernel costs to published tables, and predicting the cells of a table.

The fit is least squares on the logarithms of times, with a loss that outliers cannot dominate. The
loads of each cell are drawn again by the recipe of its table, and the slowest rank of each draw is
taken. The fit compares the mean over draws with the measured time. Equal tables give equal fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from equipoise.checks import brief
from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import Device, ExpertShape, KernelCost
from equipoise.simulate.draws import Deployment, Share, power_law_share, uniform_share
from equipoise.simulate.network import (
    Copies,
    ExchangeCost,
    Link,
    payload_bytes,
    uniform_traffic,
)
from equipoise.simulate.profiles import (
    Calibration,
    FittedExchange,
    FittedKernel,
    HardwareProfile,
    hardware,
    names,
)
from equipoise.simulate.tables import MEANINGS, Meaning, Table, read_compute, read_exchange

NUM_DRAWS = 20
"""Number of draws per cell; a multiple of five, because some times are means of five draws."""

_SMALL_LOAD = 32.0  # mean load from which wide-EP kernels use wide tiles
_LOSS_SCALE = 0.1  # larger deviations of the logarithm count less than quadratically
_MOST_EVALUATIONS = 40
_PREFILL_TILE = 128  # rows of one tile of the contiguous kernel
_ROBUST = 1.4826  # standard deviation over median absolute deviation, for a normal distribution

_Bounds = Mapping[str, tuple[float, float, float]]

_COMMON: _Bounds = {
    "fixed_seconds": (1e-6, 30e-6, 1e-3),
    "memory_share": (0.1, 0.8, 1.0),
    "flops_share": (0.02, 0.4, 1.0),
    "sharpness": (1.0, 2.0, 10.0),
}
_FREE: Mapping[tuple[str, str], _Bounds] = MappingProxyType(
    {
        ("deepep", "decode"): _COMMON,
        ("deepep", "prefill"): {
            **_COMMON,
            "host_seconds": (1e-6, 300e-6, 3e-3),
            "token_passes": (1e-3, 1.0, 100.0),
        },
        ("wideep", "any"): {
            **_COMMON,
            "depth_seconds": (1e-12, 1e-9, 20e-9),
            "slot_seconds": (1e-9, 0.1e-6, 2e-6),
            "small_flops_share": (0.02, 0.2, 1.0),
            "assignment_passes": (1e-3, 3.0, 100.0),
            "token_passes": (1e-3, 1.0, 100.0),
        },
    }
)
"""Fitted parameters by kind of table and phase: least value, first guess, largest value."""

_EXCHANGE_FREE: _Bounds = {
    "fixed_seconds": (1e-7, 10e-6, 1e-3),
    "link_share": (0.01, 0.5, 2.0),
}
_COPIES: Mapping[str, Copies] = {
    "deepep_ll": "assignment",
    "deepep_normal": "rank",
    "nvlink_two_sided": "rank",
    "nvlink_one_sided": "rank",
}


@dataclass(frozen=True)
class Forecast:
    """Predicted times of cells; arrays are ``(cells,)``.

    Parameters
    ----------
    seconds
        Geometric mean over draws, in seconds.
    log_draw
        Standard deviation of the logarithm over draws: the effect of chance.
    log_error
        Standard deviation of the logarithm of the model's error.
    """

    seconds: NDArray[np.float64]
    log_draw: NDArray[np.float64]
    log_error: float

    def interval(self, deviations: float = 1.28) -> NDArray[np.float64]:
        """Compute a confidence interval, ``(2, cells)``; 1.28 deviations give 80 %."""
        spread = np.hypot(self.log_draw, self.log_error) * deviations
        return np.stack([self.seconds * np.exp(-spread), self.seconds * np.exp(spread)])


@dataclass(frozen=True)
class _Group:
    """Cells with the same expert shape and slots per rank, which are computed in one call."""

    cells: NDArray[np.intp]
    shape: ExpertShape
    load: NDArray[np.float64]
    tokens: NDArray[np.float64]


@dataclass(frozen=True)
class DrawnTable:
    """A compute table and the drawn shares of the slowest rank in each of its cells.

    Parameters
    ----------
    kind
        Kind of table, ``wideep`` or ``deepep``, which says what a time means.
    shares
        Drawn share of the slowest rank for each row.
    """

    kind: str
    table: Table
    shares: tuple[Share, ...]

    @property
    def meaning(self) -> Meaning:
        """Meaning of a time in this table."""
        return MEANINGS[self.kind]

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> DrawnTable:
        """Return the chosen rows with their draws."""
        rows = np.arange(len(self.table))[chosen]
        return DrawnTable(self.kind, self.table.where(rows), tuple(self.shares[i] for i in rows))

    def groups(self) -> list[_Group]:
        """Group the cells whose arrays have the same shape."""
        by_draws: dict[tuple[object, ...], list[int]] = {}
        shapes = _shapes(self.table)
        for row, share in enumerate(self.shares):
            by_draws.setdefault((shapes[row], share.load.shape), []).append(row)
        return [
            _Group(
                np.array(rows),
                shapes[rows[0]],
                np.stack([self.shares[row].load for row in rows]),
                np.stack([self._tokens(row) for row in rows]),
            )
            for rows in by_draws.values()
        ]

    def _tokens(self, row: int) -> NDArray[np.float64]:
        """Return the tokens that the timed rank handles, for each draw."""
        share = self.shares[row]
        if self.meaning.counts_distinct:
            return share.tokens.astype(np.float64)
        return np.full(len(share.tokens), float(self.table["tokens_global"][row]))


def draw(table: Table, kind: str, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> DrawnTable:
    """Draw the loads of every cell; cells that differ only in the kernel share them."""
    rounding = MEANINGS[kind].rounding
    columns = ("num_experts", "top_k", "ep_size", "num_slots", "eplb", "tokens_global", "alpha")
    known: dict[tuple[Any, ...], Share] = {}
    shares = []
    for row in zip(*(table[name].tolist() for name in (*columns, "phase")), strict=True):
        if row not in known:
            experts, top_k, ranks, slots, eplb, tokens, alpha, phase = row
            deployment = Deployment(
                num_experts=experts,
                top_k=top_k,
                num_ranks=ranks,
                num_slots=slots,
                is_balanced=bool(eplb),
            )
            known[row] = (
                power_law_share(
                    tokens, alpha, deployment, rounding=rounding, num_draws=num_draws, seed=seed
                )
                if alpha
                else uniform_share(
                    tokens, deployment, tile=_PREFILL_TILE if phase == "prefill" else 1
                )
            )
        shares.append(known[row])
    return DrawnTable(kind, table, tuple(shares))


def predict(
    cost: KernelCost, device: Device, drawn: DrawnTable, log_error: float = 0.0
) -> Forecast:
    """Predict the times of a table's cells from a kernel's cost."""
    return _Predictor(drawn)(cost, device, log_error)


class _Predictor:
    """A predictor for the same cells with different costs; their draws are grouped once."""

    def __init__(self, drawn: DrawnTable) -> None:
        self.num_averaged = drawn.meaning.num_averaged
        self.num_cells = len(drawn.table)
        self.groups = drawn.groups()

    def __call__(self, cost: KernelCost, device: Device, log_error: float = 0.0) -> Forecast:
        middle, spread = np.empty(self.num_cells), np.zeros(self.num_cells)
        for group in self.groups:
            seconds = cost.on(device, group.shape).seconds(group.load, group.tokens)
            if seconds.shape[1] > 1:
                averaged = seconds.reshape(len(seconds), -1, self.num_averaged).mean(axis=2)
            else:
                averaged = seconds
            logs = np.log(averaged)
            middle[group.cells] = np.exp(logs.mean(axis=1))
            spread[group.cells] = logs.std(axis=1)
        return Forecast(middle, spread, log_error)


def _shapes(table: Table) -> list[ExpertShape]:
    """Return the expert shape of every row; equal shapes are one object."""
    columns = ("hidden_size", "inter_size", "num_experts", "top_k", "dtype")
    known: dict[tuple[object, ...], ExpertShape] = {}
    rows = list(zip(*(table[name].tolist() for name in columns), strict=True))
    for row in rows:
        if row not in known:
            known[row] = ExpertShape(**dict(zip(columns, row, strict=True)))
    return [known[row] for row in rows]


def fit_kernel(drawn: DrawnTable, device: Device) -> tuple[KernelCost, float]:
    """Fit the cost of one kernel; also return the log deviation that draws do not explain.

    Parameters
    ----------
    drawn
        Rows of one kernel, phase, format and GPU.
    """
    phase = str(drawn.table["phase"][0])
    free = _FREE.get((drawn.kind, phase))
    if free is None:
        raise EquipoiseError(
            f"{drawn.table.name} has phase {phase!r}; expected one of "
            f"{', '.join(p for kind, p in _FREE if kind == drawn.kind)}."
        )
    held = {
        "token_block": _PREFILL_TILE if phase == "prefill" else 1,
        "small_load": _SMALL_LOAD if "small_flops_share" in free else 0.0,
    }
    predictor = _Predictor(drawn)
    measured = np.log(drawn.table.seconds)

    def cost_of(values: Mapping[str, float]) -> KernelCost:
        return KernelCost(**held, **values)  # type: ignore[arg-type]

    def residuals(values: Mapping[str, float]) -> NDArray[np.float64]:
        return np.log(predictor(cost_of(values), device).seconds) - measured

    cost = cost_of(_minimise(residuals, free))
    forecast = predictor(cost, device)
    deviations = np.log(forecast.seconds) - measured
    total = (_ROBUST * np.median(np.abs(deviations))) ** 2
    by_luck = float(np.median(forecast.log_draw)) ** 2
    return cost, float(np.sqrt(max(total - by_luck, 0.1 * total)))


def _minimise(
    residuals: Callable[[Mapping[str, float]], NDArray[np.float64]], free: _Bounds
) -> dict[str, float]:
    """Find positive parameters that minimise the residuals, on a logarithmic scale."""
    low, first, high = np.log(np.array(list(free.values()))).T

    def named(logs: NDArray[np.float64]) -> dict[str, float]:
        values = np.clip(np.exp(logs), np.exp(low), np.exp(high))
        return {name: float(value) for name, value in zip(free, values, strict=True)}

    def by_logs(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return residuals(named(logs))

    found = least_squares(
        by_logs,
        first,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=_LOSS_SCALE,
        max_nfev=_MOST_EVALUATIONS,
    )
    return {name: float(f"{value:.5g}") for name, value in named(found.x).items()}


def fit_exchange(table: Table, near: Link) -> tuple[ExchangeCost, float]:
    """Fit the cost of one exchange, like ``fit_kernel``, for a table with balanced loads."""
    kernel = str(table["kernel"][0])
    if kernel not in _COPIES:
        raise EquipoiseError(
            f"{table.name} has the kernel {kernel!r}; expected one of {', '.join(_COPIES)}."
        )
    free = dict(_EXCHANGE_FREE)
    if len(np.unique(table["ep_size"])) > 1:
        free["peer_seconds"] = (1e-10, 1e-7, 1e-5)
    if len(np.unique(table["hidden_size"])) > 1:
        free["byte_seconds"] = (1e-12, 1e-9, 1e-8)
    if table["sms"].max() > 0:
        free["sm_bytes_per_second"] = (1e8, 1e10, 1e12)
    measured = np.log(table.seconds)

    def cost_of(values: Mapping[str, float]) -> ExchangeCost:
        return ExchangeCost(copies=_COPIES[kernel], **values)

    def residuals(values: Mapping[str, float]) -> NDArray[np.float64]:
        return np.log(predict_exchange(cost_of(values), near, table)) - measured

    values = _minimise(residuals, free)
    return cost_of(values), float(_ROBUST * np.median(np.abs(residuals(values))))


def predict_exchange(cost: ExchangeCost, near: Link, table: Table) -> NDArray[np.float64]:
    """Predict the times of an exchange table's rows, with all ranks on one fast network."""
    seconds = np.empty(len(table))
    columns = ("num_experts", "top_k", "ep_size", "hidden_size", "dtype", "op", "sms")
    for (experts, top_k, ranks, width, dtype, op, sms), rows in table.groups(*columns):
        traffic = uniform_traffic(
            table["tokens_per_rank"][rows],
            cost.copies,
            num_experts=experts,
            top_k=top_k,
            num_ranks=ranks,
            ranks_per_node=ranks,
        )
        payload = payload_bytes(width, payload_dtype(op, dtype))
        seconds[rows] = cost.seconds(traffic, payload, near, sms=sms)
    return seconds


def payload_dtype(op: str, dtype: str) -> str:
    """Return the number format that an operation sends; results are bfloat16 unless it says so."""
    return "bfloat16" if op == "combine" else dtype


def calibrate(folder: Path, *, source: str = "") -> Calibration:
    """Fit every kernel and exchange of the tables in a folder.

    A GPU without a built-in profile needs one in the folder: ``GPU.json``.

    Parameters
    ----------
    folder
        Folder with the tables.
    source
        Description of the tables; the folder's name if empty.

    Raises
    ------
    EquipoiseError
        A folder without tables, or with a table that cannot be read.
    """
    kernels: list[FittedKernel] = []
    exchanges: list[FittedExchange] = []
    for kind in MEANINGS:
        if (folder / f"moe_compute_{kind}.csv").exists():
            kernels += fit_kernels(draw(read_compute(folder, kind), kind), folder)
    if (folder / "alltoall.csv").exists():
        exchanges = fit_exchanges(read_exchange(folder), folder)
    if not kernels and not exchanges:
        raise EquipoiseError(
            f"{folder} has no kernel table; expected alltoall.csv or one of "
            f"{', '.join(f'moe_compute_{kind}.csv' for kind in MEANINGS)}."
        )
    return Calibration(source or f"tables in {folder.name}", tuple(kernels), tuple(exchanges))


_KERNEL = ("gpu", "framework", "kernel", "dtype", "phase")


def fit_kernels(drawn: DrawnTable, folder: Path) -> list[FittedKernel]:
    """Fit every kernel of a compute table."""
    fits = []
    for values, rows in drawn.table.groups(*_KERNEL):
        part = drawn.where(rows)
        cost, log_error = fit_kernel(part, hardware_of(values[0], folder).device)
        fits.append(
            FittedKernel(
                table=drawn.kind,
                **dict(zip(_KERNEL, values, strict=True)),
                cost=cost,
                log_error=float(f"{log_error:.4g}"),
                num_cells=len(rows),
            )
        )
    return fits


_EXCHANGE = ("gpu", "framework", "kernel", "op", "dtype")


def fit_exchanges(table: Table, folder: Path) -> list[FittedExchange]:
    """Fit every exchange of an exchange table that moves tokens."""
    moved = np.array([payload_dtype(*row) for row in zip(table["op"], table["dtype"], strict=True)])
    table = replace(table, columns={**table.columns, "dtype": moved})
    table = table.where(table["op"] != "prepare")
    fits = []
    for values, rows in table.groups(*_EXCHANGE):
        part = table.where(rows)
        cost, log_error = fit_exchange(part, hardware_of(values[0], folder).link)
        fits.append(
            FittedExchange(
                **dict(zip(_EXCHANGE, values, strict=True)),
                cost=cost,
                log_error=float(f"{log_error:.4g}"),
                num_cells=len(rows),
            )
        )
    return fits


def hardware_of(gpu: str, folder: Path) -> HardwareProfile:
    """Find a GPU's hardware profile: a built-in one, or ``GPU.json`` in the tables' folder."""
    own = folder / f"{gpu}.json"
    if gpu.lower() not in names("hardware") and Path(gpu).name == gpu and own.is_file():
        return hardware(own)
    if gpu.lower() not in names("hardware"):
        raise EquipoiseError(
            f"There is no hardware profile for the GPU {brief(gpu)}; put one next to the tables, "
            f"as {own.name[:60]}, or use one of {', '.join(names('hardware'))}."
        )
    return hardware(gpu)
