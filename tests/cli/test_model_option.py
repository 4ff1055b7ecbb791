"""``--model config.json``: bytes and memory without working them out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.formats import MapContext
from equipoise.plan import Contiguous, Greedy

EXPERT_BYTES = 3 * 64 * 32 * 2
KV_BYTES = 5 * (8 + 4) * 2
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 5,
    "first_k_dense_replace": 2,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 1,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "torch_dtype": "bfloat16",
}
PRICES = (
    *("--rank-cost", "h100-deepep-ep8", "--dwell-steps", 5000, "--stall-seconds", 0.01),
    *("--interference", 0.5, "--delay-steps", 10),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return configured(tmp_path)


def configured(path: Path, **values: object) -> Path:
    file = path / "config.json"
    file.write_text(json.dumps(CONFIG | values))
    return file


@pytest.fixture
def maps(recording: Path, tmp_path: Path) -> list[Path]:
    problem = eq.Problem(eq.read_trace(recording), eq.Topology(4), 20)
    paths = []
    for planner in (Contiguous(), Greedy()):
        paths.append(tmp_path / f"{len(paths)}.json")
        eq.write_map(planner.plan(problem).placement, paths[-1], format="equipoise")
    return paths


def refused(capsys, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    return str(capsys.readouterr().err)


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_budget_is_priced_by_the_model(recording, model, whole_folder, document, text):
    options = ("budget", recording, "--ranks", 4, "--planner", "greedy", "--up-to", 4)
    priced = (*options, "--model", model.parent if whole_folder else model)
    by_hand = ("--expert-bytes", EXPERT_BYTES, "--kv-bytes-per-token", KV_BYTES)
    answer, expected = document(*priced), document(*options, *by_hand)
    assert answer["points"] == expected["points"]
    assert answer["points"][1]["bytes_per_rank"] == 3 * EXPERT_BYTES
    assert answer["points"][1]["kv_tokens"] == 3 * EXPERT_BYTES // KV_BYTES
    assert answer["model"]["moe_layer_ids"] == [2, 3, 4]
    assert answer["model"]["slot_bytes"] == 3 * EXPERT_BYTES
    assert expected["model"] is None
    assert (
        "12,288 bytes an expert (bfloat16) in each of 3 MoE layers. The KV cache of 307 tokens "
        "would fit there, at 120 bytes a token" in text(*priced)
    )


def test_a_cache_that_is_split_over_ranks_is_given_by_hand(recording, model, document):
    options = ("budget", recording, "--ranks", 4, "--planner", "greedy", "--up-to", 4)
    half = document(*options, "--model", model, "--kv-bytes-per-token", KV_BYTES // 2)
    assert half["points"][1]["kv_tokens"] == 3 * EXPERT_BYTES // (KV_BYTES // 2)


def test_moves_are_priced_by_the_model(maps, model, recording, document):
    by_model = document("diff", *maps, "--model", model)
    assert by_model == document("diff", *maps, "--expert-bytes", EXPERT_BYTES)
    deciding = ("diff", *maps, "--trace", recording, *PRICES)
    decisions = [
        document(*deciding, *given, status=1)["decision"]
        for given in (("--model", model), ("--expert-bytes", EXPERT_BYTES))
    ]
    assert decisions[0] == decisions[1]
    assert decisions[0]["moved_bytes"] > 0


@pytest.mark.parametrize("limit", [("--max-bytes", 15 * EXPERT_BYTES), ("--max-seconds", 1e-4)])
def test_a_repair_is_limited_by_the_model(maps, model, recording, limit, document):
    options = ("repair", maps[0], recording)
    options = (*options, "--proposals", 2000, *limit)
    by_model = document(*options, "--model", model)
    by_hand = document(*options, "--expert-bytes", EXPERT_BYTES)
    assert by_model["planner"] == by_hand["planner"]
    assert by_model["moves"] == by_hand["moves"]
    assert by_model["moves"]["bytes"] is not None


def test_without_a_limit_the_bytes_only_say_what_the_moves_take(maps, model, recording, document):
    options = ("repair", maps[0], recording)
    moves = document(*options, "--max-moves", 9, "--model", model)["moves"]
    assert moves["bytes"] == moves["transfers"] * EXPERT_BYTES > 0


def test_a_plan_says_what_its_redundancy_takes(recording, model, text):
    options = ("plan", recording, "--ranks", 4, "--planner", "greedy", "--model", model)
    assert "One redundant slot takes 0.000 GB" in text(*options, "--redundant", 4)
    assert "2 redundant slots take 0.000 GB" in text(*options, "--redundant", 8)


def test_bytes_twice_are_refused(maps, model, recording, capsys):
    for command in (
        ("diff", *maps),
        ("budget", recording, "--ranks", 4),
        ("repair", maps[0], recording),
    ):
        said = refused(capsys, *command, "--model", model, "--expert-bytes", 9)
        assert "already says that an expert has 12,288 bytes; give one of the two" in said


def test_bytes_by_hand_fill_what_a_model_leaves_open(maps, recording, tmp_path, document, capsys):
    strange = configured(tmp_path, quantization_config={"quant_method": "new"})
    said = refused(capsys, "diff", *maps, "--model", strange)
    assert "nothing is known here of the quantisation new; give --expert-bytes as well" in said
    priced = ("diff", *maps, "--model", strange, "--expert-bytes", EXPERT_BYTES)
    assert document(*priced) == document("diff", *maps, "--expert-bytes", EXPERT_BYTES)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"n_routed_experts": 32}, "has 16 experts in a layer and {model} 32;"),
        ({"first_k_dense_replace": 3}, "has the layers 2-4, and {model} says that the MoE layers"),
    ],
)
def test_a_model_of_other_experts_or_layers_is_named(
    maps, recording, tmp_path, values, names, capsys
):
    other = configured(tmp_path, **values)
    names = names.format(model=other)
    assert f"{maps[0]} {names}" in refused(capsys, "diff", *maps, "--model", other)
    for command in ("budget", "plan"):
        said = refused(capsys, command, recording, "--ranks", 4, "--model", other)
        assert f"{recording} {names}" in said


def test_a_layer_that_is_not_recorded_is_told(recording, tmp_path, text):
    larger = configured(tmp_path, num_hidden_layers=9)
    priced = ("budget", recording, "--ranks", 4, "--planner", "greedy", "--model", larger)
    assert "The recording has 3 of these layers; the table counts only them." in text(*priced)


# --- maps and how to start an engine with them ---------------------------------------------------

QUICK = ("--ranks", 4, "--redundant", 4, "--planner", "greedy", "--even-if-worse")


def test_a_release_of_vllm_is_told_its_own_balancing_and_the_plan_is_kept(
    recording, model, tmp_path, document, text
):
    kept = tmp_path / "plan.json"
    options = ("plan", recording, *QUICK, "--for", "vllm", "-o", kept, "--model", model)
    flags = document(*options, "--window-size", 100, "--step-interval", 400, "--no-use-async")
    assert json.loads(flags["launch"]["command"][-1]) == {
        "num_redundant_experts": 4,
        "window_size": 100,
        "step_interval": 400,
        "use_async": False,
    }
    assert eq.read_map(kept).num_redundant == 4
    said = text(*options)
    assert "note: vLLM 0.33.0 reads no map" in said
    assert "speculative (MTP) layer 5." in said


def test_a_map_for_a_release_that_nobody_looked_at_is_written(recording, tmp_path, text):
    path = tmp_path / "map.yaml"
    release = ("--engine-version", "7.0.0rc1")
    said = text("plan", recording, *QUICK, "--for", "trtllm", "-o", path, *release)
    assert "note: The flags of TensorRT-LLM 7.0.0rc1 are not known here (known: 0.21 to" in said
    assert "Start trtllm" not in said
    assert eq.read_map(path, MapContext(num_ranks=4)).num_redundant == 4


def test_the_model_says_how_many_decoder_layers_there_are(
    recording, model, tmp_path, document, capsys
):
    path = tmp_path / "map.json"
    options = ("plan", recording, *QUICK, "--for", "sglang", "-o", path, "--model", model)
    document(*options)
    assert len(json.loads(path.read_text())["physical_to_logical_map"]) == 5
    document(*options, "--hidden-layers", 5)
    said = refused(capsys, *options, "--hidden-layers", 6)
    assert f"--hidden-layers is 6, and {model} says 5; leave one out." in said


def test_the_architecture_of_the_model_is_checked(recording, tmp_path, capsys):
    other = configured(tmp_path, architectures=["Dots1ForCausalLM"])
    target = ("--for", "trtllm", "-o", tmp_path / "m.yaml", "--model", other)
    said = refused(capsys, "plan", recording, *QUICK, *target)
    assert "TensorRT-LLM ignores maps for Dots1ForCausalLM; it balances Deepseek" in said
    assert not (tmp_path / "m.yaml").exists()


def test_a_typo_in_an_all_to_all_backend_is_refused_with_the_list(
    recording, model, tmp_path, capsys
):
    target = ("--for", "sglang", "-o", tmp_path / "m.json", "--model", model)
    said = refused(capsys, "plan", recording, *QUICK, *target, "--a2a-backend", "depep")
    assert "no all-to-all backend 'depep'; choose one of none, deepep, mooncake, " in said


def test_an_option_of_another_engine_is_named_as_it_is_typed(recording, model, tmp_path, capsys):
    target = ("--for", "vllm", "-o", tmp_path / "m.json", "--model", model)
    said = refused(capsys, "plan", recording, *QUICK, *target, "--ep-dispatch", "static")
    assert "do not depend on --ep-dispatch; usable: --a2a-backend, --step-interval" in said
