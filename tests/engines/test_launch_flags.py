from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise.engines._shared.releases import choose_release, same_rank_notes
from equipoise.engines.formats import Launch, LaunchOptions
from equipoise.engines.launch_flags import launch
from equipoise.engines.registry import ENGINES, launcher, map_formats
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

DOCUMENT = Path(__file__).parents[2] / "docs" / "launch.md"
LAUNCHERS = {engine.folder: launcher(engine) for engine in ENGINES if engine.launch}
VERSIONS = [(engine, version) for engine, found in LAUNCHERS.items() for version in found.versions]
PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 2]], num_ranks=2, num_experts=3, layer_ids=[3, 4])


def launch_version(engine: str, version: str) -> Launch:
    a2a_backend = "deepep" if engine == "sglang" else None
    options = LaunchOptions(version=version, a2a_backend=a2a_backend)
    return LAUNCHERS[engine].launch(PLACEMENT, "map.json", options)


def test_the_first_release_is_the_default() -> None:
    assert choose_release("X", None, {"2.0": "new", "1.0": "old"}) == ("2.0", "new")
    assert choose_release("X", "1.0", {"2.0": "new", "1.0": "old"}) == ("1.0", "old")


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_an_unknown_version_is_refused_with_the_known_ones(engine: str) -> None:
    known = ", ".join(LAUNCHERS[engine].versions)
    with pytest.raises(EquipoiseError, match=rf"9\.9\.9 are not known; known versions: {known}"):
        launch_version(engine, "9.9.9")


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_one_rank_is_refused(engine: str) -> None:
    one = Placement([[0, 1, 2]], num_ranks=1, num_experts=3)
    with pytest.raises(EquipoiseError, match="placement is for 1 rank"):
        LAUNCHERS[engine].launch(one, "map.json", LaunchOptions())


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_every_version_launches(engine: str, version: str) -> None:
    made = launch_version(engine, version)
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
    made = launch_version(engine, version)
    assert f"`{version}`" in text
    for flag in (word for word in made.command if word.startswith("--")):
        assert f"`{flag}" in text


# --- by the format of a map ----------------------------------------------------------------------


@pytest.mark.parametrize("known", [f for f in map_formats() if f.write], ids=lambda f: f.name)
def test_every_map_that_is_written_has_flags_or_needs_none(known):
    made = launch(PLACEMENT, known.name, "map.json")
    if known.name == "equipoise":
        assert made is None
    else:
        assert made is not None
        assert known.name.startswith(made.engine)


def test_a_map_of_one_build_is_for_that_build():
    made = launch(PLACEMENT, "vllm-49572", "map.json")
    assert made is not None
    assert made.version == "pr-49572"
    with pytest.raises(EquipoiseError, match=r"read by pr-49572 only, so 0\.33\.0 would ignore"):
        launch(PLACEMENT, "vllm-49572", "map.json", LaunchOptions(version="0.33.0"))


@pytest.mark.parametrize(
    ("format", "usable"),
    [("sglang", "a2a_backend, dispatch, version"), ("equipoise", "none")],
)
def test_an_option_of_another_engine_is_refused(format, usable):
    with pytest.raises(EquipoiseError, match=rf"do not depend on backend; usable: {usable}"):
        launch(PLACEMENT, format, "map.json", LaunchOptions(backend="CUTLASS"))
