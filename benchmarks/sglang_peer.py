"""The EPLB algorithm inside the sglang wheel, loaded alone, without installing sglang."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULE = "sglang/srt/eplb/eplb_algorithms/deepseek.py"


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peer",
        type=Path,
        required=True,
        metavar="PATH",
        help=f"an sglang wheel, a folder it was unpacked to, or the file {MODULE} itself",
    )


def load(path: Path) -> Callable[..., tuple[Any, Any, Any]]:
    """The peer's ``rebalance_experts``; exits with a sentence where there is none."""
    if path.is_dir():
        path = path / MODULE
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; give --peer as the docstring says.")
    source = path.read_bytes()
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            source = wheel.read(MODULE)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "peer_eplb.py"
        copy.write_bytes(source)
        spec = importlib.util.spec_from_file_location("peer_eplb", copy)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    rebalance: Callable[..., tuple[Any, Any, Any]] = module.rebalance_experts
    return rebalance
