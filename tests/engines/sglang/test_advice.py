"""Every rule about SGLang speaks of a fault, and not of the same launch without it."""

from __future__ import annotations

import pytest

from tests.engines.doctor.said import corrected, model, said

SERVE = "python -m sglang.launch_server --model-path m --tp 8"
DEEPEP = f"{SERVE} --moe-a2a-backend deepep --deepep-mode low_latency"
ON = f"{DEEPEP} --enable-eplb"
OURS = "--eplb-algorithm equipoise"
V2 = f"{SERVE} --moe-a2a-backend deepep_v2"
PREFILL = "--deepep-mode normal --disaggregation-mode prefill"

RULES = [
    # finding, launch with the fault, launch without it, what is known
    ("deprecated --enable-deepep-moe", f"{SERVE} --enable-deepep-moe", DEEPEP, {}),
    ("deprecated --enable-ep-moe", f"{SERVE} --enable-ep-moe", f"{SERVE} --ep-size 8", {}),
    ("wrong --elastic-ep-rejoin", f"{DEEPEP} --elastic-ep-rejoin", DEEPEP, {}),
    (
        "ignored SGLANG_ENABLE_EPLB_BALANCEDNESS_METRIC",
        f"SGLANG_ENABLE_EPLB_BALANCEDNESS_METRIC=1 {ON}",
        ON,
        {},
    ),
    ("wrong --attn-dp-size", f"{SERVE} --attn-dp-size 3", f"{SERVE} --attn-dp-size 4", {}),
    (
        "wrong --attn-dp-size",
        f"{SERVE} --attn-dp-size 4",
        f"{SERVE} --dp-size 4 --enable-dp-attention",
        {"version": "0.5.6"},
    ),
    ("wrong --ep-size", f"{SERVE} --ep-size 3", f"{SERVE} --ep-size 4", {}),
    ("ignored --ep-size", f"{DEEPEP} --ep-size 4", f"{DEEPEP} --ep-size 8", {}),
    ("wrong --moe-a2a-backend", f"{SERVE} --moe-a2a-backend zzz", DEEPEP, {}),
    (
        "wasteful --deepep-mode",
        f"{SERVE} --moe-a2a-backend deepep --deepep-mode normal",
        f"{SERVE} --moe-a2a-backend deepep {PREFILL}",
        {},
    ),
    (
        "wasteful --ep-num-redundant-experts",
        f"{DEEPEP} --ep-num-redundant-experts 8",
        f"{ON} --ep-num-redundant-experts 8",
        {},
    ),
    ("ignored --eplb-algorithm", f"{DEEPEP} --eplb-algorithm deepseek", ON, {}),
    ("wrong --eplb-algorithm", f"{ON} --eplb-algorithm best", f"{ON} --eplb-algorithm auto", {}),
    (
        "wrong --eplb-algorithm",
        f"{ON} --elastic-ep-backend mooncake --eplb-algorithm deepseek",
        f"{ON} --elastic-ep-backend mooncake",
        {},
    ),
    (
        "wrong --eplb-algorithm",
        f"{ON} --eplb-algorithm equipoise",
        f"{ON} --eplb-algorithm auto",
        {"version": "0.5.15"},
    ),
    (
        "wrong --eplb-algorithm",
        f"{ON} --elastic-ep-backend mooncake --eplb-algorithm equipoise",
        f"EQUIPOISE_SGLANG={{}} {ON} --elastic-ep-backend mooncake",
        {},
    ),
    ("wrong --eplb-algorithm", f"{ON} --eplb-algorithm equipose", f"{ON} {OURS}", {}),
    (
        "wrong SGLANG_PLUGINS",
        f"SGLANG_PLUGINS=other {ON} {OURS}",
        f"SGLANG_PLUGINS=other,equipoise {ON} {OURS}",
        {},
    ),
    (
        "ignored EQUIPOISE_SGLANG",
        f"EQUIPOISE_SGLANG={{}} {ON} --eplb-algorithm deepseek",
        f"EQUIPOISE_SGLANG={{}} {ON} --eplb-algorithm auto",
        {},
    ),
    ("wrong --enable-eplb", f"{ON} --dwdp-size 8", f"{DEEPEP} --dwdp-size 8", {}),
    (
        "wrong --deepep-v2-mode",
        f"{V2} --deepep-v2-mode hybird",
        f"{V2} --deepep-v2-mode hybrid",
        {},
    ),
    (
        "wrong --deepep-v2-mode",
        f"{V2} --deepep-v2-mode direct --nnodes 2",
        f"{V2} --deepep-v2-mode direct",
        {},
    ),
    (
        "ignored --deepep-v2-mode",
        f"{DEEPEP} --deepep-v2-mode hybrid",
        f"{V2} --deepep-v2-mode hybrid",
        {},
    ),
    *(
        (
            "wrong --moe-a2a-backend",
            f"{SERVE} --moe-a2a-backend {backend}",
            f"{SERVE} --moe-a2a-backend {backend} --attn-dp-size 8",
            {},
        )
        for backend in ("pplx", "flashinfer_megamoe")
    ),
    (
        "ignored --eplb-min-rebalancing-utilization-threshold",
        f"{ON} --eplb-min-rebalancing-utilization-threshold 0.7",
        f"{ON} --eplb-min-rebalancing-utilization-threshold 0.7 "
        "--expert-balancedness-report-mode both",
        {},
    ),
    (
        "wrong --expert-distribution-recorder-mode",
        f"{ON} --expert-distribution-recorder-mode stat_approx",
        f"{SERVE} --moe-a2a-backend deepep {PREFILL} --enable-eplb "
        "--expert-distribution-recorder-mode stat_approx",
        {},
    ),
    (
        "wrong --expert-distribution-recorder-buffer-size",
        f"{ON} --expert-distribution-recorder-buffer-size 1001",
        f"{ON} --expert-distribution-recorder-buffer-size 1000",
        {},
    ),
    (
        "wrong --ep-dispatch-algorithm",
        f"{DEEPEP} --ep-dispatch-algorithm fake",
        f"{DEEPEP} --ep-dispatch-algorithm static",
        {},
    ),
    (
        "wrong --ep-dispatch-algorithm",
        f"{DEEPEP} --ep-dispatch-algorithm dynamc",
        f"{DEEPEP} --ep-dispatch-algorithm dynamic",
        {},
    ),
    (
        "wrong --ep-dispatch-algorithm",
        f"{SERVE} --ep-size 8 --ep-dispatch-algorithm static",
        f"{SERVE} --ep-size 8 --ep-dispatch-algorithm dynamic",
        {},
    ),
    (
        "wasteful --ep-dispatch-algorithm",
        f"{DEEPEP} --init-expert-location /maps/m.json --ep-dispatch-algorithm lp",
        f"{DEEPEP} --init-expert-location /maps/m.json --ep-dispatch-algorithm static",
        {},
    ),
    (
        "wrong --ep-num-redundant-experts",
        f"{SERVE} --ep-size 8 --enable-eplb --ep-num-redundant-experts 8",
        f"{SERVE} --ep-size 8 --enable-eplb",
        {"version": "0.5.16"},
    ),
    (
        "wrong --init-expert-location",
        f"{DEEPEP} --init-expert-location map.yaml",
        f"{DEEPEP} --init-expert-location trivial",
        {},
    ),
    (
        "advice --init-expert-location",
        f"{ON} --init-expert-location /maps/m.json",
        f"{DEEPEP} --init-expert-location /maps/m.json",
        {},
    ),
    (
        "advice --speculative-algorithm",
        f"{ON} --speculative-algorithm EAGLE",
        f"{DEEPEP} --speculative-algorithm EAGLE",
        {},
    ),
    ("wrong --nnodes", f"{SERVE} --nnodes 3", f"{SERVE} --nnodes 2", {}),
    ("wrong --tp-size", f"{SERVE} --dp 2", f"{SERVE} --dp 2 --enable-dp-attention", {"devices": 8}),
    (
        "wrong --ep-num-redundant-experts",
        f"{ON} --ep-num-redundant-experts 4",
        f"{ON} --ep-num-redundant-experts 8",
        {"model": model("deepseek-v3")},
    ),
]


@pytest.mark.parametrize(("finding", "faulty", "sound", "known"), RULES)
def test_a_rule_speaks_of_its_fault_only(finding, faulty, sound, known):
    assert finding in said(faulty, **known)
    assert finding not in said(sound, **known)


def test_names_are_judged_by_release():
    old = f"{SERVE} --enable-expert-distribution-metrics --enable-deepep-waterfill"
    assert said(old, version="0.5.16") == set()
    assert said(old, version="0.5.23") == {
        "wrong --enable-expert-distribution-metrics",
        "wrong --enable-deepep-waterfill",
    }
    assert "--enable-waterfill" in corrected(old)


def test_attention_data_parallelism_is_renamed_with_its_size():
    fixed = corrected(f"{SERVE} --dp 4 --enable-dp-attention")
    assert "--attn-dp-size 4" in fixed
    assert "--dp 4" not in fixed


def test_a_map_is_read_with_its_reader(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"physical_to_logical_map": [[0, 1, 2, 3, 0, 1, 2, 3]]}')
    serve = f"{DEEPEP} --init-expert-location {path} --ep-dispatch-algorithm static"
    finding = "wrong --init-expert-location"
    assert finding not in said(f"{serve} --ep-num-redundant-experts 4")
    path.write_text('{"physical_to_logical_map": [[0, 1, 2, 3, 0, 1, 2]]}')
    assert finding in said(f"{serve} --ep-num-redundant-experts 4")
    path.unlink()
    assert finding in said(serve)


def test_recorded_loads_are_no_map_and_no_fault(tmp_path):
    path = tmp_path / "loads.json"
    path.write_text('{"logical_count": [[4, 3, 2, 1]]}')
    launch = f"{DEEPEP} --init-expert-location {path} --ep-dispatch-algorithm static"
    assert "wrong --init-expert-location" not in said(launch)


def test_models_whose_experts_have_no_known_location():
    assert "ignored --enable-eplb" in said(ON, model=model("olmoe-1b-7b"))
    assert "ignored --enable-eplb" not in said(ON, model=model("deepseek-v3"))
