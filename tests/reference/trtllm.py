"""What TensorRT-LLM's scripts do with a folder of statistics, in plain loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def load_statistic(path: Path) -> tuple[dict[str, Any], dict[tuple[int, int], list[int]]]:
    """The sum over rank files by (iteration, layer), and what the folder states or implies.

    Fails, as the scripts do, on gaps in the iterations and on missing layers of an iteration.
    """
    meta: dict[str, Any] = json.loads((path / "meta_info.json").read_text())
    files = [f for f in path.glob("rank*.safetensors") if not f.name.endswith("_raw.safetensors")]
    total: dict[tuple[int, int], list[int]] = {}
    for file in files:
        for key, counts in load_file(file).items():
            iteration, layer = map(int, key.split("_"))
            before = total.get((iteration, layer), [0] * len(counts))
            total[iteration, layer] = [a + int(b) for a, b in zip(before, counts, strict=True)]
    iterations = sorted({iteration for iteration, _ in total})
    layers = sorted({layer for _, layer in total})
    assert iterations == list(range(iterations[0], iterations[-1] + 1))
    assert len(total) == len(iterations) * len(layers)
    meta["ep_size"] = len(files)
    meta["iterations"], meta["layers"] = iterations, layers
    return meta, total


def load_statistics(path: Path) -> dict[int, tuple[float, float, float]]:
    """Mean, deviation (n - 1) and imbalance ratio over ranks, by layer, averaged over iterations.

    A rank holds an equal block of what was counted.
    """
    meta, total = load_statistic(path)
    size = meta["num_experts"] // meta["ep_size"]
    table = {}
    for layer in meta["layers"]:
        rows = []
        for iteration in meta["iterations"]:
            counts = total[iteration, layer]
            loads = [sum(counts[r * size : (r + 1) * size]) for r in range(meta["ep_size"])]
            mean = sum(loads) / len(loads)
            squares = sum((load - mean) ** 2 for load in loads)
            rows.append((mean, math.sqrt(squares / (len(loads) - 1)), max(loads) / mean - 1))
        columns = zip(*rows, strict=True)
        mean, std, ratio = (sum(column) / len(rows) for column in columns)
        table[layer] = (mean, std, ratio)
    return table
