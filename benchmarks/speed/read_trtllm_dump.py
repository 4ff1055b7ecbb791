"""How fast a TensorRT-LLM dump is read: 100 iterations x 58 layers x 36 ranks x 256 experts.

Protocol: the dump (about 440 MB, layout V1, Poisson counts with mean 4) is generated into a
temporary folder, so its pages are in the page cache. A fresh process then reads it once. Printed
are the seconds of ``read`` (imports excluded) and that process's peak resident memory, which
counts the interpreter, its libraries and the mapped pages of the file being read.

    python benchmarks/speed/read_trtllm_dump.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.trtllm import traces

ITERATIONS, LAYERS, RANKS, EXPERTS = 100, range(3, 61), 36, 256


def generate(directory: Path) -> None:
    meta = f'{{"num_experts": {EXPERTS}, "num_experts_per_token": 8}}'
    (directory / "meta_info.json").write_text(meta, encoding="utf-8")
    rng = np.random.default_rng(0)
    for rank in range(RANKS):
        counts = rng.poisson(4, (ITERATIONS, len(LAYERS), EXPERTS))
        vectors = {
            f"{iteration + 10}_{layer}": counts[iteration, row]
            for iteration in range(ITERATIONS)
            for row, layer in enumerate(LAYERS)
        }
        save_file(vectors, directory / f"rank{rank}.safetensors")


def measure(directory: Path) -> None:
    start = time.perf_counter()
    trace = traces.read(directory, TraceOptions(), no_progress)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(f"{trace}\n{seconds:.2f} s, peak {peak:.0f} MiB resident")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            generate(Path(name))
            subprocess.run([sys.executable, __file__, name], check=True)
