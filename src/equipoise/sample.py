"""The recording that ships with the package."""

from __future__ import annotations

from pathlib import Path


def sample_trace_path() -> Path:
    """Routing of the project's own small model over several text domains, prefill and decode.

    Recorded by ``equipoise capture``; how, and what the model is: ``models/README.md``.
    """
    return Path(__file__).parent / "data" / "sample.trace.safetensors"
