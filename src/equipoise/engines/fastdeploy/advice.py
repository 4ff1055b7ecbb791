"""Checks of how FastDeploy is started, for release 2.3 and the tree after it."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from equipoise.checks import brief
from equipoise.engines.doctor.case import Case
from equipoise.engines.doctor.checks import (
    EXPERT_PARALLEL,
    Layout,
    check_balancing_switch,
    check_copies,
    check_devices,
)
from equipoise.engines.doctor.command import drop, put
from equipoise.engines.doctor.findings import Finding, advice, ignored
from equipoise.engines.doctor.knowledge import Knowledge, Takes
from equipoise.engines.fastdeploy.settings import TABLE

SWITCH, EPLB = "enable-eplb", "eplb-config"
REDUNDANT = (EPLB, "redundant_experts_num")
STRATEGY = (EPLB, "redundant_expert_eplb_strategy")
PASSWORD = (EPLB, "redundant_expert_api_password")
STRATEGIES = ("", "balance_intra_node")

FLAGS: dict[str, Takes] = {
    **dict.fromkeys(("tensor-parallel-size", "data-parallel-size"), "size"),
    **dict.fromkeys((SWITCH, EXPERT_PARALLEL, "disable-sequence-parallel-moe"), "switch"),
    **dict.fromkeys(("engine-worker-queue-port", "quantization", "splitwise-role", "ips"), "text"),
    EPLB: "mapping",
}
ALIASES = {"tp": "tensor-parallel-size", "dp": "data-parallel-size"}


def layout(case: Case) -> Layout:
    """Tensor and data parallelism share the experts."""
    tp, dp = (case.whole(f"{kind}-parallel-size", default=1) for kind in ("tensor", "data"))
    flag = "data-parallel-size" if dp > tp else "tensor-parallel-size"
    return Layout(tp * dp, tp * dp, f"TP {tp} x DP {dp}", f"--{flag}")


def redundant(case: Case) -> int:
    """Redundant experts of a layer."""
    return case.whole(*REDUNDANT, default=0)


def check_inner_switch(case: Case) -> Iterator[Finding]:
    """The switch among the settings."""
    if case.has(EPLB, "enable_eplb"):
        yield ignored(
            case.shown(EPLB, "enable_eplb"),
            f"The engine ignores this and reads --{SWITCH} instead.",
            f"Give --{SWITCH}, and leave it out here.",
            drop(EPLB, "enable_eplb"),
            *((put(True, SWITCH),) if case.on(EPLB, "enable_eplb") else ()),
        )


def check_switches(case: Case) -> Iterator[Finding]:
    """Switches that balancing needs."""
    yield from check_balancing_switch(case, SWITCH, EPLB, layout)


def check_placing(case: Case) -> Iterator[Finding]:
    """Devices against the parallel sizes."""
    yield from check_devices(case, layout(case))


def check_unknown_keys(case: Case) -> Iterator[Finding]:
    """Keys of the balancer, of which the engine takes those that it knows."""
    for key, value in case.section(EPLB).items():
        if key in TABLE.options:
            continue
        near = get_close_matches(key, TABLE.options, 1)
        yield ignored(
            case.shown(EPLB, key),
            "The engine has no such key and gives no warning.",
            f"Write {near[0]}." if near else "Leave it out.",
            drop(EPLB, key),
            *((put(value, EPLB, near[0]),) if near else ()),
        )


def check_strategy(case: Case) -> Iterator[Finding]:
    """Strategy."""
    strategy = case.get(*STRATEGY, default="")
    if case.on(SWITCH) and strategy not in STRATEGIES:
        yield ignored(
            case.shown(*STRATEGY),
            f"There is no strategy {brief(strategy)}; the engine plans as if none were given.",
            f"Write {STRATEGIES[1]}, or leave it out.",
            drop(*STRATEGY),
        )


def check_requests(case: Case) -> Iterator[Finding]:
    """Requests that start a rearrangement."""
    if not case.on(SWITCH):
        return
    yield advice(
        f"--{SWITCH}",
        "The engine never rearranges by itself: it counts loads until a POST to "
        "/rearrange_experts names the addresses of all ranks.",
        "Run a job that sends this request regularly, with user and passwd.",
    )
    if not case.get(*PASSWORD, default=""):
        yield advice(
            case.shown(*PASSWORD),
            "Without it anybody who reaches the port can have experts rearranged.",
            "Give redundant_expert_api_user and redundant_expert_api_password.",
        )


def check_redundancy(case: Case) -> Iterator[Finding]:
    """Redundant experts against ranks, experts and memory."""
    if case.on(SWITCH):
        yield from check_copies(case, layout(case).ranks, redundant(case), REDUNDANT)


KNOWLEDGE = Knowledge(
    engine="fastdeploy",
    title="FastDeploy",
    newest="2.3",
    programs=(
        ("-m", "fastdeploy.entrypoints.openai.api_server"),
        ("-m", "fastdeploy.entrypoints.openai.multi_api_server"),
        ("fastdeploy", "serve"),
    ),
    image="fastdeploy",
    flags=FLAGS,
    aliases=ALIASES,
    balancing=("eplb", "expert"),
    signs=frozenset({"engine-worker-queue-port"}),
    renames=(check_inner_switch, check_unknown_keys),
    checks=(
        check_switches,
        check_placing,
        check_strategy,
        check_requests,
        check_redundancy,
    ),
)
