"""Checks of how SGLang is started, with facts by release."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from equipoise.engines.doctor.bounded import is_here
from equipoise.engines.doctor.case import Case
from equipoise.engines.doctor.checks import (
    Layout,
    check_devices,
    check_link,
    check_map,
    check_memory,
    check_share,
    check_slots,
)
from equipoise.engines.doctor.command import drop, export, put, unset
from equipoise.engines.doctor.findings import (
    Finding,
    advice,
    deprecated,
    ignored,
    wasteful,
    wrong,
)
from equipoise.engines.doctor.knowledge import Knowledge, Takes
from equipoise.engines.formats import MapContext
from equipoise.engines.registry import trace_format
from equipoise.engines.sglang import plugin
from equipoise.engines.sglang.architectures import BALANCED
from equipoise.engines.sglang.launch import ALL_TO_ALL, NO_A2A, SUFFIXES

TP, EP, DP, PP = "tp-size", "ep-size", "dp-size", "pp-size"
A2A = "moe-a2a-backend"
V2_MODE, DWDP = "deepep-v2-mode", "dwdp-size"
REDUNDANT = "ep-num-redundant-experts"
DISPATCH = "ep-dispatch-algorithm"
LOCATION = "init-expert-location"
INTERVAL = "eplb-rebalance-num-iterations"
RECORDER = "expert-distribution-recorder-mode"
BUFFER = "expert-distribution-recorder-buffer-size"
THRESHOLD = "eplb-min-rebalancing-utilization-threshold"
REPORT = "expert-balancedness-report-mode"

BACKENDS = tuple(ALL_TO_ALL)
FORCES_EP = (
    "deepep",
    "deepep_v2",
    "mooncake",
    "nixl",
    "ascend_fuseep",
    "mori",
    "flashinfer",
    "flashinfer_megamoe",
    "megamoe",
    "pplx",
)
"""Backends that set the expert-parallel size to the tensor-parallel size."""
ALGORITHMS = (
    "auto",
    "deepseek",
    "deepseek_hierarchical",
    "deepseek_vec",
    "deepseek_vec_hierarchical",
    "elasticity_aware",
    "elasticity_aware_hierarchical",
)
PLUGIN_SINCE = ".".join(map(str, plugin.RELEASES[0]))
V2_MODES = ("direct", "hybrid")
DISPATCHES = ("static", "dynamic", "fake", "lp")
EPLB_ONLY = (
    "eplb-algorithm",
    INTERVAL,
    "eplb-rebalance-layers-per-chunk",
    THRESHOLD,
)
"""Flags that nothing reads without ``--enable-eplb``."""
EVERY = 1000  # passes between two rearrangements unless told

FLAGS: dict[str, Takes] = {
    **dict.fromkeys(
        (
            TP,
            EP,
            DP,
            PP,
            "attn-dp-size",
            "attn-cp-size",
            "moe-dp-size",
            "moe-dense-tp-size",
            DWDP,
            "nnodes",
        ),
        "size",
    ),
    **dict.fromkeys(
        (
            "node-rank",
            REDUNDANT,
            INTERVAL,
            "eplb-rebalance-layers-per-chunk",
            "elastic-ep-scale-timeout",
        ),
        "number",
    ),
    **dict.fromkeys(
        (
            "enable-eplb",
            "enable-dp-attention",
            "enable-dp-lm-head",
            "enable-ep-moe",
            "enable-deepep-moe",
            "enable-expert-distribution-metrics",
            "enable-waterfill",
            "enable-deepep-waterfill",
            "elastic-ep-rejoin",
            "enable-two-batch-overlap",
            "enable-single-batch-overlap",
            "enable-return-routed-experts",
            "disable-cuda-graph",
            "disable-shared-experts-fusion",
            "enforce-shared-experts-fusion",
            "trust-remote-code",
            "disable-radix-cache",
        ),
        "switch",
    ),
    **dict.fromkeys(
        (
            A2A,
            "moe-runner-backend",
            "speculative-moe-a2a-backend",
            "speculative-moe-runner-backend",
            "deepep-mode",
            V2_MODE,
            "deepep-config",
            DISPATCH,
            LOCATION,
            "eplb-algorithm",
            THRESHOLD,
            RECORDER,
            BUFFER,
            REPORT,
            "elastic-ep-backend",
            "elastic-ep-join-mode",
            "speculative-algorithm",
            "disaggregation-mode",
            "quantization",
            "model-path",
            "config",
        ),
        "text",
    ),
}
ALIASES = {
    "tp": TP,
    "tensor-parallel-size": TP,
    "ep": EP,
    "expert-parallel-size": EP,
    "dp": DP,
    "data-parallel-size": DP,
    "pp": PP,
    "pipeline-parallel-size": PP,
    "attention-data-parallel-size": "attn-dp-size",
    "model": "model-path",
}


def a2a(case: Case) -> str:
    """The all-to-all backend."""
    if case.has("enable-deepep-moe") and not case.has(A2A):
        return "deepep"
    return str(case.get(A2A, default=NO_A2A))


def ranks(case: Case) -> int:
    """Ranks that share the experts."""
    tp = case.whole(TP, default=1)
    if a2a(case) in FORCES_EP or case.on("enable-ep-moe"):
        return tp
    return case.whole(EP, default=1)


def layout(case: Case) -> Layout:
    """Experts and attention share the tensor-parallel ranks; other data parallelism multiplies."""
    tp, pp = case.whole(TP, default=1), case.whole(PP, default=1)
    attention = case.on("enable-dp-attention") or case.has("attn-dp-size")
    dp = 1 if attention else case.whole(DP, default=1)
    sizes = {"TP": tp, "PP": pp, "DP": dp}
    formula = " x ".join(f"{name} {size}" for name, size in sizes.items() if size != 1) or "TP 1"
    return Layout(ranks(case), tp * pp * dp, formula, f"--{TP}")


def balances(case: Case) -> bool:
    """Whether the engine's balancer is on."""
    return case.on("enable-eplb")


def redundant(case: Case) -> int:
    """Redundant experts of a layer."""
    return case.whole(REDUNDANT, default=0)


def has_map(case: Case) -> bool:
    """Whether the launch names where experts are, other than in order."""
    return str(case.get(LOCATION, default="trivial")) != "trivial"


# Names that changed -------------------------------------------------------------------------------


def check_old_names(case: Case) -> Iterator[Finding]:
    """Flags of older releases."""
    if case.on("enable-deepep-moe") and case.at_least(0, 5):
        yield deprecated(
            "--enable-deepep-moe",
            "Since 0.5 an all-to-all backend replaces this flag.",
            f"Write --{A2A} deepep.",
            drop("enable-deepep-moe"),
            put("deepep", A2A),
        )
    if case.on("enable-ep-moe") and case.at_least(0, 5):
        yield deprecated(
            "--enable-ep-moe",
            f"Since 0.5 --{EP} replaces this flag.",
            f"Write --{EP} with the size of --{TP}.",
            drop("enable-ep-moe"),
            put(case.whole(TP, default=1), EP),
        )
    if not case.at_least(0, 5, 23):
        return
    if case.on("enable-expert-distribution-metrics"):
        yield wrong(
            "--enable-expert-distribution-metrics",
            "SGLang 0.5.23 does not have this flag.",
            f"Write --{REPORT} server_log.",
            drop("enable-expert-distribution-metrics"),
            put("server_log", REPORT),
        )
    if case.on("enable-deepep-waterfill"):
        yield wrong(
            "--enable-deepep-waterfill",
            "SGLang 0.5.23 does not have this flag.",
            "Write --enable-waterfill.",
            drop("enable-deepep-waterfill"),
            put(True, "enable-waterfill"),
        )
    if case.on("elastic-ep-rejoin"):
        yield wrong(
            "--elastic-ep-rejoin",
            "SGLang 0.5.23 does not have this flag.",
            "Leave it out; --elastic-ep-join-mode decides how ranks join.",
            drop("elastic-ep-rejoin"),
        )
    if case.variable("SGLANG_ENABLE_EPLB_BALANCEDNESS_METRIC") is not None:
        yield ignored(
            "SGLANG_ENABLE_EPLB_BALANCEDNESS_METRIC",
            "SGLang 0.5.23 does not read this variable.",
            f"Write --{REPORT} prometheus.",
            unset("SGLANG_ENABLE_EPLB_BALANCEDNESS_METRIC"),
            put("prometheus", REPORT),
        )


def check_attention(case: Case) -> Iterator[Finding]:
    """Attention data parallelism."""
    tp, dp = case.whole(TP, default=1), case.whole(DP, default=1)
    if case.on("enable-dp-attention") and case.at_least(0, 5, 22):
        yield deprecated(
            "--enable-dp-attention",
            "Since 0.5.22 --attn-dp-size replaces this flag.",
            f"Write --attn-dp-size {dp} instead of it and of --{DP}.",
            drop("enable-dp-attention"),
            drop(DP),
            put(dp, "attn-dp-size"),
        )
    attention = case.whole("attn-dp-size", default=dp if case.on("enable-dp-attention") else 1)
    if tp % attention:
        yield wrong(
            "--attn-dp-size" if case.has("attn-dp-size") else f"--{DP}",
            f"The {tp} tensor-parallel ranks are not a multiple of {attention}, the data-parallel "
            "size of attention.",
            f"Give a divisor of {tp}.",
        )
    yield from _check_attention_of_backend(case, attention)
    if case.has("attn-dp-size") and not case.at_least(0, 5, 22):
        yield wrong(
            "--attn-dp-size",
            f"SGLang {case.release} does not have this flag; it came with 0.5.22.",
            f"Write --{DP} {attention} with --enable-dp-attention.",
            drop("attn-dp-size"),
            put(attention, DP),
            put(True, "enable-dp-attention"),
        )


def _check_attention_of_backend(case: Case, attention: int) -> Iterator[Finding]:
    backend, tp = a2a(case), case.whole(TP, default=1)
    if backend == "pplx" and attention < 2:
        yield wrong(
            f"--{A2A}",
            "pplx needs attention data parallelism: the engine stops at an assertion.",
            f"Add --attn-dp-size {tp}.",
            put(tp, "attn-dp-size"),
        )
    elif backend == "flashinfer_megamoe" and attention != tp:
        yield wrong(
            f"--{A2A}",
            "flashinfer_megamoe needs attention data parallelism over all ranks: the engine stops "
            "at an assertion.",
            f"Add --attn-dp-size {tp}.",
            put(tp, "attn-dp-size"),
        )


# Expert parallelism -------------------------------------------------------------------------------


def check_backend(case: Case) -> Iterator[Finding]:
    """All-to-all backend."""
    backend, flag = a2a(case), f"--{A2A}"
    if backend not in BACKENDS:
        near = get_close_matches(backend, BACKENDS, 1)
        yield wrong(
            flag,
            f"There is no backend {backend!r}.",
            f"Write {near[0]}." if near else f"Choose one of {', '.join(BACKENDS)}.",
            *((put(near[0], A2A),) if near else ()),
        )
        return
    tp = case.whole(TP, default=1)
    if backend in FORCES_EP and case.whole(EP, default=tp) != tp:
        yield ignored(
            f"--{EP}",
            f"With {flag} {backend} the expert-parallel size is the tensor-parallel size, {tp}.",
            f"Write {tp}, or leave it out.",
            put(tp, EP),
        )
    elif backend not in FORCES_EP and tp % case.whole(EP, default=1):
        yield wrong(
            f"--{EP}",
            f"The {tp} tensor-parallel ranks are not a multiple of {case.whole(EP, default=1)} "
            "expert-parallel ranks.",
            f"Give a divisor of {tp}.",
        )
    if backend == "deepep" and case.get("deepep-mode") == "normal":
        prefill = case.get("disaggregation-mode") == "prefill"
        if not prefill and not case.on("disable-cuda-graph"):
            yield wasteful(
                "--deepep-mode",
                "The mode normal switches CUDA graphs off, and decode is slow without them.",
                "Use low_latency on servers that decode, normal on those that only prefill.",
            )


def check_v2_mode(case: Case) -> Iterator[Finding]:
    """Mode of the backend ``deepep_v2``."""
    mode, flag = case.get(V2_MODE), f"--{V2_MODE}"
    if mode is None:
        return
    if mode not in V2_MODES:
        near = get_close_matches(str(mode), V2_MODES, 1)
        yield wrong(
            flag,
            f"There is no mode {mode!r}.",
            f"Write {near[0]}." if near else f"Choose one of {', '.join(V2_MODES)}.",
            *((put(near[0], V2_MODE),) if near else ()),
        )
    elif a2a(case) != "deepep_v2":
        yield ignored(
            flag,
            f"Only the backend deepep_v2 reads it, and the backend is {a2a(case)}.",
            f"Leave it out, or write --{A2A} deepep_v2.",
            drop(V2_MODE),
        )
    elif mode == "direct" and case.whole("nnodes", default=1) > 1:
        yield wrong(
            flag,
            "The mode direct works inside one node only; the engine stops.",
            "Write hybrid.",
            put("hybrid", V2_MODE),
        )


def check_balancer(case: Case) -> Iterator[Finding]:
    """Switches that balancing needs."""
    if balances(case):
        yield from _check_running(case)
        return
    for flag in EPLB_ONLY:
        if case.has(flag):
            yield ignored(
                f"--{flag}",
                "Nothing is rebalanced without --enable-eplb.",
                "Add --enable-eplb, or leave it out.",
                put(True, "enable-eplb"),
            )
    if redundant(case) and not has_map(case):
        yield wasteful(
            f"--{REDUNDANT}",
            "Without --enable-eplb and without a map only the first experts get copies, whatever "
            "their load.",
            f"Add --enable-eplb, or give a map with --{LOCATION}.",
        )


def _check_running(case: Case) -> Iterator[Finding]:
    if ranks(case) <= 1:
        size = case.whole(TP, default=1)
        yield wrong(
            "--enable-eplb",
            "The engine stops at an assertion, because the expert-parallel size is 1.",
            f"Give --{EP}, or an all-to-all backend.",
            *((put(size, EP),) if size > 1 else ()),
        )
    if case.whole(DWDP, default=1) > 1:
        yield wrong(
            "--enable-eplb",
            f"The engine stops at an assertion: with --{DWDP} every rank fetches the experts that "
            "it needs, and there is nothing to balance.",
            "Leave it out.",
            drop("enable-eplb"),
        )
    if has_map(case):
        yield advice(
            f"--{LOCATION}",
            f"The engine starts from the map and replaces it by its own plan after "
            f"{case.whole(INTERVAL, default=EVERY)} passes.",
            "Leave --enable-eplb out to keep the map.",
        )
    yield from _check_algorithm(case)
    measured = case.get(REPORT, default="off") != "off"
    if case.has(THRESHOLD) and not measured and not case.on("enable-expert-distribution-metrics"):
        yield ignored(
            f"--{THRESHOLD}",
            "The threshold is compared with a balance that nothing measures.",
            f"Add --{REPORT} server_log.",
            put("server_log", REPORT),
        )


def _check_algorithm(case: Case) -> Iterator[Finding]:
    algorithm = case.get("eplb-algorithm", default="auto")
    asked = case.variable(plugin.VARIABLE) is not None
    if algorithm == plugin.ALGORITHM:
        yield from _check_plugin(case)
    elif algorithm not in ALGORITHMS:
        near = get_close_matches(str(algorithm), (*ALGORITHMS, plugin.ALGORITHM), 1)
        yield wrong(
            "--eplb-algorithm",
            f"There is no algorithm {algorithm!r}; the engine stops at the first rearrangement.",
            f"Write {near[0]}." if near else f"Choose one of {', '.join(ALGORITHMS)}.",
            *((put(near[0], "eplb-algorithm"),) if near else ()),
        )
    elif case.has("elastic-ep-backend") and algorithm not in plugin.STAND_INS:
        yield wrong(
            "--eplb-algorithm",
            f"Elastic expert parallelism refuses {algorithm}.",
            "Leave it out.",
            drop("eplb-algorithm"),
        )
    elif asked and algorithm not in plugin.STAND_INS:
        yield ignored(
            plugin.VARIABLE,
            f"--eplb-algorithm {algorithm} is the engine's own and does not read the variable.",
            f"Write --eplb-algorithm {plugin.ALGORITHM}.",
            put(plugin.ALGORITHM, "eplb-algorithm"),
        )


def _check_plugin(case: Case) -> Iterator[Finding]:
    """Needs of this package's algorithm in the engine."""
    allowed = case.variable("SGLANG_PLUGINS")
    if not case.at_least(*plugin.RELEASES[0]):
        yield wrong(
            "--eplb-algorithm",
            f"equipoise's plug-in supports SGLang {PLUGIN_SINCE} and later; without it the engine "
            "stops at the first rearrangement.",
            "Leave it out, or update the engine.",
            drop("eplb-algorithm"),
        )
    elif case.has("elastic-ep-backend"):
        yield wrong(
            "--eplb-algorithm",
            f"Elastic expert parallelism refuses the name {plugin.ALGORITHM}.",
            f"Leave it out and set {plugin.VARIABLE} to {{}}, which asks for the same.",
            drop("eplb-algorithm"),
            export(plugin.VARIABLE, "{}"),
        )
    elif allowed and plugin.ALGORITHM not in [name.strip() for name in allowed.split(",")]:
        yield wrong(
            "SGLANG_PLUGINS",
            "It does not list equipoise's plug-in; the engine stops at the first rearrangement.",
            f"Add {plugin.ALGORITHM} to it.",
            export("SGLANG_PLUGINS", f"{allowed},{plugin.ALGORITHM}"),
        )


def check_recorder(case: Case) -> Iterator[Finding]:
    """The recorder that balancing needs."""
    mode = case.get(RECORDER, default="stat" if balances(case) else None)
    if mode is None:
        return
    if balances(case) and mode not in ("stat", "stat_approx"):
        yield wrong(
            f"--{RECORDER}",
            f"The mode {mode} only writes files; the engine stops at the first rearrangement.",
            "Leave it out: --enable-eplb chooses stat.",
            drop(RECORDER),
        )
    deepep = case.get("deepep-mode", default="auto")
    if a2a(case) == "deepep" and deepep == "auto" and mode != "per_token":
        yield wrong(
            "--deepep-mode",
            "Loads cannot be counted in the mode auto: the engine stops with NotImplementedError.",
            "Give normal for prefill or low_latency for decode.",
            put(
                "normal" if case.get("disaggregation-mode") == "prefill" else "low_latency",
                "deepep-mode",
            ),
        )
    if mode == "stat_approx" and (a2a(case) == NO_A2A or deepep != "normal"):
        yield wrong(
            f"--{RECORDER}",
            "stat_approx needs an all-to-all backend and --deepep-mode normal.",
            "Write stat.",
            put("stat", RECORDER),
        )
    every, buffer = case.whole(INTERVAL, default=EVERY), case.get(BUFFER)
    if balances(case) and isinstance(buffer, int) and buffer > every:
        yield wrong(
            f"--{BUFFER}",
            f"The buffer of {buffer} passes is longer than the interval of {every} passes between "
            "two rearrangements.",
            f"Give at most {every}, or leave it out.",
            drop(BUFFER),
        )


# Maps and dispatch --------------------------------------------------------------------------------


def check_dispatch(case: Case) -> Iterator[Finding]:
    """Dispatch algorithm."""
    algorithm, backend, flag = case.get(DISPATCH), a2a(case), f"--{DISPATCH}"
    if algorithm is not None and algorithm not in DISPATCHES:
        near = get_close_matches(str(algorithm), DISPATCHES, 1)
        yield wrong(
            flag,
            f"There is no dispatch algorithm {algorithm!r}.",
            f"Write {near[0]}." if near else f"Choose one of {', '.join(DISPATCHES)}.",
            *((put(near[0], DISPATCH),) if near else ()),
        )
    elif algorithm == "fake":
        yield wrong(
            flag,
            "fake is for benchmarks: it produces wrong text.",
            "Leave it out.",
            drop(DISPATCH),
        )
    elif algorithm == "lp" and backend == NO_A2A:
        yield wrong(
            flag, "lp needs an all-to-all backend.", f"Add --{A2A} deepep.", put("deepep", A2A)
        )
    elif algorithm == "static" and backend == NO_A2A and case.at_least(0, 5, 17):
        yield wrong(
            flag,
            "The engine refuses static without an all-to-all backend, because ranks would pick "
            "different copies.",
            "Write dynamic, or choose a backend.",
            put("dynamic", DISPATCH),
        )
    elif (
        algorithm in ("dynamic", "lp")
        and backend != NO_A2A
        and has_map(case)
        and not balances(case)
    ):
        yield wasteful(
            flag,
            "With an all-to-all backend a rank uses only the nearest copies of a map, so "
            f"{algorithm} may leave copies unused.",
            "Write static, the algorithm that maps are planned for.",
            put("static", DISPATCH),
        )
    copies = redundant(case) and (balances(case) or has_map(case))
    if copies and backend == NO_A2A and not case.at_least(0, 5, 17):
        yield wrong(
            f"--{REDUNDANT}",
            f"Without an all-to-all backend SGLang {case.release} may pick different copies on "
            "different ranks and produce wrong text.",
            f"Add --{A2A} deepep, or update to 0.5.23.",
            put("deepep", A2A),
        )


def check_location(case: Case) -> Iterator[Finding]:
    """The map file."""
    if not has_map(case):
        return
    name, flag = str(case.get(LOCATION)), f"--{LOCATION}"
    if name.lstrip().startswith("{"):
        return
    if not name.endswith(SUFFIXES):
        yield wrong(
            flag,
            f"The name {name!r} ends in neither .json nor .pt, so the engine reads the name itself "
            "as JSON, and stops.",
            "Give the file a name that ends in .json, in lower case.",
        )
        return
    path = case.folder / name
    if is_here(path) and trace_format("sglang").matches(path):
        return  # loads, from which the engine plans
    model = case.model
    context = MapContext(
        num_ranks=ranks(case),
        num_redundant=redundant(case),
        num_experts=model.num_experts if model else None,
        num_hidden_layers=model.num_hidden_layers if model else None,
    )
    yield from check_map(case, name, "sglang", context, flag)


def check_redundancy(case: Case) -> Iterator[Finding]:
    """Slots against ranks."""
    if balances(case) or has_map(case) or redundant(case):
        yield from check_slots(case, ranks(case), redundant(case), (REDUNDANT,))


def check_share_of_experts(case: Case) -> Iterator[Finding]:
    """Redundant experts against the experts."""
    if balances(case):
        yield from check_share(case, redundant(case), (REDUNDANT,))


def check_memory_of_slots(case: Case) -> Iterator[Finding]:
    """Memory of redundant experts."""
    if redundant(case):
        yield from check_memory(case, ranks(case), redundant(case), (REDUNDANT,))


def check_time_to_move(case: Case) -> Iterator[Finding]:
    """Time to move experts."""
    if balances(case):
        yield from check_link(case, ranks(case), redundant(case), "--enable-eplb")
        if not case.has("eplb-rebalance-layers-per-chunk"):
            yield advice(
                "--eplb-rebalance-layers-per-chunk",
                "All layers move at once, and serving waits until they have moved.",
                "Give a number of layers to move between two passes.",
            )


def check_draft(case: Case) -> Iterator[Finding]:
    """Draft layers."""
    if case.has("speculative-algorithm") and (balances(case) or has_map(case)):
        yield advice(
            "--speculative-algorithm",
            "Draft layers are not balanced, because the engine's maps have no row for them.",
            "Nothing to do; do not add rows to the map.",
        )


def check_placing(case: Case) -> Iterator[Finding]:
    """Devices against the parallel sizes."""
    found = layout(case)
    yield from check_devices(case, found)
    nodes = case.whole("nnodes", default=1)
    if found.devices % nodes:
        yield wrong(
            "--nnodes",
            f"{found.devices} devices ({found.formula}) do not spread evenly over {nodes} nodes.",
            f"Make --{TP} a multiple of the nodes.",
        )


def check_architecture(case: Case) -> Iterator[Finding]:
    """Architecture."""
    name = case.the_model.architecture
    if (balances(case) or has_map(case)) and name is not None and name not in BALANCED:
        yield ignored(
            "--enable-eplb" if balances(case) else f"--{LOCATION}",
            f"SGLang 0.5.23 knows no expert locations for {name}, so nothing is balanced.",
            "Leave balancing out, or check whether your release lists the model.",
        )


KNOWLEDGE = Knowledge(
    engine="sglang",
    title="SGLang",
    newest="0.5.23",
    programs=(("-m", "sglang.launch_server"), ("sglang", "serve")),
    image="sglang",
    flags=FLAGS,
    aliases=ALIASES,
    balancing=("eplb", "expert", "a2a", "redundant", "deepep", "dispatch", "dp-att", "attn-dp"),
    options_flags=("config",),
    renames=(check_old_names,),
    checks=(
        check_attention,
        check_placing,
        check_backend,
        check_v2_mode,
        check_balancer,
        check_recorder,
        check_dispatch,
        check_location,
        check_redundancy,
        check_share_of_experts,
        check_memory_of_slots,
        check_time_to_move,
        check_architecture,
        check_draft,
    ),
)
