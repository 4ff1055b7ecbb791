from __future__ import annotations

import zipfile

import numpy as np
import pytest

from benchmarks.quality.peers import SGLANG, VLLM, peers
from equipoise.plan import Contiguous, Problem
from equipoise.topology import Topology

pytest.importorskip("torch")

SGLANG_SOURCE = """
import torch
def rebalance_experts(weight, slots, groups, nodes, ranks, hierarchical):
    assert weight.shape == (1, 8) and (groups, ranks, hierarchical) == (1, 4, False)
    return torch.arange(slots)[None] % 8, None, None
"""
VLLM_SOURCE = """
from .abstract import Base
class DefaultEplbPolicy(Base):
    @classmethod
    def rebalance_experts(cls, weight, slots, groups, nodes, ranks, old):
        return old
"""


@pytest.fixture
def problem() -> Problem:
    return Problem(np.arange(16).reshape(2, 1, 8), Topology(4), 12)


def test_a_peer_that_is_not_given_says_so():
    found = peers(None)
    assert [p.name for p in found] == ["SGLang deepseek", "SGLang deepseek_vec", "vLLM default"]
    assert all(p.place is None and p.why_not == "--peers not given" for p in found)


def test_files_are_found_in_a_wheel_or_unpacked(tmp_path, problem):
    with zipfile.ZipFile(tmp_path / "sglang-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{SGLANG}/deepseek.py", SGLANG_SOURCE)
    policy = tmp_path / "unpacked" / VLLM
    policy.mkdir(parents=True)
    (policy / "default.py").write_text(VLLM_SOURCE)
    (policy / "abstract.py").write_text("class Base: pass\n")
    old = Contiguous().plan(problem).placement

    deepseek, vec, vllm = peers(tmp_path)
    assert deepseek.source == "sglang-9.9-py3-none-any.whl"
    assert deepseek.place(problem, old).slots.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]]
    assert vllm.place(problem, old) == old
    assert vec.place is None
    assert "deepseek_vec.py" in vec.why_not
