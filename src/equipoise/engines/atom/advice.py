"""Checks of how ATOM is started, for release 0.1.4 and the tree after it."""

from __future__ import annotations

from collections.abc import Iterator

from equipoise.checks import brief
from equipoise.engines.atom.settings import TABLE
from equipoise.engines.doctor.case import Case, NotKnownError
from equipoise.engines.doctor.checks import (
    EXPERT_PARALLEL,
    Layout,
    check_balancing_switch,
    check_copies,
    check_devices,
    check_link,
)
from equipoise.engines.doctor.command import drop, put
from equipoise.engines.doctor.findings import Finding, advice, ignored, wrong
from equipoise.engines.doctor.knowledge import Knowledge, Takes

SWITCH, EPLB = "eplb-enable", "eplb-config"
ATTENTION = "enable-dp-attention"
REDUNDANT = (EPLB, "num_redundant_experts")
WINDOW, INTERVAL = (EPLB, "load_window_size"), (EPLB, "rebalance_interval")
POLICY = (EPLB, "placement_policy")
BALANCEDNESS = (EPLB, "rebalance_min_balancedness")
DEFAULT_WINDOW, DEFAULT_INTERVAL, DEFAULT_BALANCEDNESS = 1000, 3000, 2.0
SHORT_WINDOW = 100
CHOICES = {
    "placement_policy": ("naive", "biased"),
    "rebalance_balancedness_agg": ("min", "mean"),
}
SIZES = ("rebalance_layers_per_chunk", "p2p_batch_chunk_size")

FLAGS: dict[str, Takes] = {
    **dict.fromkeys(
        (
            "tensor-parallel-size",
            "data-parallel-size",
            "pipeline-parallel-size",
            "prefill-context-parallel-size",
            "decode-context-parallel-size",
        ),
        "size",
    ),
    **dict.fromkeys(("data-parallel-size-local", "data-parallel-rank"), "number"),
    **dict.fromkeys(
        (SWITCH, EXPERT_PARALLEL, ATTENTION, "fake-eplb", "enforce-eager", "trust-remote-code"),
        "switch",
    ),
    **dict.fromkeys(("moe-backend", "kv-cache-dtype", "dp-load-balance"), "text"),
    EPLB: "mapping",
}
ALIASES = {
    "tp": "tensor-parallel-size",
    "dp": "data-parallel-size",
    "pp": "pipeline-parallel-size",
    "pcp": "prefill-context-parallel-size",
    "dcp": "decode-context-parallel-size",
    "enable-eplb": SWITCH,
}


def layout(case: Case) -> Layout:
    """Tensor and data parallelism share the experts where attention is data-parallel."""
    tp, dp = (case.whole(f"{kind}-parallel-size", default=1) for kind in ("tensor", "data"))
    outer = case.whole("pipeline-parallel-size", default=1)
    outer *= case.whole("prefill-context-parallel-size", default=1)
    if outer > 1:
        raise NotKnownError("how ATOM spreads experts over pipeline and context ranks is not known")
    if dp > 1 and not case.on(ATTENTION):
        raise NotKnownError(
            f"without --{ATTENTION} parts of ATOM count {tp} ranks of experts and others {tp * dp}"
        )
    formula = f"TP {tp} x DP {dp}" if dp > 1 else f"TP {tp}"
    flag = "data-parallel-size" if dp > tp else "tensor-parallel-size"
    return Layout(tp * dp, tp * dp, formula, f"--{flag}")


def redundant(case: Case) -> int:
    """Redundant experts of a layer."""
    return case.whole(*REDUNDANT, default=0)


def check_switches(case: Case) -> Iterator[Finding]:
    """Switches that balancing needs."""
    if case.on("fake-eplb"):
        yield wrong(
            "--fake-eplb",
            "It routes tokens at random, to measure the gain of perfect balance; the answers are "
            "meaningless.",
            "Leave it out of a server for users.",
            drop("fake-eplb"),
        )
    yield from check_balancing_switch(case, SWITCH, EPLB, layout)


def check_placing(case: Case) -> Iterator[Finding]:
    """Devices against the parallel sizes."""
    yield from check_devices(case, layout(case))


def check_window(case: Case) -> Iterator[Finding]:
    """Window against interval."""
    if not case.on(SWITCH):
        return
    window = case.whole(*WINDOW, default=DEFAULT_WINDOW)
    interval = case.whole(*INTERVAL, default=DEFAULT_INTERVAL)
    stock = f"The engine's own values are {DEFAULT_WINDOW} and {DEFAULT_INTERVAL}."
    if not window or not interval:
        yield wrong(case.shown(*WINDOW), "The engine refuses 0 steps.", stock)
    elif window > interval:
        yield wrong(
            case.shown(*WINDOW),
            f"The engine stops at start-up: a window of {window} steps is longer than the interval "
            f"of {interval}.",
            f"Give a window of at most the interval. {stock}",
            put(interval, *WINDOW),
        )
    elif window < SHORT_WINDOW:
        yield advice(
            case.shown(*WINDOW),
            f"A window of {window} steps counts few tokens, so maps follow noise and "
            "change back and forth.",
            f"Measure longer unless this is a test. {stock}",
        )


def check_choices(case: Case) -> Iterator[Finding]:
    """Policy, aggregation and chunks."""
    if not case.on(SWITCH):
        return
    for key, choices in CHOICES.items():
        value = case.get(EPLB, key)
        if value is not None and str(value).lower().strip() not in choices:
            yield wrong(
                case.shown(EPLB, key),
                f"The engine stops at start-up: there is no {brief(value)}.",
                f"Write one of {', '.join(choices)}.",
            )
    for key in SIZES:
        if case.whole(EPLB, key, default=1) == 0:
            yield wrong(
                case.shown(EPLB, key), "The engine refuses 0.", "Leave it out.", drop(EPLB, key)
            )


def check_biased(case: Case) -> Iterator[Finding]:
    """Redundant experts of the policy biased."""
    if not case.on(SWITCH) or case.get(*POLICY) != "biased":
        return
    ranks = layout(case).ranks
    if redundant(case) < ranks:
        yield ignored(
            case.shown(*POLICY),
            f"biased puts the hottest experts on all {ranks} ranks and needs a redundant expert on "
            f"each of them for that; with {redundant(case)} it acts as naive and gives no warning.",
            f"Give num_redundant_experts {ranks} or a multiple of it, or leave the policy out.",
        )


def check_threshold(case: Case) -> Iterator[Finding]:
    """Balancedness from which nothing moves."""
    if not case.on(SWITCH):
        return
    least = case.get(*BALANCEDNESS, default=DEFAULT_BALANCEDNESS)
    if isinstance(least, (int, float)) and least >= 1:
        yield advice(
            case.shown(*BALANCEDNESS),
            f"Balancedness is never above 1, so with {least} experts move at every interval, "
            "however even the loads are.",
            "Give 0.85 to 0.9.",
        )


def check_redundancy(case: Case) -> Iterator[Finding]:
    """Redundant experts against ranks, experts, memory and links."""
    if case.on(SWITCH):
        ranks, copies = layout(case).ranks, redundant(case)
        yield from check_copies(case, ranks, copies, REDUNDANT)
        yield from check_link(case, ranks, copies, f"--{SWITCH}")


KNOWLEDGE = Knowledge(
    engine="atom",
    title="ATOM",
    newest="0.1.4",
    programs=(("-m", "atom.entrypoints.openai_server"),),
    image="rocm/atom",
    flags=FLAGS,
    aliases=ALIASES,
    balancing=("eplb", "expert"),
    sections={(EPLB,): tuple(TABLE.options)},
    signs=frozenset({SWITCH, "fake-eplb"}),
    renames=(),
    checks=(
        check_switches,
        check_placing,
        check_window,
        check_choices,
        check_biased,
        check_threshold,
        check_redundancy,
    ),
)
