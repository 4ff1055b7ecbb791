"""How well the cost model predicts published times that it was not fitted to.

Protocol: fit to the tables of one folder and predict those of another; with one folder (the
default), each EP size is left out in turn, fitted to the others and predicted. The model knows the
distribution a cell names, not the draw behind its time. One JSON line for each kind of table:

- ``median_error``: median of |predicted / measured - 1| over cells.
- ``sign_right``: share of pairs, equal but for more slots than experts, where it is predicted
  whether the copies make the layer faster; ``base_rate``: share of the commoner answer.
  ``sign_possible``: the share that one could expect of a model without any error of its own, since
  the two times of a pair have luck of their own.
- ``tokens_only_error``: ``median_error`` of a model that knows tokens, ranks and the expert's size.
- ``covered``: share of times within the 80 % interval; ``log_draw`` and ``log_error``: the middle
  of its two parts, the luck of the draw and the model's own error.

    python benchmarks/quality/costmodel.py --fit FOLDER --score FOLDER --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import norm

from equipoise.simulate.calibrate import (
    DrawnTable,
    draw,
    fit_exchange,
    fit_kernels,
    hardware_of,
    payload_dtype,
    predict,
    predict_exchange,
)
from equipoise.simulate.profiles import BORROWED_LOG_ERROR, Calibration
from equipoise.simulate.tables import MEANINGS, Table, read_compute, read_exchange

TABLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "kernel_tables"
KERNEL = ("gpu", "kernel", "dtype", "phase")


@dataclass
class Scored:
    """Cells with what was measured and predicted."""

    table: Table
    seconds: NDArray[np.float64]
    log_draw: NDArray[np.float64]
    log_error: NDArray[np.float64]
    tokens_only: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fit", type=Path, default=TABLES)
    parser.add_argument("--score", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON line a table, no text")
    arguments = parser.parse_args()
    score = arguments.score or arguments.fit
    for result in results(arguments.fit, score):
        if arguments.json:
            print(json.dumps(result))
        else:
            print("\n".join(f"{name:20} {value}" for name, value in result.items()), "\n")


def results(fit: Path, score: Path) -> Iterator[dict[str, object]]:
    """One for each kind of table that both folders have."""
    alone = fit.resolve() == score.resolve()
    for kind in MEANINGS:
        name = f"moe_compute_{kind}.csv"
        if (fit / name).exists() and (score / name).exists():
            known = draw(read_compute(fit, kind), kind)
            if alone:
                scored, kept = left_out(known, fit), "each EP size in turn"
            else:
                asked = draw(read_compute(score, kind), kind)
                scored, kept = scored_on(known, asked, fit, score), str(score)
            yield summary(kind, kept, scored)
    if (fit / "alltoall.csv").exists() and (score / "alltoall.csv").exists():
        yield exchanges(read_exchange(fit), read_exchange(score), fit, score)


def left_out(known: DrawnTable, folder: Path) -> Scored:
    """Each EP size predicted from the others."""
    sizes = known.table["ep_size"]
    order, parts = [], []
    for size in np.unique(sizes):
        others, kept = known.where(sizes != size), known.where(sizes == size)
        parts.append(scored_on(others, kept, folder, folder))
        order.append(np.flatnonzero(sizes == size))
    back = np.argsort(np.concatenate(order))
    joined = [
        np.concatenate([getattr(part, name) for part in parts])[back]
        for name in ("seconds", "log_draw", "log_error", "tokens_only")
    ]
    return Scored(known.table, *joined)


def scored_on(known: DrawnTable, asked: DrawnTable, fit_to: Path, score: Path) -> Scored:
    """Cells predicted from a fit to others; a GPU that is not there gets the nearest fit."""
    calibration = Calibration("", tuple(fit_kernels(known, fit_to)), ())
    table = asked.table
    out = Scored(table, *(np.empty(len(table)) for _ in range(4)))
    for (gpu, kernel, dtype, phase), rows in table.groups(*KERNEL):
        fit = calibration.nearest(
            table=asked.kind, phase=phase, kernel=kernel, dtype=dtype, gpu=gpu
        )
        log_error = fit.log_error if fit.gpu == gpu else np.hypot(fit.log_error, BORROWED_LOG_ERROR)
        forecast = predict(fit.cost, hardware_of(gpu, score).device, asked.where(rows), log_error)
        out.seconds[rows] = forecast.seconds
        out.log_draw[rows] = forecast.log_draw
        out.log_error[rows] = forecast.log_error
        chosen = (known.table["gpu"] == fit.gpu) & (known.table["kernel"] == fit.kernel)
        chosen &= (known.table["dtype"] == fit.dtype) & (known.table["phase"] == fit.phase)
        out.tokens_only[rows] = tokens_only(known.table.where(chosen), table.where(rows))
    return out


def tokens_only(known: Table, asked: Table) -> NDArray[np.float64]:
    """Times by ``fixed + rate * operations of the mean rank``, fitted by the same loss."""

    def work(table: Table) -> NDArray[np.float64]:
        assignments = table["tokens_global"] * table["top_k"] / table["ep_size"]
        return assignments * 6.0 * table["hidden_size"] * table["inter_size"]

    x, y = work(known), np.log(known.seconds)
    found = least_squares(
        lambda p: np.log(np.exp(p[0]) + np.exp(p[1]) * x) - y,
        np.log([1e-4, 1e-15]),
        loss="soft_l1",
        f_scale=0.1,
    )
    return np.asarray(np.exp(found.x[0]) + np.exp(found.x[1]) * work(asked))


def summary(kind: str, kept: str, scored: Scored) -> dict[str, object]:
    measured = scored.table.seconds
    error = np.abs(scored.seconds / measured - 1)
    spread = 1.28 * np.hypot(scored.log_draw, scored.log_error)
    result = {
        "table": kind,
        "kept_aside": kept,
        "cells": len(measured),
        "median_error": rounded(np.median(error)),
        **signs(scored),
        "tokens_only_error": rounded(np.median(np.abs(scored.tokens_only / measured - 1))),
        "p90_error": rounded(np.quantile(error, 0.9)),
        "covered": rounded(np.mean(np.abs(np.log(scored.seconds / measured)) <= spread)),
        "log_draw": rounded(np.median(scored.log_draw)),
        "log_error": rounded(np.median(scored.log_error)),
    }
    for name in ("gpu", "phase", "ep_size"):
        result[f"median_error_by_{name}"] = {
            str(values[0]): rounded(np.median(error[rows]))
            for values, rows in scored.table.groups(name)
        }
    return result


def signs(scored: Scored) -> dict[str, object]:
    """Whether more slots than experts make a cell faster, against the same cell without."""
    table = scored.table
    names = ("gpu", "kernel", "dtype", "phase", "hidden_size", "inter_size", "num_experts", "top_k")
    names += ("ep_size", "distribution", "alpha", "tokens_global")
    cells: dict[tuple[object, ...], dict[tuple[int, int], int]] = {}
    columns = (table[name].tolist() for name in (*names, "num_slots", "eplb"))
    for row, (*key, slots, eplb) in enumerate(zip(*columns, strict=True)):
        cells.setdefault(tuple(key), {})[slots, eplb] = row
    pairs = [
        (eplb, with_copies, without)
        for key, rows in cells.items()
        for (slots, eplb), without in rows.items()
        if slots == key[names.index("num_experts")]
        for (more, _), with_copies in rows.items()
        if more > slots
    ]
    if not pairs:
        return {"sign_right": None, "base_rate": None}
    eplb, more, without = np.array(pairs).T
    helps = table.seconds[more] < table.seconds[without]
    said = scored.seconds[more] < scored.seconds[without]
    result: dict[str, object] = {
        "sign_right": rounded(np.mean(helps == said)),
        "base_rate": rounded(max(np.mean(helps), 1 - np.mean(helps))),
        "sign_possible": rounded(np.mean(foreseeable(scored, more, without))),
        "pairs": len(helps),
    }
    for flag, against in ((0, "in_order"), (1, "balanced")):
        chosen = eplb == flag
        rate = np.mean(helps[chosen])
        result[f"sign_right_against_{against}"] = rounded(np.mean((helps == said)[chosen]))
        result[f"base_rate_against_{against}"] = rounded(max(rate, 1 - rate))
    return result


def foreseeable(
    scored: Scored, more: NDArray[np.intp], without: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Chance of the likelier sign of each pair, if only the draws were unknown."""
    difference = np.abs(np.log(scored.seconds[more] / scored.seconds[without]))
    luck = np.hypot(scored.log_draw[more], scored.log_draw[without])
    return np.asarray(norm.cdf(difference / np.maximum(luck, 1e-12)))


def exchanges(known: Table, asked: Table, fit: Path, score: Path) -> dict[str, object]:
    """All-to-all: with one folder, each EP size left out, or each width where there is one size."""
    alone = fit.resolve() == score.resolve()
    errors: dict[str, list[float]] = {}
    for names, rows in asked.where(asked["op"] != "prepare").groups("gpu", "kernel", "op", "dtype"):
        part = asked.where(asked["op"] != "prepare").where(rows)
        if not ((known["kernel"] == names[1]) & (known["op"] == names[2])).any():
            continue
        column = "ep_size" if len(np.unique(part["ep_size"])) > 1 else "hidden_size"
        for value in np.unique(part[column]):
            if alone:
                fit_to, kept = part.where(part[column] != value), part.where(part[column] == value)
            else:
                fit_to, kept = nearest_exchange(known, names), part.where(part[column] == value)
            cost, _ = fit_exchange(fit_to, hardware_of(str(fit_to["gpu"][0]), fit).link)
            predicted = predict_exchange(cost, hardware_of(names[0], score).link, kept)
            key = f"{names[0]} {names[1]} {names[2]} {payload_dtype(names[2], names[3])}"
            errors.setdefault(key, []).extend(np.abs(predicted / kept.seconds - 1))
    return {
        "table": "alltoall",
        "kept_aside": "each EP size or width in turn" if alone else "the other folder",
        "cells": sum(len(values) for values in errors.values()),
        "median_error": rounded(np.median([e for values in errors.values() for e in values])),
        "median_error_by_op": {key: rounded(np.median(e)) for key, e in errors.items()},
    }


def nearest_exchange(known: Table, names: tuple[str, ...]) -> Table:
    """Rows of the same kernel and operation, of the same GPU and format if there are any."""
    gpu, kernel, op, dtype = names
    chosen = (known["kernel"] == kernel) & (known["op"] == op)
    for more in (known["dtype"] == dtype, known["gpu"] == gpu):
        chosen = chosen & more if (chosen & more).any() else chosen
    return known.where(chosen)


def rounded(value: float) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    main()
