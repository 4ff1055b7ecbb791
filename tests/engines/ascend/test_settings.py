from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.control.settings import Settings
from equipoise.engines.settings import from_options, read_options
from equipoise.errors import EquipoiseError

ON = {"dynamic_eplb": True}
SWIFT = Settings(window=600, update_interval=600, wait_steps=50)


def settings(options: dict[str, object]) -> Settings:
    return from_options("ascend", options, num_experts=256)


@pytest.fixture
def map_path(tmp_path: Path) -> Path:
    path = tmp_path / "map.json"
    path.touch()
    return path


def test_the_options_of_the_manual():
    old = {
        "dynamic_eplb": True, "num_iterations_eplb_update": 400, "gate_eplb": True,
        "num_wait_worker_iterations": 30,
    }  # fmt: skip
    assert settings(old) == Settings(window=400, update_interval=400, wait_steps=30, once=True)
    new = {
        "dynamic_eplb": True, "expert_heat_collection_interval": 700, "eplb_policy_type": 2,
        "algorithm_execution_interval": 40, "num_redundant_experts": 16,
    }  # fmt: skip
    expected = Settings(window=700, update_interval=700, wait_steps=40, num_redundant=16)
    assert settings({"eplb_config": new}) == settings(new) == expected


def test_what_is_not_given_is_as_in_the_engine():
    assert settings(ON) == SWIFT


def test_a_map_alone_is_static(map_path):
    static = settings({"expert_map_path": str(map_path)})
    assert static == replace(SWIFT, layers_per_step=0, map_path=map_path)
    assert settings({"expert_map_path": str(map_path), "dynamic_eplb": False}) == static


def test_a_map_to_start_from(map_path):
    options = ON | {"expert_map_path": str(map_path)}
    assert settings(options) == replace(SWIFT, map_path=map_path)


def test_recording_turns_balancing_on(map_path):
    options = {"expert_map_record_path": str(map_path), "init_redundancy_expert": 16}
    assert settings(options) == settings(options | ON) == replace(SWIFT, num_redundant=16)


def test_files_that_are_not_given_are_null():
    assert settings(ON | {"expert_map_path": None, "expert_map_record_path": None}) == SWIFT


def test_a_misspelling_is_read_and_told():
    found = read_options("ascend", ON | {"num_wait_woker_iterations": 40})
    assert found.settings.wait_steps == 40
    assert found.advice == (
        "num_wait_woker_iterations: it is read as num_wait_worker_iterations, which it misspells.",
    )


def test_other_options_of_the_engine_are_told():
    found = read_options("ascend", {"eplb_config": ON, "refresh": True, "xlite_graph_config": {}})
    assert found.settings == SWIFT
    assert found.advice == (
        "'refresh', 'xlite_graph_config': not for balancing, so without effect here.",
    )


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"num_iterations_eplb_update": 400, "num_wait_worker_iterations": 30}, []),
        ({"num_iterations_eplb_update": 100}, []),
        ({"num_iterations_eplb_update": 99}, ["num_iterations_eplb_update is 99: 400 and more"]),
        ({"num_wait_worker_iterations": 29}, ["num_wait_worker_iterations is 29: 30 and more"]),
        ({"algorithm_execution_interval": 1}, ["algorithm_execution_interval is 1: 30 and more"]),
    ],
)
def test_values_that_are_advised_against(options, advice):
    found = read_options("ascend", ON | options).advice
    assert len(found) == len(advice)
    assert all(text.startswith(start) for text, start in zip(found, advice, strict=True))


def test_nothing_is_advised_on_how_a_static_map_is_balanced(map_path):
    options = {"expert_map_path": str(map_path), "num_iterations_eplb_update": 50}
    assert read_options("ascend", options).advice == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "dynamic_eplb is false by default, and there is no expert_map_path"),
        ({"dynamic_eplb": False}, 'nothing would ever be balanced. Give "dynamic_eplb": true'),
        ({"gate_eplb": True}, "nothing would ever be balanced"),
        ({"dynamic_eplb": "true"}, "dynamic_eplb: 'true' was given; expected true or false."),
        (ON | {"gate_eplb": 1}, "gate_eplb is 1; expected true or false."),
        (ON | {"num_iterations_eplb_update": 4}, "num_iterations_eplb_update is 4; expected 8 or"),
        (ON | {"num_wait_worker_iterations": 0}, "num_wait_worker_iterations is 0; expected 1 or"),
        (ON | {"eplb_policy_type": 3}, "eplb_policy_type 3 would have no effect: plans are made"),
        (ON | {"eplb_policy_type": True}, "eplb_policy_type True would have no effect"),
        (ON | {"eplb_heat_collection_stage": "decode"}, "prefill and decode are both counted"),
        (ON | {"expert_map_path": "none.json"}, "expert_map_path: there is no map 'none.json'"),
        (
            ON | {"init_redundancy_expert": 2, "num_redundant_experts": 4},
            "num_redundant_experts and init_redundancy_expert both set num_redundant",
        ),
        (
            ON | {"eplb_config": {"num_redundant_experts": 4}, "num_redundant_experts": 4},
            "num_redundant_experts is given twice; keep one of the two.",
        ),
        (
            {"dynamic_eplb": False, "expert_map_record_path": "map.json"},
            "dynamic_eplb is false, but expert_map_record_path records the result of balancing",
        ),
        (ON | {"num_iterations_eplb_updat": 5}, "did you mean num_iterations_eplb_update?"),
        ({"eplb_config": ON | {"refresh": True}}, "vllm-ascend has no option 'refresh' for bal"),
        ({"eplb_config": 5}, "eplb_config: holds 5; expected a mapping of options."),
        ({"eplb_config": "map.json"}, "eplb_config: holds the string 'map.json'; expected"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        settings(options)


@pytest.mark.parametrize(
    "options", [{"gate_eplb": True}, {"num_wait_worker_iterations": 30}], ids=str
)
def test_a_static_map_is_not_planned_for(options, map_path):
    with pytest.raises(EquipoiseError, match=f"{next(iter(options))} would have no effect: with"):
        settings({"expert_map_path": str(map_path)} | options)
