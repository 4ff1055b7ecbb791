from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.engines.formats import LaunchOptions
from equipoise.engines.transformers.config import read_model_config
from equipoise.engines.vllm.launch import launch
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

RELEASED = {"num_redundant_experts": 1, "window_size": 1000, "step_interval": 3000}
PLACEMENT = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)


def config(**options: Any) -> dict[str, Any]:
    made = launch(PLACEMENT, "map.json", LaunchOptions(**options))
    assert made.command[:3] == ("--enable-expert-parallel", "--enable-eplb", "--eplb-config")
    assert (len(made.command), made.environment, made.files) == (4, (), ())
    read: dict[str, Any] = json.loads(made.command[3])
    return read


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.33.0", RELEASED | {"use_async": True}),
        ("0.12.0", RELEASED | {"use_async": True}),
        ("0.11.2", RELEASED),
        (
            "pr-41141",
            {
                "num_redundant_experts": 1,
                "initial_mapping_path": "map.json",
                "disable_online_rebalancing": True,
            },
        ),
        ("pr-49572", {"num_redundant_experts": 1, "initial_expert_map_path": "map.json"}),
        ("pr-53022", {"num_redundant_experts": 1, "expert_map_path": "map.json"}),
    ],
)
def test_configuration_of_every_version(version: str, expected: dict[str, Any]) -> None:
    assert config(version=version) == expected


def test_the_release_is_the_default_and_says_that_it_reads_no_map() -> None:
    made = launch(PLACEMENT, "map.json")
    assert made.version == "0.33.0"
    assert made.notes[0].startswith("vLLM 0.33.0 reads no map: these flags do not load map.json.")
    assert "map.json" not in " ".join(made.command)
    for build in ("41141", "49572", "53022", "equipoise explain plugins"):
        assert build in made.notes[0]


def test_window_interval_and_moves_in_the_background_are_passed_on() -> None:
    chosen = {"window_size": 100, "step_interval": 400, "use_async": False}
    assert config(**chosen) == {"num_redundant_experts": 1} | chosen
    assert config(version="pr-49572", use_async=False)["use_async"] is False
    with pytest.raises(EquipoiseError, match=r"0\.11\.0 moves experts in the foreground only"):
        config(version="0.11.0", use_async=True)


@pytest.mark.parametrize(
    ("window", "interval", "use_async", "refused"),
    [(375, 400, True, True), (374, 400, True, False), (375, 400, False, False)],
)
def test_a_window_that_background_moves_reach_into_is_refused(
    window: int, interval: int, use_async: bool, refused: bool
) -> None:
    options = LaunchOptions(window_size=window, step_interval=interval, use_async=use_async)
    if not refused:
        assert launch(PLACEMENT, "map.json", options).command
        return
    with pytest.raises(
        EquipoiseError, match=r"375 steps, 1 layers and about 25 .* interval of 401"
    ):
        launch(PLACEMENT, "map.json", options)


def test_the_all_to_all_backend_is_passed_on_or_refused() -> None:
    made = launch(PLACEMENT, "map.json", LaunchOptions(a2a_backend="deepep_low_latency"))
    at = made.command.index("--all2all-backend")
    assert made.command[at + 1] == "deepep_low_latency"
    with pytest.raises(EquipoiseError, match=r"refuses balancing with .* moonep"):
        launch(PLACEMENT, "map.json", LaunchOptions(a2a_backend="moonep"))
    with pytest.raises(EquipoiseError, match="no all-to-all backend 'deepep'; choose one of allg"):
        launch(PLACEMENT, "map.json", LaunchOptions(a2a_backend="deepep"))


@pytest.mark.parametrize(
    ("section", "refused"),
    [
        ({"quant_method": "awq"}, True),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, True),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, False),
        ({"quant_method": "fp8"}, False),
    ],
)
def test_quantised_experts_that_are_not_balanced_are_noted(
    tmp_path: Path, section: dict[str, str], refused: bool
) -> None:
    facts = {"model_type": "olmoe", "num_experts": 8, "num_hidden_layers": 2, "hidden_size": 8}
    facts |= {"intermediate_size": 8, "num_experts_per_tok": 2, "quantization_config": section}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    options = LaunchOptions(model=read_model_config(tmp_path))
    notes = launch(PLACEMENT, "map.json", options).notes
    assert any("refuses to start with balancing" in note for note in notes) == refused


@pytest.mark.parametrize("option", [{"window_size": 100}, {"step_interval": 4000}])
def test_asking_for_rearrangement_lets_go_of_the_map(option: dict[str, int]) -> None:
    assert "disable_online_rebalancing" not in config(version="pr-41141", **option)


@pytest.mark.parametrize(
    ("options", "first", "every"),
    [
        ({"version": "pr-49572"}, 750, 3000),
        ({"version": "pr-53022", "window_size": 2, "step_interval": 2}, 1, 2),
        ({"version": "pr-41141", "step_interval": 4000}, 1000, 4000),
    ],
)
def test_when_the_map_is_given_up_is_noted(options: dict[str, Any], first: int, every: int) -> None:
    notes = launch(PLACEMENT, "map.json", LaunchOptions(**options)).notes
    assert any(f"after {first} steps, then every {every} steps." in note for note in notes)


def test_a_held_map_and_a_release_without_one_are_not_said_to_be_rearranged() -> None:
    for version in ("pr-41141", "0.33.0"):
        notes = launch(PLACEMENT, "map.json", LaunchOptions(version=version)).notes
        assert not any("rearranges" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 4000}, r"window of 4000 steps is longer than the interval of 3000"),
        ({"step_interval": 500}, r"window of 1000 steps \(vLLM's default\) is longer than .* 500"),
        ({"window_size": 3, "step_interval": 2}, "longer than the interval of 2"),
        ({"window_size": 0}, "window of 0"),
        ({"window_size": 1, "step_interval": 0}, "interval of 0"),
    ],
)
def test_windows_that_misattribute_history_are_refused(
    options: dict[str, int], message: str
) -> None:
    with pytest.raises(EquipoiseError, match=message):
        launch(PLACEMENT, "map.json", LaunchOptions(**options))


def test_a_window_as_long_as_the_interval_is_accepted() -> None:
    given = {"window_size": 500, "step_interval": 500, "use_async": False}
    assert config(**given)["window_size"] == 500


def test_more_redundant_experts_than_the_engines_maps_hold_are_refused() -> None:
    most = Placement([[0, 1, 2] + [0] * 1023], num_ranks=2, num_experts=3)
    assert '"num_redundant_experts": 1023' in launch(most, "map.json").command[3]
    with pytest.raises(EquipoiseError, match=r"1024 redundant experts; .* at most 1023"):
        launch(Placement([[0, 1] + [0] * 1024], num_ranks=2, num_experts=2), "map.json")


def test_what_each_build_reads_is_noted() -> None:
    def notes(version: str) -> str:
        return " ".join(launch(PLACEMENT, "map.json", LaunchOptions(version=version)).notes)

    assert "unmerged" in notes("pr-41141")
    assert "format vllm-41141" in notes("pr-41141")
    assert "Only the first revision" in notes("pr-41141")
    assert "format vllm-49572" in notes("pr-49572")
    assert "DeepSeek-V4 only" in notes("pr-53022")
    assert "TP x DP x PCP must be 2" in notes("0.33.0")
