"""How fast an ADRS load history is read: 2,400 steps x 58 layers x 256 experts, about 250 MB.

Protocol: the file (Poisson loads of mean 30,000, so five digits each, as ``json.dump`` writes them)
is generated into a temporary folder, so its pages are in the page cache. A fresh process then reads
it once. Printed are the seconds of ``read`` (imports excluded) and that process's peak resident
memory, which counts the interpreter and its libraries.

    python benchmarks/speed/read_load_history.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from equipoise.engines.deepseek import traces
from equipoise.engines.formats import TraceOptions, no_progress

STEPS, LAYERS, EXPERTS = 2400, 58, 256


def generate(path: Path) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"load_history": [')
        for step in range(STEPS):
            loads = rng.poisson(30_000, (LAYERS, EXPERTS)).tolist()
            file.write(", " if step else "")
            json.dump({"logical_expert_load": loads}, file)
        file.write("]}")


def measure(path: Path) -> None:
    start = time.perf_counter()
    trace = traces.read(path, TraceOptions(), no_progress)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(f"{trace}\n{path.stat().st_size / 1e6:.0f} MB")
    print(f"{seconds:.2f} s, peak {peak:.0f} MiB resident")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            generate(Path(name) / "expert-load.json")
            subprocess.run([sys.executable, __file__, f"{name}/expert-load.json"], check=True)
