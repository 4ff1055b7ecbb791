"""Dispatch, serving and moving on one GPU, in at most eight minutes.

    python -m benchmarks.gpu [--json FILE] [--seconds 420]

From the repository root; needs what a CUDA image of PyTorch has: torch with Triton, and numpy.
No data are read: 256 experts, whose popularity is drawn from a log-normal distribution, 8 choices a
token.

* "dispatch of a layer": ``GpuMinMax.dispatch`` of 58 layers for 4,096 tokens on 32 ranks in one
  captured CUDA graph, device time of a replay by layers; the target is 30 us.
* "step of a layer": ``ExpertParallelLayer`` with a process group of one rank, alone and while
  ``BackgroundTransfer`` copies weights on another stream. 288 slots in bfloat16, width
  2,048, inner width 768: some 2.7 GB.
* "step of 4 virtual ranks": the same slots as four ranks with a stream each, at rest and while all
  weights are copied to other ranks.

"answers" tells whether slots were those of the plain path, and results the same as before experts
moved. The time budget limits how often each is measured.

Exit status: 0 if all answers were right, 1 if one was wrong, 2 if there is no GPU to measure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # nothing has to be installed

import torch

from benchmarks.gpu import dispatch, layer, ranks
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.timing import Row, TimeBudget
from benchmarks.quality.machine import about_machine

PARTS = (dispatch, layer, ranks)


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=_first(__doc__))
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the numbers to")
    parser.add_argument(
        "--seconds", type=float, default=420, help="time budget of the measurements (420)"
    )
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No GPU is here: run this where PyTorch finds a CUDA device.", file=sys.stderr)
        return 2
    return run(Sizes(), torch.device("cuda"), given.seconds, given.json)


def run(sizes: Sizes, device: torch.device, seconds: float, file: Path | None) -> int:
    """Measure all parts, each with an equal share of the time that is left; print a table."""
    machine = about(device)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    print(table_head(), flush=True)
    rows: list[Row] = []
    for part in PARTS:
        for row in part.measure(sizes, device, TimeBudget(seconds / len(PARTS))):
            rows.append(row)
            print(table_line(row), flush=True)
    if file is not None:
        numbers = {"machine": machine, "sizes": asdict(sizes), "rows": [asdict(r) for r in rows]}
        file.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    return 0 if all(row.right for row in rows) else 1


def about(device: torch.device) -> dict[str, object]:
    """Hardware and versions."""
    machine = about_machine()
    found: dict[str, object] = {"device": "CPU", "cpu": machine["cpu"]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["cuda"] = torch.version.cuda
    return found | {"python": machine["python"], "versions": machine["versions"]}


def table_head() -> str:
    return (
        "| what | median, us | p99, us | target, us | answers | samples |\n"
        "|---|---:|---:|---:|---|---:|"
    )


def table_line(row: Row) -> str:
    target = ""
    if row.target is not None:
        target = f"{row.target:g}, {'met' if row.median <= row.target else 'missed'}"
    answers = "right" if row.right else "WRONG"
    return (
        f"| {row.what} | {row.median:.1f} | {row.p99:.1f} | {target} | {answers} | {row.samples} |"
    )


def _first(text: str) -> str:
    return text.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
