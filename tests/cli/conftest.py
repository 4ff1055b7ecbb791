"""What the tests of several commands use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.trace import TokenIds

LAYERS = (2, 3, 4)


@pytest.fixture(scope="session")
def recording(tmp_path_factory) -> Path:
    """Ten steps of 200 tokens, top-2: 3 layers, 16 experts, of which some are hot.

    The second expert of a token is often the one after its first.
    """
    chance = np.random.default_rng(5)
    popular = np.stack([chance.permutation(1 / (1 + np.arange(16))) for _ in LAYERS])
    first = np.stack([chance.choice(16, 2000, p=p / p.sum()) for p in popular], axis=1)
    further = np.where(chance.random(first.shape) < 0.6, 1, chance.integers(2, 16, first.shape))
    ids = np.stack([first, (first + further) % 16], axis=2)
    tokens = TokenIds(ids, np.arange(0, 2001, 200))
    counts = (ids.reshape(10, 200, 3, 2)[..., None] == np.arange(16)).sum(axis=(1, 3))
    path = tmp_path_factory.mktemp("recording") / "run.trace.safetensors"
    eq.write_trace(eq.Trace(counts=counts, layer_ids=LAYERS, top_k=2, tokens=tokens), path)
    return path


@pytest.fixture
def text(capsys) -> Callable[..., str]:
    """Run a command that is to succeed; what it prints, notes on its input apart."""

    def run(*arguments: object, status: int = 0) -> str:
        answer = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not line.startswith("equipoise: note: ")]
        assert (answer, said) == (status, [])
        return str(out)

    return run


@pytest.fixture
def document(text) -> Callable[..., Any]:
    """The same with ``--json``, read back."""

    def run(*arguments: object, status: int = 0) -> Any:
        return json.loads(text(*arguments, "--json", status=status))

    return run
