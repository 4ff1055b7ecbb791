"""Checks of how vLLM is started, with facts by release."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from equipoise.engines.doctor.case import Case, NotKnownError
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
from equipoise.engines.vllm.launch import MAX_REDUNDANT, RELEASES, STEP_INTERVAL, WINDOW_SIZE

EPLB = "eplb-config"
REDUNDANT = (EPLB, "num_redundant_experts")
WINDOW = (EPLB, "window_size")
ASYNC = (EPLB, "use_async")

EPLB_KEYS = (
    "window_size",
    "step_interval",
    "num_redundant_experts",
    "log_balancedness",
    "log_balancedness_interval",
    "use_async",
    "policy",
    "communicator",
    "enable_migration_batching",
)
MAP_KEYS = {build.map_option: name for name, build in RELEASES.builds.items() if build.map_option}
"""Keys that name a map, and the builds that have them."""
_OTHER_BUILD_KEYS = (
    "disable_online_rebalancing",
    "expert_load_stats_path",
    "expert_load_stats_interval",
)

FLAT = {
    "num-redundant-experts": "num_redundant_experts",
    "eplb-window-size": "window_size",
    "eplb-step-interval": "step_interval",
    "eplb-log-balancedness": "log_balancedness",
}
"""Flags before 0.12, and the keys of ``--eplb-config`` that replaced them in 0.10.2."""

FLAGS: dict[str, Takes] = {
    **dict.fromkeys(
        (
            "tensor-parallel-size",
            "pipeline-parallel-size",
            "data-parallel-size",
            "prefill-context-parallel-size",
            "decode-context-parallel-size",
            "nnodes",
        ),
        "size",
    ),
    **dict.fromkeys(
        (
            "data-parallel-size-local",
            "data-parallel-rank",
            "data-parallel-start-rank",
            "data-parallel-rpc-port",
            "node-rank",
            "num-redundant-experts",
            "eplb-window-size",
            "eplb-step-interval",
        ),
        "number",
    ),
    **dict.fromkeys(
        (
            "enable-expert-parallel",
            "enable-eplb",
            "eplb-log-balancedness",
            "enable-ep-weight-filter",
            "enable-elastic-ep",
            "enable-return-routed-experts",
            "enable-dbo",
            "enforce-eager",
            "headless",
            "trust-remote-code",
            "enable-prefix-caching",
            "enable-chunked-prefill",
        ),
        "switch",
    ),
    **dict.fromkeys(
        (
            "all2all-backend",
            "expert-placement-strategy",
            "data-parallel-address",
            "data-parallel-backend",
            "distributed-executor-backend",
            "moe-backend",
            "quantization",
            "config",
            "expert-map-path",
        ),
        "text",
    ),
    **dict.fromkeys(
        (EPLB, "additional-config", "speculative-config", "compilation-config"), "mapping"
    ),
}
ALIASES = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "dpl": "data-parallel-size-local",
    "dpr": "data-parallel-start-rank",
    "dpa": "data-parallel-address",
    "pcp": "prefill-context-parallel-size",
    "dcp": "decode-context-parallel-size",
    "ep": "enable-expert-parallel",
    "q": "quantization",
    "n": "nnodes",
    "r": "node-rank",
}
PROGRAMS = (
    ("vllm", "serve"),
    ("-m", "vllm.entrypoints.openai.api_server"),
    ("-m", "vllm.entrypoints.cli.main", "serve"),
)
BALANCING = ("eplb", "expert", "all2all", "a2a", "redundant")

A2A = "all2all-backend"
BACKENDS = (
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "mori",
    "mori_high_throughput",
    "mori_low_latency",
    "nixl_ep",
    "moonep",
    "flashinfer_all2allv",
    "flashinfer_nvlink_two_sided",
    "flashinfer_nvlink_one_sided",
)
REMOVED_BACKENDS = ("pplx", "naive")
DEFAULT_BACKEND = BACKENDS[0]
BACKEND_VARIABLE = "VLLM_ALL2ALL_BACKEND"

UNBALANCED = (
    "GptOssForCausalLM",
    "OlmoeForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen2MoeForCausalLM",
)
"""Architectures without the engine's interface for moving experts."""

MOVABLE = ("fp8", "modelopt", "modelopt_fp4", "mxfp4", "compressed-tensors")
"""Quantisations of which at least one kernel moves experts."""
IMMOVABLE = ("torchao", "rtn")

SHORT_WINDOW = 100
MOST_LAYERS = 128  # more than any known model has


def layout(case: Case) -> Layout:
    """Tensor, data and prefill-context parallelism share the experts; pipelines have their own."""
    sizes = {
        "TP": case.whole("tensor-parallel-size", default=1),
        "PCP": case.whole("prefill-context-parallel-size", default=1),
        "DP": case.whole("data-parallel-size", default=1),
        "PP": case.whole("pipeline-parallel-size", default=1),
    }
    tp, pcp, dp, pp = sizes.values()
    formula = " x ".join(f"{name} {size}" for name, size in sizes.items() if size != 1) or "TP 1"
    flag = "--data-parallel-size" if dp > tp else "--tensor-parallel-size"
    return Layout(tp * pcp * dp, tp * pcp * dp * pp, formula, flag)


def balances(case: Case) -> bool:
    """Whether the engine's balancer is on."""
    return case.on("enable-eplb")


def redundant(case: Case) -> int:
    """Redundant experts of a layer."""
    return number(case, "num_redundant_experts", 0)


def number(case: Case, key: str, default: int) -> int:
    """A number of the balancer."""
    return case.whole(*at(case, key), default=default)


def at(case: Case, key: str) -> tuple[str, ...]:
    """Return the place of a balancer's setting: its key, or the flag of an older release."""
    flat = next(flag for flag, name in FLAT.items() if name == key)
    return (flat,) if case.has(flat) and not case.has(EPLB, key) else (EPLB, key)


def at_redundant(case: Case) -> tuple[str, ...]:
    """Return the place of the number of redundant experts."""
    return at(case, "num_redundant_experts")


# Switches -----------------------------------------------------------------------------------------


def check_flat_flags(case: Case) -> Iterator[Finding]:
    """Flags of older releases."""
    for flag, key in FLAT.items():
        value = case.command.get(flag)
        if value is None or not case.at_least(0, 10, 2):
            continue
        remedy = f"Write --eplb-config.{key}, or the key {key} in --eplb-config."
        fix = (drop(flag), put(value, EPLB, key))
        if case.at_least(0, 12):
            yield wrong(f"--{flag}", "vLLM 0.12 and later do not have this flag.", remedy, *fix)
        else:
            yield deprecated(f"--{flag}", "vLLM 0.12 removes this flag.", remedy, *fix)


def check_switches(case: Case) -> Iterator[Finding]:
    """Switches that balancing needs."""
    asked = case.has(EPLB) or any(case.has(flag) for flag in FLAT)
    if balances(case):
        if not case.on("enable-expert-parallel"):
            yield wrong(
                "--enable-eplb",
                "The engine stops at start-up: balancing needs expert parallelism.",
                "Add --enable-expert-parallel.",
                put(True, "enable-expert-parallel"),
            )
        if layout(case).ranks <= 1:
            yield wrong(
                "--enable-eplb",
                "The engine stops at start-up: with one rank there is nothing to balance.",
                "Give --tensor-parallel-size or --data-parallel-size above 1.",
            )
    elif asked and redundant(case):
        yield wrong(
            case.shown(*at_redundant(case)),
            "The engine stops at start-up: redundant experts need balancing.",
            "Add --enable-eplb.",
            put(True, "enable-eplb"),
            put(True, "enable-expert-parallel"),
        )
    elif asked:
        yield ignored(
            f"--{EPLB}",
            "Nothing is balanced without --enable-eplb.",
            "Add --enable-eplb, or leave the settings out.",
            put(True, "enable-eplb"),
            put(True, "enable-expert-parallel"),
        )
    if case.on("enable-elastic-ep") and not balances(case):
        yield wrong(
            "--enable-elastic-ep",
            "The engine stops at start-up: elastic expert parallelism needs balancing.",
            "Add --enable-eplb.",
            put(True, "enable-eplb"),
            put(True, "enable-expert-parallel"),
        )
    if balances(case) and case.get("expert-placement-strategy") == "round_robin":
        yield ignored(
            "--expert-placement-strategy",
            "With --enable-eplb the engine warns and places experts linearly.",
            "Leave it out.",
            drop("expert-placement-strategy"),
        )


def check_backend(case: Case) -> Iterator[Finding]:
    """All-to-all backend."""
    yield from _check_backend_variable(case)
    backend = case.get(A2A)
    if backend is None:
        return
    flag = f"--{A2A}"
    if not case.at_least(0, 11, 1):
        yield wrong(
            flag,
            "vLLM before 0.11.1 does not have this flag.",
            f"Set the variable {BACKEND_VARIABLE}.",
            drop(A2A),
            export(BACKEND_VARIABLE, str(backend)),
        )
    if backend in REMOVED_BACKENDS:
        if case.at_least(0, 16):
            yield ignored(
                flag,
                f"vLLM 0.16 removed {backend} and uses {DEFAULT_BACKEND} instead.",
                f"Write {DEFAULT_BACKEND}, or choose a DeepEP backend.",
                put(DEFAULT_BACKEND, A2A),
            )
    elif backend not in BACKENDS:
        near = get_close_matches(str(backend), BACKENDS, 1)
        yield wrong(
            flag,
            f"There is no backend {backend!r}.",
            f"Write {near[0]}." if near else f"Choose one of {', '.join(BACKENDS)}.",
            *((put(near[0], A2A),) if near else ()),
        )
    elif backend == "moonep" and balances(case):
        yield wrong(flag, "The backend moonep refuses --enable-eplb.", "Choose another backend.")
    elif backend != DEFAULT_BACKEND and not case.on("enable-expert-parallel"):
        yield ignored(
            flag,
            "Without expert parallelism there is no all-to-all.",
            "Add --enable-expert-parallel.",
            put(True, "enable-expert-parallel"),
        )
    elif backend != DEFAULT_BACKEND and case.whole("data-parallel-size", default=1) == 1:
        yield ignored(
            flag,
            "Without data parallelism every rank has all tokens, so there is no all-to-all.",
            "Give --data-parallel-size above 1, or leave the backend out.",
            drop(A2A),
        )


def _check_backend_variable(case: Case) -> Iterator[Finding]:
    backend = case.variable(BACKEND_VARIABLE)
    if backend is None or not case.at_least(0, 11, 1):
        return
    removed = backend in REMOVED_BACKENDS and case.at_least(0, 16)
    remedy = f"Unset it: {backend} was removed." if removed else f"Give --{A2A} {backend} instead."
    kept = removed or case.has(A2A)
    fix = (unset(BACKEND_VARIABLE), *(() if kept else (put(backend, A2A),)))
    if case.at_least(0, 16):
        yield ignored(BACKEND_VARIABLE, "vLLM 0.16 and later do not read it.", remedy, *fix)
    else:
        yield deprecated(BACKEND_VARIABLE, f"Since 0.11.1 --{A2A} replaces it.", remedy, *fix)


def check_graphs(case: Case) -> Iterator[Finding]:
    """CUDA graphs."""
    if case.on("enforce-eager") and case.get(A2A) == "deepep_low_latency":
        yield wasteful(
            "--enforce-eager",
            "deepep_low_latency is made for CUDA graphs, which this switches off.",
            "Leave it out once the server works.",
        )


# The balancer -------------------------------------------------------------------------------------


def check_window(case: Case) -> Iterator[Finding]:
    """Window against interval."""
    if not balances(case):
        return
    window = number(case, "window_size", WINDOW_SIZE)
    interval = number(case, "step_interval", STEP_INTERVAL)
    flag = case.shown(*at(case, "window_size"))
    stock = f"The engine's own values are {WINDOW_SIZE} and {STEP_INTERVAL}."
    if not window or not interval:
        yield wrong(flag, "The engine refuses 0 steps.", stock)
    elif window > interval:
        yield wrong(
            flag,
            f"The window of {window} steps is longer than the interval of {interval}, so it mixes "
            "loads of this map with loads of the map before.",
            f"Give a window of at most the interval. {stock}",
            put(max(1, interval // 3), *at(case, "window_size")),
        )
    elif window < SHORT_WINDOW:
        yield advice(
            flag,
            f"A window of {window} steps counts few tokens, so maps follow noise and change back "
            "and forth.",
            f"Measure longer unless this is a test. {stock}",
        )
    yield from _check_async_window(case, window, interval)


def _check_async_window(case: Case, window: int, interval: int) -> Iterator[Finding]:
    """With asynchronous moves layers change one a step, while the window goes on."""
    if not is_async(case) or not 0 < window <= interval or interval - window >= MOST_LAYERS:
        return
    layers = case.the_model.moe_layer_ids
    if layers is None:
        raise NotKnownError("the model's MoE layers are not known")
    if window + len(layers) > interval:
        better = interval - 2 * len(layers)
        yield wasteful(
            case.shown(*WINDOW),
            f"The interval of {interval} steps is too short for a window of {window} steps, "
            f"{len(layers)} layers that move one a step, and planning. Some counted loads then "
            "belong to the old map, and the next map is worse.",
            f"Give a window of at most {better}." if better > 0 else "Give a longer interval.",
            *((put(better, *WINDOW),) if better > 0 else ()),
        )


def is_async(case: Case) -> bool:
    """Whether experts move while the model runs."""
    return case.on(*ASYNC) if case.has(*ASYNC) else case.at_least(0, 22)


def check_async(case: Case) -> Iterator[Finding]:
    """Rules of asynchronous balancing."""
    if not balances(case):
        return
    communicator, policy = case.get(EPLB, "communicator"), case.get(EPLB, "policy")
    if is_async(case) and communicator in ("torch_nccl", "pynccl"):
        yield wrong(
            case.shown(EPLB, "communicator"),
            f"The engine refuses {communicator} with asynchronous balancing.",
            "Leave the communicator out, or give use_async false.",
            drop(EPLB, "communicator"),
        )
    if policy not in (None, "default"):
        yield wrong(
            case.shown(EPLB, "policy"),
            f"The engine has no policy {policy!r}; the only one is default.",
            "Leave it out; a plug-in changes what default does.",
            drop(EPLB, "policy"),
        )
    if case.on(EPLB, "enable_migration_batching") and not is_async(case):
        yield ignored(
            case.shown(EPLB, "enable_migration_batching"),
            "It works with asynchronous balancing only.",
            "Give use_async true, or leave it out.",
            drop(EPLB, "enable_migration_batching"),
        )
    if case.on(EPLB, "log_balancedness") and case.has(EPLB, "log_balancedness"):
        every = case.whole(EPLB, "log_balancedness_interval", default=1)
        if every < 10:
            yield wasteful(
                case.shown(EPLB, "log_balancedness"),
                f"The log gets a line every {f'{every} steps' if every > 1 else 'step'}, and each "
                "line costs an all-reduce.",
                "Give log_balancedness_interval a value near 100.",
            )


def check_maps(case: Case) -> Iterator[Finding]:
    """Maps."""
    if case.has("expert-map-path"):
        yield wrong(
            "--expert-map-path",
            "No release has this flag.",
            "Leave it out: released vLLM reads no map; a policy plug-in can place experts.",
            drop("expert-map-path"),
        )
    for key, build in MAP_KEYS.items():
        name = case.command.get(EPLB, key)
        if name is None:
            continue
        flag = case.shown(EPLB, key)
        if case.release.name != build:
            yield wrong(
                flag,
                f"Only builds of {build} read a map under this key; vLLM {case.release} refuses "
                "the key.",
                "Leave it out, or name the build with --engine-version.",
                drop(EPLB, key),
            )
        else:
            context = MapContext(num_ranks=layout(case).ranks, num_redundant=redundant(case))
            yield from check_map(
                case, case.get(EPLB, key), RELEASES.builds[build].format, context, flag
            )


def check_redundancy(case: Case) -> Iterator[Finding]:
    """Slots against ranks."""
    if not balances(case):
        return
    if redundant(case) > MAX_REDUNDANT:
        yield wrong(
            case.shown(*at_redundant(case)),
            f"The engine's tables have room for {MAX_REDUNDANT + 1} copies of an expert.",
            f"Give at most {MAX_REDUNDANT}.",
        )
    yield from check_slots(case, layout(case).ranks, redundant(case), at_redundant(case))


def check_share_of_experts(case: Case) -> Iterator[Finding]:
    """Redundant experts against the experts."""
    if balances(case):
        yield from check_share(case, redundant(case), at_redundant(case))


def check_memory_of_slots(case: Case) -> Iterator[Finding]:
    """Memory of redundant experts."""
    if balances(case):
        yield from check_memory(case, layout(case).ranks, redundant(case), at_redundant(case))


def check_time_to_move(case: Case) -> Iterator[Finding]:
    """Time to move experts."""
    if balances(case):
        yield from check_link(case, layout(case).ranks, redundant(case), "--enable-eplb")


# The model ----------------------------------------------------------------------------------------


def check_architecture(case: Case) -> Iterator[Finding]:
    """Architecture."""
    if balances(case) and case.the_model.architecture in UNBALANCED:
        yield ignored(
            "--enable-eplb",
            f"vLLM cannot move the experts of {case.the_model.architecture}: model runner V2 "
            "balances nothing and gives no warning, and V1 stops at an assertion.",
            "Leave balancing out.",
            drop("enable-eplb"),
            drop(EPLB),
        )


def check_quantisation(case: Case) -> Iterator[Finding]:
    """Quantisation."""
    if not balances(case):
        return
    method = case.get("quantization") or (case.model and case.model.quantisation)
    if method in IMMOVABLE:
        yield wrong(
            "--enable-eplb",
            f"vLLM cannot move experts that {method} quantises, and stops.",
            "Use a checkpoint in bfloat16, FP8 or MXFP4.",
        )
    elif method and method not in MOVABLE:
        yield advice(
            "--enable-eplb",
            f"Only some kernels can move experts quantised by {method}; with the others vLLM stops "
            "at start-up.",
            "Try it before relying on it; bfloat16, FP8 and MXFP4 work.",
        )


def check_draft(case: Case) -> Iterator[Finding]:
    """Draft layers."""
    if not balances(case) or not case.has("speculative-config"):
        return
    if not case.at_least(0, 11, 1):
        yield wrong(
            "--speculative-config",
            "Balancing together with a draft model fails before vLLM 0.11.1.",
            "Update, or leave one of the two out.",
        )
    drafts = case.the_model.speculative_layer_ids
    if drafts and redundant(case):
        yield advice(
            "--speculative-config",
            f"MoE draft layers ({len(drafts)} here) also get {redundant(case)} redundant experts "
            "each, and the engine plans them separately.",
            "Include them in the memory you need; a map of the model's layers does not cover them.",
        )


def check_placing(case: Case) -> Iterator[Finding]:
    """Devices against the parallel sizes."""
    local = case.whole("data-parallel-size-local", default=0)
    total = case.whole("data-parallel-size", default=1)
    if local > total:
        yield wrong(
            "--data-parallel-size-local",
            f"There are {local} local ranks but only {total} ranks in all.",
            "Give the ranks of all nodes to --data-parallel-size.",
        )
    yield from check_devices(case, layout(case))


KNOWLEDGE = Knowledge(
    engine="vllm",
    title="vLLM",
    newest="0.33.0",
    programs=PROGRAMS,
    image="vllm-openai",
    image_starts=True,
    flags=FLAGS,
    aliases=ALIASES,
    balancing=BALANCING,
    sections={(EPLB,): (*EPLB_KEYS, *MAP_KEYS, *_OTHER_BUILD_KEYS)},
    options_flags=("config",),
    renames=(check_flat_flags,),
    checks=(
        check_switches,
        check_placing,
        check_backend,
        check_graphs,
        check_window,
        check_async,
        check_maps,
        check_redundancy,
        check_share_of_experts,
        check_memory_of_slots,
        check_time_to_move,
        check_architecture,
        check_quantisation,
        check_draft,
    ),
)
