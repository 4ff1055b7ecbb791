"""Planning inside another program: arrays of other libraries in, and several threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from equipoise.checks import as_loads
from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Problem, Robust, Situation, replan
from equipoise.topology import Topology

LOAD = np.random.default_rng(0).integers(1, 1000, (6, 2, 16))
OLD = np.tile(np.r_[:16, :4], (2, 1))


class OnlyDlpack:
    """An array of a library that knows numpy by DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnDevice(OnlyDlpack):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # CUDA

    def __dlpack__(self, **_options: object) -> object:
        raise BufferError("not on the host")


def robust(load: object, seed: int = 0) -> np.ndarray:
    planner = Robust(dispatch="minmax", proposals=1 << 15, seed=seed, num_threads=1)
    return planner.plan(Problem(load, Topology(4), 20)).placement.slots


def replanned(load: object, slots: object) -> np.ndarray:
    situation = Situation(load=load, num_slots=20, num_ranks=4, slots=slots)
    return replan(situation, proposals=1 << 12, num_threads=1).slots


@pytest.mark.parametrize("of", [torch.from_numpy, OnlyDlpack, np.ndarray.tolist])
def test_arrays_of_any_library_give_the_same_slots(of):
    assert np.array_equal(robust(of(LOAD)), robust(LOAD))
    assert np.array_equal(replanned(of(LOAD), of(OLD)), replanned(LOAD, OLD))
    placement = Placement(of(OLD), num_ranks=4, num_experts=16)
    split = MinMax().split(of(LOAD[0]), placement)
    assert np.array_equal(split.quotas, MinMax().split(LOAD[0], placement).quotas)


def test_an_array_on_a_device_is_refused_in_a_sentence():
    with pytest.raises(EquipoiseError, match="Loads are an array that numpy cannot read"):
        as_loads(OnDevice(LOAD))


def test_plans_in_several_threads_are_those_of_one():
    work = [partial(robust, LOAD, seed) for seed in range(3)]
    work += [partial(replanned, LOAD * scale, OLD) for scale in (1, 2, 3)]
    alone = [one() for one in work]
    with ThreadPoolExecutor(len(work)) as pool:
        together = list(pool.map(lambda one: one(), work))
    for slots, same in zip(together, alone, strict=True):
        assert np.array_equal(slots, same)


def test_inputs_are_not_changed():
    load, old = LOAD.copy(), OLD.copy()
    robust(load)
    replanned(load, old)
    assert np.array_equal(load, LOAD)
    assert np.array_equal(old, OLD)
