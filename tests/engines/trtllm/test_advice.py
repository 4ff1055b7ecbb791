"""Every rule about TensorRT-LLM speaks of a fault, and not of the same launch without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engines.doctor.said import corrected, model, said

DEEPSEEK = model("deepseek-v3")
SIZES = "--tp_size 8 --ep_size 8"
BALANCER = "moe_config.load_balancer"


def launch(
    moe: str, flags: str = "--tp_size 8 --ep_size 8", top: str = "", before: str = ""
) -> str:
    """A script with an options file: entries of moe_config, flags, other entries, variables."""
    options = f"enable_attention_dp: true\n{top}\nmoe_config: {{{moe}}}\n"
    return f"cat > o.yaml <<EOF\n{options}EOF\n{before} trtllm-serve m {flags} --config o.yaml"


def balanced(inner: str = "num_slots: 264, layer_updates_per_iter: 2", **rest: str) -> str:
    return launch(f"load_balancer: {{{inner}}}", **rest)


RULES = [
    # finding, launch with the fault, launch without it, what is known
    (
        "wrong --config",
        balanced(),
        balanced().replace("--config", "--extra_llm_api_options"),
        {"version": "1.1"},
    ),
    (
        "ignored load_balancer in moe_config",
        balanced(flags="--tp_size 8"),
        balanced(),
        {},
    ),
    ("wrong --ep_size", balanced(flags="--tp_size 8 --ep_size 3"), balanced(), {}),
    ("advice --ep_size", balanced(flags="--tp_size 8 --ep_size 4"), balanced(), {}),
    (
        "wrong enable_attention_dp",
        balanced().replace("dp: true", "dp: false"),
        balanced(),
        {},
    ),
    (
        "ignored moe_cluster_parallel_size",
        balanced(top="moe_cluster_parallel_size: 2"),
        balanced(top="moe_cluster_parallel_size: 1"),
        {},
    ),
    (
        "wrong backend in moe_config",
        launch("backend: VANILLA, load_balancer: {num_slots: 8, layer_updates_per_iter: 1}"),
        launch("backend: VANILLA"),
        {},
    ),
    ("wrong backend in moe_config", launch("backend: WIDEEP"), launch("backend: CUTEDSL"), {}),
    (
        "deprecated backend in moe_config",
        launch("backend: WIDEEP"),
        launch("backend: TRTLLM"),
        {"version": "1.3.0rc4"},
    ),
    ("wrong backend in moe_config", launch("backend: CUTLAS"), launch("backend: cutlass"), {}),
    (
        f"wrong num_slots in {BALANCER}",
        balanced("layer_updates_per_iter: 2"),
        balanced(),
        {},
    ),
    (
        f"ignored num_slots in {BALANCER}",
        balanced("num_slots: 0, layer_updates_per_iter: 2"),
        balanced(),
        {},
    ),
    (
        f"wrong num_slots in {BALANCER}",
        balanced("num_slots: 32776, layer_updates_per_iter: 2"),
        balanced(),
        {},
    ),
    (
        f"wrong num_slots in {BALANCER}",
        balanced("num_slots: 265, layer_updates_per_iter: 2"),
        balanced(),
        {},
    ),
    (
        f"wrong num_slots in {BALANCER}",
        balanced("num_slots: 248, layer_updates_per_iter: 2"),
        balanced(),
        {"model": DEEPSEEK},
    ),
    (
        f"advice num_slots in {BALANCER}",
        balanced(),
        balanced("num_slots: 128, layer_updates_per_iter: 2"),
        {},
    ),
    (
        f"wrong layer_updates_per_iter in {BALANCER}",
        balanced("num_slots: 264, layer_updates_per_iter: -1"),
        balanced(),
        {},
    ),
    (
        f"wasteful layer_updates_per_iter in {BALANCER}",
        balanced("num_slots: 264"),
        balanced(),
        {},
    ),
    (
        "wrong num_slot in moe_config.load_balancer",
        balanced("num_slot: 264, layer_updates_per_iter: 2"),
        balanced(),
        {},
    ),
    (
        "advice max_num_tokens in moe_config",
        launch("max_num_tokens: 1000", flags=f"{SIZES} --max_batch_size 256"),
        launch("max_num_tokens: 2048", flags=f"{SIZES} --max_batch_size 256"),
        {},
    ),
    (
        "wrong EXPERT_STATISTIC_ITER_RANGE",
        launch("", before="EXPERT_STATISTIC_ITER_RANGE=100"),
        launch("", before="EXPERT_STATISTIC_ITER_RANGE=100-200"),
        {},
    ),
    (
        "ignored EXPERT_STATISTIC_ITER_RANGE",
        launch("", before="EXPERT_STATISTIC_ITER_RANGE=200-100"),
        launch("", before="EXPERT_STATISTIC_ITER_RANGE=100-200"),
        {},
    ),
    (
        "ignored EXPERT_STATISTIC_PATH",
        launch("", before="EXPERT_STATISTIC_PATH=x"),
        launch("", before="EXPERT_STATISTIC_PATH=x EXPERT_STATISTIC_ITER_RANGE=1-2"),
        {},
    ),
    (
        "ignored load_balancer in moe_config",
        balanced(),
        launch(""),
        {"model": model("olmoe-1b-7b")},
    ),
    (
        "wasteful --tp_size",
        launch(""),
        launch("", flags="--tp_size 16 --ep_size 16"),
        {"devices": 16},
    ),
]


@pytest.mark.parametrize(("finding", "faulty", "sound", "known"), RULES)
def test_a_rule_speaks_of_its_fault_only(finding, faulty, sound, known):
    assert finding in said(faulty, **known)
    assert finding not in said(sound, **known)


def test_quantisations_that_nobody_has_balanced():
    finding = "advice load_balancer in moe_config"
    assert finding in said(balanced(), model=model("kimi-k2-thinking"))
    assert finding not in said(balanced(), model=DEEPSEEK)


def test_more_experts_than_the_kernels_address():
    many = replace(DEEPSEEK, num_experts=1025)
    assert "wrong --model" in said(
        balanced("num_slots: 1032, layer_updates_per_iter: 2"), model=many
    )
    assert "wrong --model" not in said(balanced(), model=DEEPSEEK)


def test_places_of_before():
    text = "cat > o.yaml <<EOF\npytorch_backend_config: {moe_load_balancer: /maps/m.yaml}\nEOF\n"
    text += "trtllm-serve m --tp_size 8 --ep_size 8 --extra_llm_api_options o.yaml"
    assert not any("pytorch_backend_config" in line for line in said(text, version="0.20"))
    assert "wrong moe_load_balancer in pytorch_backend_config" in said(text)


def test_a_row_for_the_layer_that_drafts():
    rows = ", ".join(f"{layer}: [0]" for layer in range(3, 61))
    speculation = "speculative_config: {decoding_type: MTP}"
    inner = "num_slots: 256, initial_global_assignments: {%s}"
    finding = "wrong load_balancer in moe_config"
    missing = balanced(inner % rows, top=speculation)
    assert finding in said(missing, model=DEEPSEEK)
    assert finding not in said(balanced(inner % rows), model=DEEPSEEK)
    assert finding not in said(
        balanced(inner % f"{rows}, 61: [0]", top=speculation), model=DEEPSEEK
    )


def test_a_map_next_to_the_script(tmp_path):
    script, path = tmp_path / "run.sh", tmp_path / "map.yaml"
    script.write_text(launch("load_balancer: map.yaml", flags="--tp_size 2 --ep_size 2"))
    finding = "wrong load_balancer in moe_config"
    assert finding in said(script)
    path.write_text("num_slots: 4\ninitial_global_assignments: {3: [0, 1, 2, 0]}\n")
    assert finding not in said(script)
    path.write_text("num_slots: 4\ninitial_global_assignments: {3: [0, 1, 3, 0]}\n")
    assert finding in said(script)


def test_fixes_of_options_go_into_their_file():
    assert "moe_expert_parallel_size" not in corrected(balanced(flags="--tp_size 8"))
