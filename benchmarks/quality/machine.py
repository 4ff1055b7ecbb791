"""The hardware and versions a number was measured with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path


def about_machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "cpu": f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("numpy", "scipy", "numba", "torch")},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
