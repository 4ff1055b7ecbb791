from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from equipoise.engines._shared.releases import choose_release, same_rank_notes
from equipoise.engines.ascend import launch as ascend
from equipoise.engines.formats import Launch
from equipoise.engines.sglang import launch as sglang
from equipoise.engines.trtllm import launch as trtllm
from equipoise.engines.vllm import launch as vllm
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

DOCUMENT = Path(__file__).parents[2] / "docs" / "launch.md"
ENGINES = {"trtllm": trtllm, "sglang": sglang, "vllm": vllm, "ascend": ascend}
VERSIONS = [(engine, version) for engine, m in ENGINES.items() for version in m.RELEASES]
PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 2]], num_ranks=2, num_experts=3, layer_ids=[3, 4])


def launch_of(engine: str) -> Callable[..., Launch]:
    return ENGINES[engine].launch


def test_the_first_release_is_the_default() -> None:
    assert choose_release("X", None, {"2.0": "new", "1.0": "old"}) == ("2.0", "new")
    assert choose_release("X", "1.0", {"2.0": "new", "1.0": "old"}) == ("1.0", "old")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_version_is_refused_with_the_known_ones(engine: str) -> None:
    known = ", ".join(ENGINES[engine].RELEASES)
    with pytest.raises(EquipoiseError, match=rf"9\.9\.9 are not known; known versions: {known}"):
        launch_of(engine)(PLACEMENT, "map.json", version="9.9.9")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_rank_is_refused(engine: str) -> None:
    one = Placement([[0, 1, 2]], num_ranks=1, num_experts=3)
    with pytest.raises(EquipoiseError, match="placement is for 1 rank"):
        launch_of(engine)(one, "map.json")


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_every_version_launches(engine: str, version: str) -> None:
    options = {"a2a_backend": "deepep"} if engine == "sglang" else {}
    made = launch_of(engine)(PLACEMENT, "map.json", version=version, **options)
    assert (made.engine, made.version) == (engine, version)
    assert all(note.endswith(".") for note in made.notes)


def test_copies_on_the_same_rank_are_noted_with_the_first_place() -> None:
    slots = np.array([[0, 1, 2, 0], [2, 2, 0, 1], [1, 1, 0, 2]])
    placement = Placement(slots, num_ranks=2, num_experts=3, layer_ids=[3, 5, 7])
    (note,) = same_rank_notes(placement)
    assert note.startswith("2 slots hold a second copy")
    assert "expert 2 in layer 5 on rank 0" in note
    assert same_rank_notes(PLACEMENT) == ()


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_every_version_and_flag_is_documented(engine: str, version: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    options = {"a2a_backend": "deepep"} if engine == "sglang" else {}
    made = launch_of(engine)(PLACEMENT, "map.json", version=version, **options)
    assert f"`{version}`" in text
    for flag in (word for word in made.command if word.startswith("--")):
        assert f"`{flag}" in text
