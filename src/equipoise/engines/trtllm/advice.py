"""Checks of how TensorRT-LLM is started, with facts by release."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from equipoise.checks import brief
from equipoise.engines._shared.yaml_text import parse_yaml
from equipoise.engines.doctor.bounded import is_here
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
from equipoise.engines.doctor.command import drop, put, unset
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
from equipoise.engines.trtllm.launch import (
    ARCHITECTURES,
    FUSED_ROUTING_SLOTS,
    MAX_EXPERTS,
    MAX_SLOTS,
    UNBALANCED_BACKENDS,
)
from equipoise.errors import FormatError

TP, EP, PP = "tensor_parallel_size", "moe_expert_parallel_size", "pipeline_parallel_size"
CLUSTER = "moe_cluster_parallel_size"
ATTENTION = "enable_attention_dp"
BALANCER = ("moe_config", "load_balancer")
BACKEND = ("moe_config", "backend")
OLD_PLACES = {
    ("moe_load_balancer",): BALANCER,
    ("moe_backend",): BACKEND,
    ("moe_max_num_tokens",): ("moe_config", "max_num_tokens"),
    ("pytorch_backend_config", "moe_load_balancer"): BALANCER,
    ("pytorch_backend_config", "enable_attention_dp"): (ATTENTION,),
}
"""Places of settings in releases before 1.0, and their later places."""

BACKENDS = (
    "AUTO",
    "CUTLASS",
    "CUTEDSL",
    "CUTEDSL_FC12",
    "TRTLLM",
    "DEEPGEMM",
    "DENSEGEMM",
    "VANILLA",
    "TRITON",
    "MARLIN",
    "MEGAMOE_DEEPGEMM",
    "MEGAMOE_CUTEDSL",
)
"""MoE backends of 1.4."""
WIDE = "WIDEEP"
BALANCED_QUANTISATIONS = ("fp8", "modelopt", "mxfp4")
"""Quantisations for which published work describes balancing."""
RANGE, FOLDER = "EXPERT_STATISTIC_ITER_RANGE", "EXPERT_STATISTIC_PATH"

FLAGS: dict[str, Takes] = {
    **dict.fromkeys((TP, EP, PP, CLUSTER, "moe_tensor_parallel_size"), "size"),
    **dict.fromkeys(
        (
            "moe_max_num_tokens",
            "context_parallel_size",
            "gpus_per_node",
            "max_batch_size",
            "max_num_tokens",
            "max_seq_len",
        ),
        "number",
    ),
    **dict.fromkeys((ATTENTION, "trust_remote_code", "disable_overlap_scheduler"), "switch"),
    **dict.fromkeys(
        (
            "extra_llm_api_options",
            "config",
            "backend",
            "moe_load_balancer",
            "moe_backend",
            "kv_cache_free_gpu_memory_fraction",
        ),
        "text",
    ),
    **dict.fromkeys(
        (
            "moe_config",
            "pytorch_backend_config",
            "cuda_graph_config",
            "kv_cache_config",
            "speculative_config",
            "attention_dp_config",
            "cache_transceiver_config",
        ),
        "mapping",
    ),
}
ALIASES = {
    "tp": TP,
    "tp_size": TP,
    "ep": EP,
    "ep_size": EP,
    "moe_ep_size": EP,
    "pp": PP,
    "pp_size": PP,
    "cluster_size": CLUSTER,
}
MOE_KEYS = (
    "backend",
    "tactic",
    "max_num_tokens",
    "load_balancer",
    "disable_finalize_fusion",
    "megamoe_fuse_shared_expert",
    "use_low_precision_moe_combine",
)
BALANCER_KEYS = (
    "num_slots",
    "layer_updates_per_iter",
    "initial_global_assignments",
    "mode",
    "auxiliary_sms",
)


def layout(case: Case) -> Layout:
    """Experts share the tensor-parallel ranks."""
    tp, pp = size(case, TP), size(case, PP)
    formula = f"TP {tp}" if pp == 1 else f"TP {tp} x PP {pp}"
    return Layout(ranks(case), tp * pp, formula, "--tp_size")


def ranks(case: Case) -> int:
    """Ranks that share the experts."""
    return size(case, EP)


def size(case: Case, name: str) -> int:
    """A parallel size; ``NotKnownError`` where only the launch command would say it."""
    if not case.command.program and not case.has(name):
        raise NotKnownError("the launch command with the parallel sizes was not given")
    return case.whole(name, default=1)


def place(case: Case) -> tuple[str, ...] | None:
    """Return the place where the launch has a load balancer, if it has one."""
    old = (path for path, now in OLD_PLACES.items() if now == BALANCER)
    return next((path for path in (BALANCER, *old) if case.has(*path)), None)


def balancer(case: Case) -> dict[str, Any] | None:
    """The load balancer's section, from the options or from its own file; ``None`` without one.

    Raises
    ------
    NotKnownError
        Its file is not here, or no YAML.
    """
    where = place(case)
    if where is None:
        return None
    section = case.get(*where)
    if isinstance(section, dict):
        return section
    text = case.file_text(str(section))
    try:
        document = parse_yaml(text, str(section))[0]
    except FormatError as error:
        raise NotKnownError(f"{brief(section)} cannot be read as YAML") from error
    return document if isinstance(document, dict) else {}


def slots(case: Case) -> int | None:
    """Slots of a layer; ``None`` without a balancer, or where nothing says how many."""
    section = balancer(case)
    found = None if section is None else section.get("num_slots")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def redundant(case: Case) -> int:
    """Redundant experts of a layer; ``NotKnownError`` without slots."""
    found = slots(case)
    if found is None:
        raise NotKnownError("the number of slots is not known")
    return found - case.the_model.num_experts


# Places and names ---------------------------------------------------------------------------------


def check_places(case: Case) -> Iterator[Finding]:
    """Places of settings in the options."""
    if case.at_least(1, 0):
        for old, now in OLD_PLACES.items():
            value = case.command.get(*old)
            if value is None:
                continue
            fix = () if case.has(*now) else (put(value, *now),)
            yield wrong(
                case.shown(*old) if len(old) > 1 else old[0],
                f"TensorRT-LLM {case.release} has no such option at this place.",
                f"Write it as {'.'.join(now)}.",
                drop(*old),
                *fix,
            )
    if case.has("config") and not case.at_least(1, 2):
        yield wrong(
            "--config",
            f"TensorRT-LLM {case.release} does not have this flag.",
            "Write --extra_llm_api_options.",
        )


# What the balancer needs --------------------------------------------------------------------------


def check_needs(case: Case) -> Iterator[Finding]:
    """Needs of the balancer."""
    where = place(case)
    if where is None:
        return
    flag = case.shown(*where)
    tp, ep = size(case, TP), ranks(case)
    if ep <= 1:
        yield ignored(
            flag,
            "Without expert parallelism the engine balances nothing and gives no warning.",
            "Give --ep_size.",
            *((put(tp, EP),) if tp > 1 else ()),
        )
    elif tp % ep:
        yield wrong(
            "--ep_size",
            f"The {tp} tensor-parallel ranks are not a multiple of {ep} expert-parallel ranks.",
            f"Give {tp}.",
            put(tp, EP),
        )
    elif tp != ep:
        yield advice(
            "--ep_size",
            f"Every expert is split over {tp // ep} ranks, but balancing moves whole experts.",
            f"Give {tp}.",
        )
    if tp > 1 and not case.on(ATTENTION):
        yield wrong(
            ATTENTION,
            "The balancer needs attention data parallelism; the engine stops at start-up.",
            f"Add {ATTENTION}: true to the options.",
            put(True, ATTENTION),
        )
    if case.whole(CLUSTER, default=1) > 1:
        yield ignored(
            CLUSTER,
            "With MoE clusters the engine balances nothing and gives no warning.",
            "Leave it out.",
            drop(CLUSTER),
        )


def check_backend(case: Case) -> Iterator[Finding]:
    """MoE backend."""
    given = case.get(*BACKEND)
    if given is None:
        return
    backend, flag = str(given).upper(), case.shown(*BACKEND)
    if backend in UNBALANCED_BACKENDS and place(case) is not None:
        yield wrong(
            flag, f"{backend} does not balance.", "Write AUTO, or leave it out.", drop(*BACKEND)
        )
    elif backend == WIDE and case.at_least(1, 4):
        yield wrong(
            flag,
            "TensorRT-LLM 1.4 has no backend WIDEEP; the other backends support wide expert "
            "parallelism.",
            "Write AUTO, or DEEPGEMM for FP8 block scales on Blackwell.",
            put("AUTO", *BACKEND),
        )
    elif backend == WIDE and case.at_least(1, 3):
        yield deprecated(
            flag,
            "Late builds of 1.3 do not accept WIDEEP; the other backends support wide expert "
            "parallelism.",
            "Write AUTO, or DEEPGEMM for FP8 block scales on Blackwell.",
            put("AUTO", *BACKEND),
        )
    elif backend not in (*BACKENDS, WIDE):
        near = get_close_matches(backend, BACKENDS, 1)
        yield wrong(
            flag,
            f"There is no MoE backend {given!r}.",
            f"Write {near[0]}." if near else f"Choose one of {', '.join(BACKENDS)}.",
            *((put(near[0], *BACKEND),) if near else ()),
        )


def check_sizes(case: Case) -> Iterator[Finding]:
    """Slots against ranks."""
    section = balancer(case)
    if section is None:
        return
    where = place(case) or BALANCER
    flag = case.shown(*where, "num_slots")
    found = slots(case)
    if found is None:
        if "initial_global_assignments" not in section:
            yield wrong(flag, "The engine stops because num_slots is missing.", "Give num_slots.")
        return
    if found == 0:
        yield ignored(
            flag,
            "0 slots do not switch balancing off.",
            "Leave load_balancer out.",
            drop(*where),
        )
        return
    if found > MAX_SLOTS:
        yield wrong(flag, f"The kernels take at most {MAX_SLOTS} slots.", "Give fewer.")
    if found % ranks(case):
        among = ranks(case)
        inline = isinstance(case.get(*where), dict)
        better = -(-found // among) * among
        yield wrong(
            flag,
            f"{found} slots do not spread evenly over {among} ranks.",
            f"Give {better}.",
            *((put(better, *where, "num_slots"),) if inline else ()),
        )
    elif found > FUSED_ROUTING_SLOTS:
        yield advice(
            flag,
            f"{found} slots may exceed the limit of fused routing on some MoE backends (32 experts "
            "a group).",
            "Try another backend if start-up fails.",
        )


def check_slots_of_model(case: Case) -> Iterator[Finding]:
    """Slots against the model's experts."""
    found = slots(case)
    if not found:
        return
    if case.the_model.num_experts > MAX_EXPERTS:
        yield wrong(
            "--model",
            f"The kernels take at most {MAX_EXPERTS} experts.",
            "Leave load_balancer out.",
        )
    where = (*(place(case) or BALANCER), "num_slots")
    if redundant(case) < 0:
        yield from check_slots(case, ranks(case), redundant(case), where, slots=True)
    else:
        yield from check_share(case, redundant(case), where)


def check_map_file(case: Case) -> Iterator[Finding]:
    """The map file."""
    where = place(case)
    if where is None or isinstance(case.get(*where), dict):
        return
    name = str(case.get(*where))
    if name in case.command.files or name.removeprefix("./") in case.command.files:
        return
    path, model = case.folder / name, case.model
    context = MapContext(
        num_ranks=ranks(case),
        num_experts=model.num_experts if model else None,
        layer_ids=_layers(case) if model else None,
    )
    if not is_here(path) or "initial_global_assignments" in (balancer(case) or {}):
        yield from check_map(case, name, "trtllm", context, case.shown(*where))


def _layers(case: Case) -> tuple[int, ...] | None:
    """The layers that a map has a row for: MoE layers, and those that draft if they run."""
    model = case.the_model
    if model.moe_layer_ids is None:
        return None
    drafts = model.speculative_layer_ids or () if _drafts(case) else ()
    return (*model.moe_layer_ids, *drafts)


def _drafts(case: Case) -> bool:
    kind = case.section("speculative_config").get("decoding_type")
    return isinstance(kind, str) and "mtp" in kind.lower()


def check_draft(case: Case) -> Iterator[Finding]:
    """Draft layers."""
    section = balancer(case)
    if not section or not _drafts(case):
        return
    rows = section.get("initial_global_assignments")
    drafts = case.the_model.speculative_layer_ids
    if isinstance(rows, dict) and drafts:
        missing = [layer for layer in drafts if layer not in rows and str(layer) not in rows]
        if missing:
            yield wrong(
                case.shown(*(place(case) or BALANCER)),
                f"The map has no row for the draft layer {missing[0]}; the engine stops with a "
                "KeyError.",
                "Record with speculation on, and plan again.",
            )


def check_online(case: Case) -> Iterator[Finding]:
    """Layers updated per iteration."""
    section = balancer(case)
    if section is None:
        return
    updates = section.get("layer_updates_per_iter", 0)
    flag = case.shown(*(place(case) or BALANCER), "layer_updates_per_iter")
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 0:
        yield wrong(flag, f"It is {brief(updates)}.", "Give 0 for a fixed map, 1 or 2 to move.")
    elif updates == 0 and "initial_global_assignments" not in section:
        yield wasteful(
            flag,
            "Nothing moves and there is no map, so experts stay in order and only the first ones "
            "get copies.",
            "Give layer_updates_per_iter 1 or 2, or a map.",
        )


def check_chunks(case: Case) -> Iterator[Finding]:
    """Tokens of one chunk."""
    limit = case.get("moe_config", "max_num_tokens")
    batch = case.get("max_batch_size")
    if not isinstance(limit, int) or not isinstance(batch, int) or not limit:
        return
    total = batch * ranks(case)
    if limit < total:
        yield advice(
            case.shown("moe_config", "max_num_tokens"),
            f"A full batch of all ranks has {total} tokens and is served in {-(-total // limit)} "
            f"chunks of {limit}.",
            f"Give {total} if the busiest rank has enough memory for it.",
        )


# The model and the recording ----------------------------------------------------------------------


def check_architecture(case: Case) -> Iterator[Finding]:
    """Architecture."""
    if place(case) is None:
        return
    name = case.the_model.architecture
    if name is not None and name not in ARCHITECTURES:
        yield ignored(
            case.shown(*BALANCER),
            f"TensorRT-LLM does not balance {name}: new releases ignore the section, older ones "
            "stop at num_local_slots.",
            "Leave load_balancer out.",
            drop(*(place(case) or BALANCER)),
        )


def check_quantisation(case: Case) -> Iterator[Finding]:
    """Quantisation."""
    if place(case) is None:
        return
    method = case.the_model.quantisation
    if method is not None and method not in BALANCED_QUANTISATIONS:
        yield advice(
            case.shown(*(place(case) or BALANCER)),
            f"It is not known whether experts quantised by {method} can be moved; with some "
            "methods balancing has produced wrong text instead of an error.",
            "Compare answers with and without load_balancer first.",
        )


def check_recording(case: Case) -> Iterator[Finding]:
    """Variables that record loads."""
    steps = case.variable(RANGE)
    if steps is None:
        if case.variable(FOLDER) is not None:
            yield ignored(
                FOLDER,
                f"Nothing is recorded without {RANGE}.",
                f"Set {RANGE}=100-200 to record, or unset it.",
                unset(FOLDER),
            )
    elif not re.fullmatch(r"\d+-\d+", steps):
        yield wrong(
            RANGE,
            f"It is {brief(steps)}; the engine stops.",
            "Write two numbers and one dash, 100-200.",
        )
    else:
        start, stop = map(int, steps.split("-"))
        if start >= stop:
            yield ignored(RANGE, f"{steps} contains no iteration.", "Give a larger second number.")
        else:
            yield advice(
                RANGE,
                f"Iterations {start} to {stop - 1} are recorded, without CUDA graphs. Each rank "
                f"writes its file when iteration {stop} begins; if the run ends before, there is "
                "no file.",
                "Unset it where speed counts.",
            )


def check_memory_of_slots(case: Case) -> Iterator[Finding]:
    """Memory of redundant experts."""
    if slots(case):
        where = (*(place(case) or BALANCER), "num_slots")
        yield from check_memory(case, ranks(case), redundant(case), where)


def check_time_to_move(case: Case) -> Iterator[Finding]:
    """Time to move experts."""
    section = balancer(case)
    if section and slots(case) and section.get("layer_updates_per_iter"):
        flag = case.shown(*(place(case) or BALANCER), "layer_updates_per_iter")
        yield from check_link(case, ranks(case), redundant(case), flag)


def check_placing(case: Case) -> Iterator[Finding]:
    """Devices against the parallel sizes."""
    yield from check_devices(case, layout(case))


KNOWLEDGE = Knowledge(
    engine="trtllm",
    title="TensorRT-LLM",
    newest="1.4.0rc4",
    programs=(
        ("trtllm-serve",),
        ("trtllm-bench",),
        ("-m", "tensorrt_llm.commands.serve"),
    ),
    image="tensorrt-llm",
    flags=FLAGS,
    aliases=ALIASES,
    balancing=("moe", "load_balancer", "attention_dp", "expert"),
    sections={("moe_config",): MOE_KEYS, BALANCER: BALANCER_KEYS},
    options_flags=("extra_llm_api_options", "config"),
    file_wins=True,
    underscores=True,
    renames=(check_places,),
    checks=(
        check_needs,
        check_backend,
        check_placing,
        check_sizes,
        check_slots_of_model,
        check_map_file,
        check_draft,
        check_online,
        check_chunks,
        check_architecture,
        check_quantisation,
        check_recording,
        check_memory_of_slots,
        check_time_to_move,
    ),
)
