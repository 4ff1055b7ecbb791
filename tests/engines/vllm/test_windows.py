"""The loads by windows of time that vLLM's state holds, and which load they belong to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed

from equipoise.engines.vllm.windows import NUM_WINDOWS, RecordedWindows

torch.manual_seed(0)
SLOTS = torch.tensor([[0, 1, 2, 1], [2, 0, 1, -1]])
E = 3
EPLB = "vllm.distributed.parallel_state"


@pytest.fixture
def rearranged(monkeypatch):
    """A state class whose windows are kept; what it is asked to rearrange is noted."""
    group = SimpleNamespace(device_group=None)
    module = SimpleNamespace(get_ep_group=lambda: group)
    monkeypatch.setitem(__import__("sys").modules, EPLB, module)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: None)
    asked = []

    class EplbState:
        def __init__(self, steps, at):
            model = SimpleNamespace(num_logical_experts=E)
            self.expert_load_window_step = at
            self.model_states = {
                "a": SimpleNamespace(
                    expert_load_window=steps, physical_to_logical_map=SLOTS, model=model
                )
            }

        def rearrange(self, *given):
            asked.append(given)

    windows = RecordedWindows()
    windows.watch(SimpleNamespace(EplbState=EplbState))
    return windows, EplbState, asked


def folded(steps):
    """Loads of experts, ``(T, L, E)``, by plain loops."""
    loads = torch.zeros(len(steps), len(SLOTS), E, dtype=torch.int64)
    for t, step in enumerate(steps):
        for layer, row in enumerate(SLOTS):
            for slot, expert in enumerate(row.tolist()):
                if expert >= 0:
                    loads[t, layer, expert] += step[layer, slot]
    return loads


@pytest.mark.parametrize("at", [0, 3])
def test_windows_are_in_the_order_of_time_and_by_expert(rearranged, at):
    windows, state, asked = rearranged
    steps = torch.randint(0, 50, (5, *SLOTS.shape), dtype=torch.int32)
    state(steps, at).rearrange()
    in_order = folded(torch.cat([steps[at:], steps[:at]]))
    assert (windows.of(in_order.sum(dim=0)) == in_order).all()
    assert asked == [(False, None, False)]


def test_many_steps_are_summed_to_some_windows(rearranged):
    windows, state, _ = rearranged
    steps = torch.randint(0, 50, (100, *SLOTS.shape), dtype=torch.int32)
    state(steps, 0).rearrange()
    total = folded(steps).sum(dim=0)
    found = windows.of(total)
    assert found.shape == (NUM_WINDOWS, *total.shape)
    assert (found.sum(dim=0) == total).all()


def test_a_load_that_no_windows_sum_to_stays_as_it_is(rearranged):
    windows, state, _ = rearranged
    steps = torch.ones(5, *SLOTS.shape, dtype=torch.int32)
    other = folded(steps).sum(dim=0) + 1
    assert windows.of(other) is other
    state(steps, 0).rearrange()
    assert windows.of(other) is other
    assert windows.of(other[:, :2]).shape == (2, 2)


def test_the_memory_run_and_loads_of_before_leave_the_windows_alone(rearranged):
    windows, state, asked = rearranged
    steps = torch.randint(1, 50, (5, *SLOTS.shape), dtype=torch.int32)
    state(steps, 0).rearrange()
    state(0 * steps, 0).rearrange(is_profile=True)
    state(0 * steps, 0).rearrange(rank_mapping={0: 0, 1: -1}, use_last_expert_load=True)
    assert windows.of(folded(steps).sum(dim=0)).ndim == 3
    assert asked[1:] == [(True, None, False), (False, {0: 0, 1: -1}, True)]
