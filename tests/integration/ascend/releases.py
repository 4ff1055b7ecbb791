"""Where the releases of vllm-ascend are: each in a folder of its own, since they share a name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RELEASES = ("0.13.0", "0.18.0", "0.23.0.post1", "0.30.0rc2")
ROOT = Path(__file__).parents[3]
FOLDER = Path(sys.prefix) / "vllm-ascend"


def run(release: str, module: str, *arguments: object, seconds: float = 600) -> str:
    """Run a module of the tests with a release first on the path; returns what it printed."""
    folder = FOLDER / release
    assert folder.is_dir(), f"there is no {folder}: vllm-ascend {release} is not installed there"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "VLLM_PLUGINS": "equipoise_ascend",
        "VLLM_LOGGING_LEVEL": "INFO",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
