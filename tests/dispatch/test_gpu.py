"""The device's dispatch: Triton (interpreted), torch and the CPU's kernel against each other."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.dispatch import MinMax
from equipoise.dispatch.gpu import MAX_ROUNDS, GpuMinMax, GpuPlacement
from equipoise.dispatch.tokens import expert_counts
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from tests.dispatch.instances import random_instances
from tests.dispatch.test_dispatchers import batches, per_expert
from tests.dispatch.test_minmax import HOT, K12_GREEDY, K12_OPTIMAL, placed, ring

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
if DEVICE == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks at it once, when it is imported
needs_triton = pytest.mark.skipif(
    not HAS_TRITON or (DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"),
    reason="Triton is not installed, or was imported before TRITON_INTERPRET=1 was set",
)
backends = pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_triton), "torch"])


def on_device(placement, backend="torch", **options):
    return GpuMinMax(placement=GpuPlacement(placement, DEVICE), backend=backend, **options)


def whole(load):
    return torch.tensor(np.asarray(load, dtype=np.int32), device=DEVICE)


def least_peak(load, placement, layer=0):
    return (
        MinMax().split(load, placement).quotas[layer].reshape(placement.num_ranks, -1).sum(1).max()
    )


def check_quotas(load_E, placement, layer, found):
    """Valid quotas of the least peak, which their status knows."""
    quotas, (bound, peak, _) = found.quotas.cpu().numpy(), found.status.tolist()
    load_LE = np.zeros((placement.num_layers, placement.num_experts))
    load_LE[layer] = load_E
    served = np.bincount(placement.slots[layer], quotas, placement.num_experts)
    assert quotas.min() >= 0
    assert served.tolist() == list(load_E)
    assert peak == quotas.reshape(placement.num_ranks, -1).sum(axis=1).max()
    assert bound == peak == least_peak(load_LE, placement, layer)


def slots_one_by_one(ids, quotas, placement, layer, start):
    """Each expert's assignments in order to its slots in order, ``start`` of them ahead."""
    served = Counter(start)
    out = np.full(ids.shape, -1)
    for place in np.ndindex(*ids.shape):
        e = int(ids[place])
        slots = np.flatnonzero(placement.slots[layer] == e)
        after = np.searchsorted(np.cumsum(quotas[slots]), served[e], side="right")
        if after < len(slots):
            out[place] = slots[after]
        served[e] += 1
    return out


@backends
@pytest.mark.parametrize(
    ("load", "placement", "peak"),
    [
        (HOT, placed(*K12_GREEDY), 595 / 3),
        (HOT, placed(*K12_OPTIMAL), 580 / 3),
        ([6, 2, 0, 0], ring(), 3),
        ([4, 4, 0, 0], ring(), 8 / 3),
        ([4, 0, 4, 0], ring(), 2),
        ([8, 0, 0, 0], ring(), 4),
        ([0, 0, 0, 0], ring(), 0),
        ([9, 3], placed([0, 0, 0], [0, 1, 1]), 6),
        ([7, 5], placed([0, 1]), 12),
        ([9], placed([0, 0, 0]), 9),
        ([3, 4], placed([0], [1]), 4),
    ],
)
def test_known_answers(load, placement, peak, backend):
    found = on_device(placement, backend).quotas(whole(load), 0)
    assert found.status[:2].tolist() == [math.ceil(peak)] * 2
    check_quotas(load, placement, 0, found)


@given(batch=batches(st.one_of(st.integers(0, 9), st.integers(0, 10**6))))
def test_quotas_are_those_of_the_least_peak(batch):
    load, placement = batch
    for layer in range(placement.num_layers):
        found = on_device(placement).quotas(whole(load[layer]), layer)
        check_quotas(load[layer], placement, layer, found)


@needs_triton
@settings(max_examples=12)
@given(batch=batches(st.one_of(st.integers(0, 9), st.integers(0, 10**6))))
def test_triton_and_torch_share_alike(batch):
    load, placement = batch
    for layer in range(placement.num_layers):
        triton, plain = (
            on_device(placement, name).quotas(whole(load[layer]), layer)
            for name in ("triton", "torch")
        )
        assert triton.quotas.tolist() == plain.quotas.tolist()
        assert triton.status.tolist() == plain.status.tolist()


def whole_instances(number, seed):
    for name, load, placement in random_instances(number, seed):
        if not name.endswith(("lognormal", "huge counts")):
            yield name, load[0], placement


def test_the_least_peak_on_placements_of_all_shapes():
    for name, load, placement in whole_instances(252, 0):
        found = on_device(placement).quotas(whole(load), 0)
        check_quotas(load, placement, 0, found)
        assert int(found.status[2]) < MAX_ROUNDS, name


@needs_triton
def test_triton_on_placements_of_all_shapes():
    cases = list(whole_instances(252, 1))[::12]
    for name, load, placement in cases:
        triton, plain = (
            on_device(placement, backend).quotas(whole(load), 0) for backend in ("triton", "torch")
        )
        assert triton.quotas.tolist() == plain.quotas.tolist(), name
        assert triton.status.tolist() == plain.status.tolist(), name


@pytest.mark.parametrize("max_rounds", [0, 1, 2, 4])
def test_quotas_are_valid_whenever_the_rounds_end(max_rounds):
    stopped = 0
    for name, load, placement in whole_instances(252, 2):
        found = on_device(placement, max_rounds=max_rounds).quotas(whole(load), 0)
        quotas, (bound, peak, rounds) = found.quotas.cpu().numpy(), found.status.tolist()
        assert per_expert(quotas[None], placement)[0].tolist() == load.tolist(), name
        assert peak == quotas.reshape(placement.num_ranks, -1).sum(axis=1).max(), name
        assert bound <= least_peak(load[None], placement) <= peak, name
        assert rounds <= max_rounds
        stopped += bound < peak
    assert stopped


def test_load_travels_along_a_chain_of_all_ranks():
    n = 40
    load = [80] + [40] * (n - 1)
    line = placed([0, 0], *([r, r - 1] for r in range(1, n)))
    found = on_device(line).quotas(whole(load), 0)
    assert found.status[:2].tolist() == [41, 41]


@st.composite
def tokens(draw):
    """Ids with padding on both sides, and quotas that may be short of them."""
    load, placement = draw(batches(st.integers(0, 9), num_layers=2))
    ids = st.integers(-2, placement.num_experts + 1)
    top_k = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(ids, min_size=top_k, max_size=top_k), max_size=30))
    return np.array(rows, dtype=np.int64).reshape(-1, top_k), load, placement


@backends
@settings(max_examples=15)
@given(case=tokens(), layer=st.integers(0, 1), short=st.booleans())
def test_slots_follow_the_quotas(backend, case, layer, short):
    ids, load, placement = case
    device = on_device(placement, backend)
    counts = device.counts(torch.tensor(ids, device=DEVICE))
    assert counts.tolist() == expert_counts(ids[:, None], placement.num_experts)[0].tolist()
    quotas = device.quotas(whole(load[layer]) if short else counts, layer).quotas
    slots = device.assign(torch.tensor(ids, device=DEVICE), quotas, layer)
    wanted = slots_one_by_one(ids, quotas.cpu().numpy(), placement, layer, {})
    assert slots.tolist() == wanted.tolist()
    if not short:
        filled = np.bincount(wanted[wanted >= 0], minlength=placement.num_slots)
        assert filled.tolist() == quotas.tolist()
        assert ((wanted < 0) == ((ids < 0) | (ids >= placement.num_experts))).all()


def skewed(rng, num_tokens, num_experts, top_k):
    ids = np.minimum(rng.geometric(4 / num_experts, (num_tokens, top_k)) - 1, num_experts)
    return np.where(rng.random(ids.shape) < 0.02, -1, ids)


@pytest.fixture
def scattered():
    rng = np.random.default_rng(5)
    rows = [rng.permutation([*range(24), *rng.integers(0, 6, 12)]) for _ in range(3)]
    return Placement(rows, num_ranks=6, num_experts=24)


@backends
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_dispatch_of_more_tokens_than_a_block(scattered, backend, dtype):
    """2,100 ids: three blocks, the last one short, and tiles at their ends."""
    ids = skewed(np.random.default_rng(1), 700, 24, 3)
    device = on_device(scattered, backend)
    found = device.dispatch(torch.tensor(ids, dtype=dtype, device=DEVICE), 2)
    quotas = device.quotas(device.counts(torch.tensor(ids, device=DEVICE)), 2).quotas
    wanted = slots_one_by_one(ids, quotas.cpu().numpy(), scattered, 2, {})
    assert found.dtype == dtype
    assert found.tolist() == wanted.tolist()


@backends
def test_sources_fill_the_quotas_together(scattered, backend):
    """Twenty sources, more rows than are summed at a time; most of them have no token."""
    rng = np.random.default_rng(2)
    sizes = {1: 30, 2: 1, 18: 20}
    sources = [skewed(rng, sizes.get(i, 0), 24, 2) for i in range(20)]
    device = on_device(scattered, backend)
    counts = whole([expert_counts(ids[:, None], 24)[0] for ids in sources])
    slots = np.concatenate(
        [
            device.dispatch(
                torch.tensor(sources[i], device=DEVICE), 1, counts=counts, source=i
            ).cpu()
            for i in (0, 1, 2, 18, 19)
        ]
    )
    together = device.dispatch(torch.tensor(np.concatenate(sources), device=DEVICE), 1)
    assert slots.tolist() == together.tolist()
    filled = np.bincount(slots[slots >= 0], minlength=scattered.num_slots)
    assert filled.tolist() == device.quotas(counts, 1).quotas.tolist()


@backends
def test_ids_beyond_32_bits_are_padding(backend):
    ids = torch.tensor([[2**32, 2**32 + 1, 0]], device=DEVICE)
    assert on_device(ring(), backend).dispatch(ids, 0).tolist() == [[-1, -1, 0]]


@backends
def test_a_placement_is_replaced_in_place(scattered, backend):
    device = on_device(scattered, backend)
    memory = {name: table.data_ptr() for name, table in device.placement.tables.items()}
    rolled = Placement(np.roll(scattered.slots, 5, axis=1), num_ranks=6, num_experts=24)
    device.placement.replace(rolled)
    assert {name: t.data_ptr() for name, t in device.placement.tables.items()} == memory
    ids = torch.tensor(skewed(np.random.default_rng(3), 40, 24, 2), device=DEVICE)
    assert device.placement.host == rolled
    assert device.dispatch(ids, 0).tolist() == on_device(rolled, backend).dispatch(ids, 0).tolist()
    with pytest.raises(EquipoiseError, match=r"= \(3, 36, 24, 4\), the one on the device \(3, 36"):
        device.placement.replace(Placement(scattered.slots, num_ranks=4, num_experts=24))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.counts(torch.zeros(3, dtype=torch.int32)), r"\(3,\) of torch.int32 on"),
        (lambda d: d.counts(torch.zeros(3, 2)), "float32 on .*; expected .* int32 or int64"),
        (lambda d: d.dispatch(torch.zeros(3, 2, dtype=torch.int64), 1), "no layer 1; .* 1 rows"),
        (lambda d: d.dispatch(torch.zeros(3, 2, dtype=torch.int64), -1), "no layer -1"),
        (lambda d: d.quotas(torch.zeros(4), 0), r"\(1, 4\) of torch.float32"),
        (lambda d: d.quotas(whole([1, 2, 3]), 0), r"expected \(1, 4\) of torch.int32"),
        (lambda d: d.quotas(whole(3), 0), "Counts are"),
        (lambda d: d.assign(torch.zeros(3, 2, dtype=torch.int64), whole([1]), 0), "Quotas are"),
        (
            lambda d: d.dispatch(torch.zeros(3, 2, dtype=torch.int64), 0, source=1),
            "no source 1",
        ),
        (
            lambda d: d.counts(torch.zeros(1, 1, dtype=torch.int32).expand(2**15, 2**15)),
            "up to 2 copies; expected a product below",
        ),
        (lambda d: GpuMinMax(placement=d.placement, max_rounds=-1), "max_rounds is -1"),
        (lambda d: GpuMinMax(placement=d.placement, backend="jax"), "no backend 'jax'"),
        (lambda d: GpuPlacement(ring(), "tpu"), "Device tpu cannot be used"),
    ],
)
@pytest.mark.skipif(DEVICE != "cpu", reason="tensors of the cases are on the CPU")
def test_errors_say_what_came_and_what_was_expected(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call(on_device(ring()))


@pytest.mark.skipif(DEVICE != "cpu", reason="there is a GPU")
def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(EquipoiseError, match="TRITON_INTERPRET=1"):
        on_device(ring(), "triton").quotas(whole([1, 1, 1, 1]), 0)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from equipoise.dispatch import _triton_kernels as kernels

scalars = {"num_ids", "num_rows", "layer", "max_rounds", "source"}
for name, numbers in {
    "tally": dict(E=256, BINS=512, BLOCK=1024),
    "solve": dict(E=256, R=32, W=9, COLUMNS=256, WIDE=16, P=128, STEP=16),
    "assign": dict(E=256, S=288, BLOCK=1024, TILE=128, STEP=16),
}.items():
    kernel = getattr(kernels, name)
    types = {n: "i32" if n in scalars else "*i32" for n in kernel.arg_names}
    types |= dict.fromkeys(numbers, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=numbers)
    print(name, len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_kernels_compile_for_a_gpu(tmp_path):
    """Down to machine code, which takes no GPU; in a process that does not interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["tally", "solve", "assign"]


@pytest.mark.long
@needs_triton
def test_512_experts_on_128_ranks():
    rng = np.random.default_rng(0)
    slots = rng.permutation([*range(512), *rng.integers(0, 512, 512)])
    placement = Placement([slots], num_ranks=128, num_experts=512)
    ids = torch.tensor(skewed(rng, 4096, 512, 8), device=DEVICE)
    triton, plain = (on_device(placement, backend) for backend in ("triton", "torch"))
    counts = plain.counts(ids)
    found = triton.quotas(counts, 0)
    check_quotas(counts.tolist(), placement, 0, found)
    assert found.status.tolist() == plain.quotas(counts, 0).status.tolist()
    assert triton.dispatch(ids, 0).tolist() == plain.dispatch(ids, 0).tolist()


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU is at hand")
def test_all_layers_in_one_captured_graph(scattered):
    device = on_device(scattered, None)
    ids = torch.zeros(64, 4, dtype=torch.int64, device=DEVICE)

    def all_layers():
        return [device.dispatch(ids, layer) for layer in range(scattered.num_layers)]

    all_layers()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = all_layers()
    for seed in range(3):
        ids.copy_(torch.tensor(skewed(np.random.default_rng(seed), 64, 24, 4)))
        graph.replay()
        for layer, slots in enumerate(captured):
            wanted = on_device(scattered, "torch").dispatch(ids, layer)
            assert slots.tolist() == wanted.tolist()
