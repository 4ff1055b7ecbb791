from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise import Placement
from equipoise.engines.vllm.load_tail import Tail
from equipoise.engines.watching import Recording, watch
from equipoise.errors import EquipoiseError
from tests.engines.vllm.test_load_stats import FIRST, META, write


def dump(folder: Path, number: int, counts: np.ndarray) -> None:
    """A file as SGLang's recorder writes one, of counts ``(T, L, E)``."""
    from equipoise.engines._shared import torch_archive

    name = f"expert_distribution_recorder_{number}.pt"
    torch_archive.save(folder / name, {"rank": 0, "logical_count": counts.astype(np.int32)})


def test_a_vllm_file_is_followed_and_has_its_own_map(tmp_path):
    path = write(tmp_path / "stats.jsonl", META, FIRST)
    assert isinstance(watch(path, num_ranks=None, placement=None), Tail)
    placement = Placement([[0, 1, 2, 3]], num_ranks=2, num_experts=4)
    with pytest.raises(EquipoiseError, match="carry the map they were counted under"):
        watch(path, num_ranks=None, placement=placement)


def test_a_folder_of_dumps_is_read_again_when_one_is_added(tmp_path):
    dump(tmp_path, 1, np.array([[[4, 0, 2, 2], [1, 1, 1, 1]]]))
    source = watch(tmp_path, num_ranks=2, placement=None)
    assert isinstance(source, Recording)
    (first,) = source.look()
    assert first.layer_imbalance == {0: 1.0, 1: 1.0}
    assert source.look() == []
    dump(tmp_path, 2, np.array([[[6, 0, 1, 1], [1, 1, 1, 1]]]))
    (second,) = source.look()
    assert second.layer_imbalance == {0: 1.5, 1: 1.0}


def test_without_ranks_there_are_experts_only(tmp_path):
    dump(tmp_path, 1, np.array([[[4, 0, 2, 2]]]))
    (seen,) = watch(tmp_path, num_ranks=None, placement=None).look()
    assert (seen.num_ranks, seen.imbalance) == (None, {})
    assert seen.loads.load_LE.tolist() == [[4, 0, 2, 2]]


def test_the_map_that_is_served_says_who_has_what(tmp_path):
    dump(tmp_path, 1, np.array([[[4, 0, 2, 2]]]))
    placement = Placement([[0, 1, 2, 3, 0, 2]], num_ranks=2, num_experts=4)
    (seen,) = watch(tmp_path, num_ranks=None, placement=placement).look()
    assert seen.loads.load_LR.tolist() == [[3.0, 5.0]]


def test_more_ranks_than_experts_are_refused(tmp_path):
    dump(tmp_path, 1, np.array([[[4, 0, 2, 2]]]))
    with pytest.raises(EquipoiseError, match="has 4 experts; give the map that is served"):
        watch(tmp_path, num_ranks=8, placement=None).look()
