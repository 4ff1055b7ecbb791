from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from equipoise.engines._shared.releases import Releases, same_rank_notes
from equipoise.engines.formats import Launch, LaunchOptions
from equipoise.engines.launch_flags import launch
from equipoise.engines.registry import ENGINES, launcher, map_formats
from equipoise.engines.transformers.config import read_model_config
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

DOCUMENT = Path(__file__).parents[2] / "docs" / "howto" / "launch.md"
LAUNCHERS = {engine.folder: launcher(engine) for engine in ENGINES if engine.launch}
VERSIONS = [(engine, version) for engine, found in LAUNCHERS.items() for version in found.versions]
PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 2]], num_ranks=2, num_experts=3, layer_ids=[3, 4])


def launch_version(engine: str, version: str) -> Launch:
    a2a_backend = "deepep" if engine == "sglang" else None
    options = LaunchOptions(version=version, a2a_backend=a2a_backend)
    return LAUNCHERS[engine].launch(PLACEMENT, "map.json", options)


RELEASES = Releases(
    engine="X",
    default="main",
    newest="1.4",
    since={"1.3": "new", "1.0": "old", "0.9.2": "first"},
    builds={"main": "newest"},
)


@pytest.mark.parametrize(
    ("version", "facts"),
    [
        (None, "newest"),
        ("main", "newest"),
        *((version, "new") for version in ("1.4", "1.4.0rc1", "v1.3.0rc12.post1", "1.3", "1.3.7")),
        *((version, "old") for version in ("1.2.1", "1.2.0rc6.post3", "1.0.0.dev2025040800+g1a2b")),
        *((version, "first") for version in ("0.9.2", "0.9.10", "0.10")),
        *((version, None) for version in ("0.9.1", "0.9", "0", "1.5", "1.40", "1.5.0rc1", "2")),
    ],
)
def test_a_release_is_known_by_its_number(version: str | None, facts: str | None) -> None:
    assert RELEASES.choose(version) == (version or "main", facts)


@pytest.mark.parametrize("version", ["", "master", "1.3-beautiful", "1..3", "x1.3", "1" * 5000])
def test_what_is_no_release_is_refused(version: str) -> None:
    with pytest.raises(EquipoiseError, match=r"X has no release .* known: 0\.9\.2 to 1\.4, main,"):
        RELEASES.choose(version)


@pytest.mark.parametrize("engine", LAUNCHERS)
@pytest.mark.parametrize("version", ["9.9.9", "0.0.1rc1"])
def test_flags_that_are_not_known_are_not_given_and_the_note_says_so(
    engine: str, version: str
) -> None:
    made = launch_version(engine, version)
    assert (made.engine, made.version, made.command, made.files) == (engine, version, (), ())
    assert f"{version} are not known here (known: " in made.notes[0]
    assert "2 expert-parallel ranks and 1 redundant experts" in made.notes[0]


# What people run.
RUN = {
    "trtllm": ("0.21.0", "1.0.0rc6", "1.2.1", "1.3.0rc0", "1.3.0rc29", "1.4.0rc1"),
    "ascend": ("0.11.0", "0.13.0rc3", "0.18.0", "0.22.1rc1", "0.23.0.post1", "0.30.0rc2"),
    "sglang": ("0.5.6", "0.5.6.post2", "0.5.10", "0.5.15.post1", "0.5.19", "0.5.22", "0.5.23"),
    "vllm": ("0.11.0", "0.11.2", "0.12.0", "0.19.1", "0.27.1", "0.33.0"),
}


@pytest.mark.parametrize(
    ("engine", "version"), [(engine, one) for engine, found in RUN.items() for one in found]
)
def test_releases_that_people_run_have_flags(engine: str, version: str) -> None:
    made = launch_version(engine, version)
    assert made.version == version
    assert made.command


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_one_rank_is_refused(engine: str) -> None:
    one = Placement([[0, 1, 2]], num_ranks=1, num_experts=3)
    with pytest.raises(EquipoiseError, match="placement is for 1 rank"):
        LAUNCHERS[engine].launch(one, "map.json", LaunchOptions())


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_every_version_launches(engine: str, version: str) -> None:
    made = launch_version(engine, version)
    assert (made.engine, made.version) == (engine, version)
    assert made.command
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


# --- what a model's configuration adds ------------------------------------------------------------

CONFIGS = Path(__file__).parent / "transformers" / "configs"


def notes_for(engine: str, model: str, placement: Placement = PLACEMENT) -> str:
    facts = read_model_config(CONFIGS / f"{model}.json")
    options = LaunchOptions(model=facts, a2a_backend="deepep" if engine == "sglang" else None)
    return " ".join(LAUNCHERS[engine].launch(placement, "map.json", options).notes)


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_speculative_layers_are_noted_where_the_model_has_them(engine: str) -> None:
    assert "The model has the speculative (MTP) layer 61." in notes_for(engine, "deepseek-v3")
    assert "The model has the speculative" not in notes_for(engine, "qwen3-235b-a22b")


def test_a_missing_row_of_a_speculative_layer_is_told_from_one_that_is_there() -> None:
    rows = [[0, 1, 2, 0]] * 2
    both = Placement(rows, num_ranks=2, num_experts=3, layer_ids=[60, 61])
    assert "has no row for it" in notes_for("trtllm", "deepseek-v3")
    assert "The map has a row for it." in notes_for("trtllm", "deepseek-v3", both)


@pytest.mark.parametrize(
    ("engine", "balanced", "other", "consequence"),
    [
        ("sglang", "qwen2-57b-a14b", "olmoe-1b-7b", "the map is ignored in silence"),
        ("vllm", "mixtral-8x7b", "qwen2-57b-a14b", "balancing stays off"),
    ],
)
def test_an_architecture_that_is_not_balanced_is_noted(
    engine: str, balanced: str, other: str, consequence: str
) -> None:
    assert consequence not in notes_for(engine, balanced)
    assert consequence in notes_for(engine, other)
    options = LaunchOptions(a2a_backend="deepep" if engine == "sglang" else None)
    unseen = LAUNCHERS[engine].launch(PLACEMENT, "map.json", options).notes
    assert any("was not checked" in note and consequence in note for note in unseen)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_balanced_architectures_are_documented(engine: str) -> None:
    module = import_module(f"equipoise.engines.{engine}.architectures")
    text = DOCUMENT.read_text(encoding="utf-8")
    assert not [name for name in module.BALANCED if f"`{name}`" not in text]


def test_the_architecture_of_the_model_is_checked_for_trtllm() -> None:
    with pytest.raises(EquipoiseError, match="ignores maps for OlmoeForCausalLM"):
        notes_for("trtllm", "olmoe-1b-7b")
    model = read_model_config(CONFIGS / "mixtral-8x7b.json")
    assert "architecture was not checked" not in notes_for("trtllm", "mixtral-8x7b")
    for architecture in ("Qwen3MoeForCausalLM", "OlmoeForCausalLM"):
        options = LaunchOptions(model=model, architecture=architecture)
        with pytest.raises(EquipoiseError, match=r"mixtral-8x7b\.json says MixtralForCausalLM"):
            LAUNCHERS["trtllm"].launch(PLACEMENT, "m.yaml", options)


def test_the_quantisation_is_named() -> None:
    assert "quantised by fp8" in notes_for("trtllm", "deepseek-v3")
    assert "quantis" not in notes_for("trtllm", "mixtral-8x7b")
    assert "quantised by mxfp4" in notes_for("sglang", "gpt-oss-120b")
    assert "quantised" not in notes_for("sglang", "mixtral-8x7b")
    assert "Experts of int4 by compressed-tensors" in notes_for("vllm", "kimi-k2-thinking")
    assert "refuses to start" not in notes_for("vllm", "deepseek-v3")


def test_layers_between_dense_ones_are_noted_for_ascend() -> None:
    doubt = "some layers after the first dense ones are not MoE layers"
    assert doubt not in notes_for("ascend", "deepseek-v3")
    assert doubt in notes_for("ascend", "llama-4-maverick")


# --- by the format of a map ----------------------------------------------------------------------


@pytest.mark.parametrize("known", [f for f in map_formats() if f.write], ids=lambda f: f.name)
def test_every_map_that_is_written_has_flags_or_needs_none(known):
    made = launch(PLACEMENT, known.name, "map.json")
    if known.name == "equipoise":
        assert made is None
    else:
        assert made is not None
        assert known.name.startswith(made.engine)


def test_an_engine_that_reads_no_map_is_a_target_too():
    made = launch(PLACEMENT, "vllm", "plan.json", LaunchOptions(window_size=9))
    assert made is not None
    assert "reads no map" in made.notes[0]
    assert '"window_size": 9' in made.command[-1]


def test_a_model_is_no_option_of_an_engine():
    model = read_model_config(CONFIGS / "mixtral-8x7b.json")
    assert launch(PLACEMENT, "equipoise", "map.json", LaunchOptions(model=model)) is None


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
