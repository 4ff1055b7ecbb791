from __future__ import annotations

import pytest

from equipoise.engines.formats import LaunchOptions
from equipoise.engines.trtllm.launch import ARCHITECTURES, RELEASES, launch
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

PLACEMENT = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3, layer_ids=[3])

SINCE_1_0 = """\
enable_attention_dp: true
moe_config:
  load_balancer: maps/moe.yaml
moe_expert_parallel_size: 2
"""
FLAT = """\
enable_attention_dp: true
moe_expert_parallel_size: 2
moe_load_balancer: maps/moe.yaml
"""
FIRST_ERA = """\
enable_attention_dp: true
moe_expert_parallel_size: 2
pytorch_backend_config:
  moe_load_balancer: maps/moe.yaml
"""


@pytest.mark.parametrize(
    ("version", "flag", "content"),
    [
        ("main", "--config", SINCE_1_0),
        ("1.4.0rc1", "--config", SINCE_1_0),
        ("1.3", "--config", SINCE_1_0),
        ("1.2", "--extra_llm_api_options", SINCE_1_0),
        ("1.1", "--extra_llm_api_options", SINCE_1_0),
        ("1.0", "--extra_llm_api_options", SINCE_1_0),
        ("0.21", "--extra_llm_api_options", FLAT),
        ("first-era", "--extra_llm_api_options", FIRST_ERA),
    ],
)
def test_flag_and_options_file_of_every_version(version: str, flag: str, content: str) -> None:
    made = launch(PLACEMENT, "maps/moe.yaml", LaunchOptions(version=version))
    assert made.command == (flag, "extra_llm_api_options.yaml")
    assert made.files == (("extra_llm_api_options.yaml", content),)
    assert made.environment == ()


def test_main_is_the_default() -> None:
    assert launch(PLACEMENT, "m.yaml") == launch(PLACEMENT, "m.yaml", LaunchOptions(version="main"))


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("main", "moe_config:\n  backend: CUTLASS\n  load_balancer: m.yaml\n"),
        ("0.21", "moe_backend: CUTLASS\n"),
    ],
)
def test_a_backend_is_set_where_the_version_reads_it(version: str, line: str) -> None:
    made = launch(PLACEMENT, "m.yaml", LaunchOptions(version=version, backend="CUTLASS"))
    assert line in made.files[0][1]


def test_a_backend_whose_place_is_not_known_is_refused() -> None:
    with pytest.raises(
        EquipoiseError, match="not known how TensorRT-LLM first-era names its MoE backend"
    ):
        launch(PLACEMENT, "m.yaml", LaunchOptions(version="first-era", backend="CUTLASS"))


@pytest.mark.parametrize("backend", ["VANILLA", "TRITON", "marlin"])
def test_backends_that_do_not_balance_are_refused(backend: str) -> None:
    with pytest.raises(EquipoiseError, match=f"{backend} does not support load balancing"):
        launch(PLACEMENT, "m.yaml", LaunchOptions(backend=backend))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_balanced_architectures_pass(architecture: str) -> None:
    checked = launch(PLACEMENT, "m.yaml", LaunchOptions(architecture=architecture)).notes
    assert set(launch(PLACEMENT, "m.yaml").notes) - set(checked) == {
        "The model's architecture was not checked: TensorRT-LLM ignores the map without a warning "
        "if equipoise explain launch does not list it."
    }


def test_other_architectures_are_refused() -> None:
    with pytest.raises(EquipoiseError, match="ignores maps for OlmoeForCausalLM; it balances Deep"):
        launch(PLACEMENT, "m.yaml", LaunchOptions(architecture="OlmoeForCausalLM"))


def test_more_experts_than_the_kernels_address_are_refused() -> None:
    launch(Placement([range(1024)], num_ranks=2, num_experts=1024), "m.yaml")
    with pytest.raises(EquipoiseError, match=r"1026 experts in 1026 slots.*at most 1024 experts"):
        launch(Placement([range(1026)], num_ranks=2, num_experts=1026), "m.yaml")


def test_more_slots_than_the_kernels_address_are_refused() -> None:
    slots = [[0, 1] * 16384]
    with pytest.raises(EquipoiseError, match=r"32768 slots.*at most .* 32767 slots"):
        launch(Placement(slots, num_ranks=2, num_experts=2), "m.yaml")


def test_many_slots_are_noted() -> None:
    wide = Placement([[*range(256), *range(32)]], num_ranks=32, num_experts=256)
    assert any("288 slots may exceed" in note for note in launch(wide, "m.yaml").notes)
    assert not any("may exceed" in note for note in launch(PLACEMENT, "m.yaml").notes)


@pytest.mark.parametrize("version", [v for v in RELEASES.names if v != "main"])
def test_what_was_checked_against_main_is_noted(version: str) -> None:
    notes = launch(PLACEMENT, "m.yaml", LaunchOptions(version=version)).notes
    assert any(f"against main; {version} may balance fewer" in note for note in notes)


def test_the_tensor_parallel_size_is_stated() -> None:
    assert "tensor-parallel size 2 " in launch(PLACEMENT, "m.yaml").notes[0]


def test_same_rank_copies_are_noted() -> None:
    wasteful = Placement([[0, 0, 1, 2]], num_ranks=2, num_experts=3)
    assert "second copy of an expert" in launch(wasteful, "m.yaml").notes[-1]
