from __future__ import annotations

import pytest

from equipoise.engines.ascend.launch import launch
from equipoise.engines.formats import LaunchOptions
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

PLACEMENT = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)

NESTED = '{"eplb_config": {"expert_map_path": "map.json", "num_redundant_experts": 1}}'
FLAT = '{"expert_map_path": "map.json", "init_redundancy_expert": 1}'
RUNNER = (("VLLM_USE_V2_MODEL_RUNNER", "0"),)


@pytest.mark.parametrize(
    ("version", "config", "environment"),
    [
        ("2026-08", NESTED, RUNNER),
        ("0.30.0rc2", NESTED, RUNNER),
        ("0.22.1rc", NESTED, RUNNER),
        ("0.13.0", NESTED, RUNNER),
        ("0.12.0rc1", FLAT, ()),
        ("0.11.0", FLAT, ()),
    ],
)
def test_flags_of_every_version(
    version: str, config: str, environment: tuple[tuple[str, str], ...]
) -> None:
    made = launch(PLACEMENT, "map.json", LaunchOptions(version=version))
    assert made.command == ("--enable-expert-parallel", "--additional-config", config)
    assert made.environment == environment
    assert made.files == ()


def test_the_tree_of_the_reference_is_the_default() -> None:
    assert launch(PLACEMENT, "map.json") == launch(
        PLACEMENT, "map.json", LaunchOptions(version="2026-08")
    )


@pytest.mark.parametrize("name", ["map.yaml", "map.JSON", "map"])
def test_names_the_engine_refuses_are_refused(name: str) -> None:
    with pytest.raises(EquipoiseError, match=r"has to end in \.json"):
        launch(PLACEMENT, name)


def test_an_expert_twice_on_a_device_is_refused_by_place() -> None:
    twice = Placement([[0, 1, 2, 0], [0, 1, 2, 2]], num_ranks=2, num_experts=3, layer_ids=[3, 4])
    with pytest.raises(EquipoiseError, match="Layer 4: device 1 holds expert 2 twice"):
        launch(twice, "map.json")


def test_more_redundant_experts_than_devices_are_noted() -> None:
    many = Placement([[0, 1, 2, 2, 0, 1]], num_ranks=2, num_experts=3)
    assert any("the map has 3 on 2 devices" in n for n in launch(many, "map.json").notes)
    assert not any("policy than 1" in n for n in launch(PLACEMENT, "map.json").notes)


def test_doubts_about_loading_are_noted_for_newer_trees() -> None:
    def doubted(version: str) -> bool:
        return any(
            "Compare answers" in n
            for n in launch(PLACEMENT, "m.json", LaunchOptions(version=version)).notes
        )

    assert doubted("2026-08")
    assert doubted("0.24.0rc1")
    assert not doubted("0.23.0.post1")
    assert not doubted("0.11.0")


def test_the_number_of_devices_is_stated() -> None:
    assert "TP x DP must be 2" in launch(PLACEMENT, "map.json").notes[0]


def test_the_plug_in_is_named() -> None:
    assert any("EQUIPOISE_ASCEND='{}'" in n for n in launch(PLACEMENT, "map.json").notes)
