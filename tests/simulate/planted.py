"""Kernel tables whose times come from known constants, to be found again."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from equipoise.simulate.calibrate import draw, predict, predict_exchange
from equipoise.simulate.compute import Device, KernelCost
from equipoise.simulate.network import ExchangeCost, Link
from equipoise.simulate.tables import COMPUTE_COLUMNS, EXCHANGE_COLUMNS, Table

DEVICE = Device(memory_bytes_per_second=3.35e12, flops_per_second={"fp8": 1979e12})
LINK = Link(bytes_per_second=450e9)
DECODE = KernelCost(fixed_seconds=25e-6, memory_share=0.7, flops_share=0.5, sharpness=2.0)
LOW_LATENCY = ExchangeCost(copies="assignment", fixed_seconds=9e-6, link_share=0.6)


def compute_table(cost: KernelCost = DECODE, *, noise: float = 0.0, seed: int = 0) -> Table:
    """Decode rows of a DeepEP table of a small model on the H100."""
    rows = []
    for ranks in (2, 4, 8):
        for alpha in (0.0, 0.6, 1.2):
            for tokens in (16, 64, 256, 1024, 4096, 16384):
                name = "power_law" if alpha else "uniform"
                start = ("H100", "sglang", "1", "masked", "fp8_block", "decode", 2048, 1024, 32, 4)
                rows.append((*start, 32, ranks, name, alpha, 0, tokens, -1, 1.0))
    columns = _columns(COMPUTE_COLUMNS, rows)
    drawn = draw(Table("planted", columns), "deepep", num_draws=20)
    seconds = predict(cost, DEVICE, drawn).seconds
    luck = np.exp(np.random.default_rng(seed).normal(0, noise, len(seconds)))
    return Table("planted", {**columns, "time_us": seconds * luck * 1e6})


def exchange_table(cost: ExchangeCost = LOW_LATENCY) -> Table:
    """Rows of a low-latency exchange on one node."""
    rows = [
        ("H100", "sglang", "1", "deepep_ll", op, "fp8", width, 64, 6, 8, 1, 0, tokens, 1.0)
        for op in ("dispatch", "combine")
        for width in (2048, 4096)
        for tokens in (1, 16, 128, 512)
    ]
    columns = _columns(EXCHANGE_COLUMNS, rows)
    seconds = predict_exchange(cost, LINK, Table("planted", columns))
    return Table("planted", {**columns, "time_us": seconds * 1e6})


def _columns(names: tuple[str, ...], rows: list[tuple]) -> dict[str, np.ndarray]:
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def write(table: Table, path: Path) -> Path:
    """Write a table as the CSV that it is read from."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(zip(*(column.tolist() for column in table.columns.values()), strict=True))
    return path
