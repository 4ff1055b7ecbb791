"""Checks of how vllm-ascend is started: vLLM's flags, with a balancer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from equipoise.checks import brief
from equipoise.engines.ascend.launch import SUFFIX
from equipoise.engines.ascend.plugin import VARIABLE
from equipoise.engines.doctor.case import Case, NotKnownError
from equipoise.engines.doctor.checks import check_copies, check_link, check_map
from equipoise.engines.doctor.command import drop, export, put, unset
from equipoise.engines.doctor.findings import Finding, advice, deprecated, ignored, wasteful, wrong
from equipoise.engines.doctor.knowledge import Knowledge
from equipoise.engines.formats import MapContext
from equipoise.engines.vllm import advice as vllm

ADDED = "additional-config"
NESTED = (ADDED, "eplb_config")
RENAMED = {
    "num_iterations_eplb_update": "expert_heat_collection_interval",
    "num_wait_worker_iterations": "algorithm_execution_interval",
    "num_wait_woker_iterations": "algorithm_execution_interval",  # seen in scripts
    "init_redundancy_expert": "num_redundant_experts",
}
"""Names of 0.11, and those of 0.13 and later."""
MISSPELT = {"num_wait_woker_iterations": "num_wait_worker_iterations"}
NEW_KEYS = (
    "dynamic_eplb",
    "expert_map_path",
    "expert_map_record_path",
    "expert_heat_collection_interval",
    "algorithm_execution_interval",
    "num_redundant_experts",
    "eplb_policy_type",
    "eplb_heat_collection_stage",
    "load_collection_phase",
    "stair_config",
)
FLAT_KEYS = (
    "dynamic_eplb",
    "expert_map_path",
    "expert_map_record_path",
    "num_iterations_eplb_update",
    "num_wait_worker_iterations",
    "num_wait_woker_iterations",
    "init_redundancy_expert",
    "eplb_policy_type",
    "gate_eplb",
)
"""Keys that 0.11 reads at the top of ``--additional-config``."""
V2_KEYS = ("load_collection_phase", "stair_config")

RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
SWITCHES = ("DYNAMIC_EPLB", "EXPERT_MAP_RECORD")
DEFAULT_HEAT, DEFAULT_WAIT = 600, 50
SHORT_HEAT, SHORT_WAIT = 100, 30
STAGES = ("all", "prefill", "decode")


def is_nested(case: Case) -> bool:
    """Whether the release reads keys in ``eplb_config``."""
    return case.at_least(0, 13)


def own(case: Case) -> dict[str, Any]:
    """The balancer's settings by their new names, wherever the release reads them."""
    top = {RENAMED.get(k, k): v for k, v in case.section(ADDED).items() if k in FLAT_KEYS}
    nested = case.section(*NESTED)
    if not is_nested(case):
        return top
    return {**top, **nested} if not case.at_least(0, 14) else nested


def at(case: Case, key: str) -> tuple[str, ...]:
    """Return the place of a setting of the balancer."""
    if case.has(*NESTED, key) or is_nested(case):
        return (*NESTED, key)
    old = next((name for name, new in RENAMED.items() if new == key and case.has(ADDED, name)), key)
    return (ADDED, old)


def runs_v2(case: Case) -> bool:
    """Whether the launch asks for model runner V2."""
    return case.variable(RUNNER) == "1"


def is_dynamic(case: Case) -> bool:
    """Whether the plug-in's own balancer moves or records experts."""
    settings = own(case)
    return settings.get("dynamic_eplb") is True or bool(settings.get("expert_map_record_path"))


def number(case: Case, key: str, default: int) -> int:
    """A whole number of the balancer's settings."""
    value = own(case).get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise NotKnownError(f"{key} is {brief(value)}, which is not a valid number")
    return value


def redundant(case: Case) -> int:
    """Redundant experts of a layer, by either balancer."""
    if case.on("enable-eplb"):
        return vllm.redundant(case)
    return number(case, "num_redundant_experts", 0)


def balances(case: Case) -> bool:
    """Whether experts are balanced at all."""
    return case.on("enable-eplb") or is_dynamic(case) or bool(own(case).get("expert_map_path"))


# Names and switches -------------------------------------------------------------------------------


def check_flat_keys(case: Case) -> Iterator[Finding]:
    """Keys of 0.11 at the top of --additional-config."""
    found = [key for key in case.section(ADDED) if key in FLAT_KEYS]
    for key in found:
        if not is_nested(case):
            if key in MISSPELT:
                yield ignored(
                    case.shown(ADDED, key),
                    "The engine does not read this key and uses the default.",
                    f"Write {MISSPELT[key]}.",
                    drop(ADDED, key),
                    put(case.command.get(ADDED, key), ADDED, MISSPELT[key]),
                )
            continue
        yield _flat_key(case, key)


def _flat_key(case: Case, key: str) -> Finding:
    value, new = case.command.get(ADDED, key), RENAMED.get(key, key)
    flag = case.shown(ADDED, key)
    fix = [drop(ADDED, key)]
    if key == "gate_eplb":
        remedy = "Leave it out: the feature is gone."
    else:
        remedy = f"Write it as {new} inside eplb_config."
        if not case.has(*NESTED, new):
            fix.append(put(value, *NESTED, new))
    if not case.at_least(0, 14) and key not in MISSPELT:
        return deprecated(flag, "Releases after 0.13 do not read it here.", remedy, *fix)
    if case.at_least(0, 30):
        return wrong(flag, "vllm-ascend 0.30 refuses unknown keys here.", remedy, *fix)
    return ignored(
        flag,
        f"vllm-ascend {case.release} does not read it here, without a warning; balancing keeps its "
        "defaults.",
        remedy,
        *fix,
    )


def check_switches(case: Case) -> Iterator[Finding]:
    """Switches that balancing needs."""
    settings = own(case)
    if balances(case) and not case.on("enable-expert-parallel"):
        yield wrong(
            f"--{ADDED}",
            "Balancing needs expert parallelism.",
            "Add --enable-expert-parallel.",
            put(True, "enable-expert-parallel"),
        )
    if is_dynamic(case) and case.at_least(0, 14) and not runs_v2(case):
        yield from _check_guard(case)
    only_numbers = settings.keys() - {"dynamic_eplb", "expert_map_path", "expert_map_record_path"}
    if only_numbers - set(V2_KEYS) and not balances(case):
        yield ignored(
            case.shown(*(NESTED if is_nested(case) else (ADDED,))),
            "Nothing is balanced without dynamic_eplb and without a map.",
            "Add dynamic_eplb true, or leave the settings out.",
            put(True, *at(case, "dynamic_eplb")),
        )


def _check_guard(case: Case) -> Iterator[Finding]:
    """The variable without which the engine refuses dynamic balancing."""
    dynamic, record = (case.variable(name) for name in SWITCHES)
    if (dynamic or "").lower() in ("true", "1") or record == "true":
        return
    recording = bool(own(case).get("expert_map_record_path"))
    name = "EXPERT_MAP_RECORD" if recording else "DYNAMIC_EPLB"
    yield wrong(
        name,
        "The engine stops at an assertion: dynamic balancing and recording need a variable as "
        "well.",
        f"Set {name}=true.",
        export(name, "true"),
    )


def check_runner(case: Case) -> Iterator[Finding]:
    """Model runner."""
    settings = own(case)
    if runs_v2(case):
        legacy = [key for key in settings if key not in V2_KEYS]
        for key in legacy:
            yield wrong(
                case.shown(*at(case, key)),
                "Model runner V2 refuses the settings of V1.",
                f"Set {RUNNER}=0, or balance with --enable-eplb and --eplb-config.",
                export(RUNNER, "0"),
            )
        for name in SWITCHES:
            if case.variable(name) is not None and not legacy:
                yield wrong(
                    name, "Model runner V2 refuses this variable.", "Unset it.", unset(name)
                )
    elif case.on("enable-eplb") and case.variable(RUNNER) == "0":
        yield wrong(
            "--enable-eplb",
            "Model runner V1 has its own balancer, which eplb_config configures.",
            f"Set {RUNNER}=1.",
            export(RUNNER, "1"),
        )
    blocking = case.has(*vllm.ASYNC) and not case.on(*vllm.ASYNC)
    if case.on("enable-eplb") and blocking and case.at_least(0, 30):
        yield ignored(
            case.shown(*vllm.ASYNC),
            "vllm-ascend 0.30 only balances asynchronously; it warns and ignores this.",
            "Leave it out.",
            drop(*vllm.ASYNC),
        )


# Numbers ------------------------------------------------------------------------------------------


def check_intervals(case: Case) -> Iterator[Finding]:
    """Intervals of the balancer."""
    if not is_dynamic(case):
        return
    heat = number(case, "expert_heat_collection_interval", DEFAULT_HEAT)
    wait = number(case, "algorithm_execution_interval", DEFAULT_WAIT)
    if heat == 0:
        yield ignored(
            case.shown(*at(case, "expert_heat_collection_interval")),
            "With 0 steps balancing never begins.",
            "Give 400 or more for stable traffic, 100 to 200 for changing traffic.",
            put(DEFAULT_HEAT, *at(case, "expert_heat_collection_interval")),
        )
    elif heat < SHORT_HEAT:
        yield advice(
            case.shown(*at(case, "expert_heat_collection_interval")),
            f"{heat} steps count few tokens, so maps follow noise.",
            "Give 400 or more for stable traffic, 100 to 200 for changing traffic.",
        )
    if wait < SHORT_WAIT:
        yield advice(
            case.shown(*at(case, "algorithm_execution_interval")),
            f"If a plan is not ready after {wait} steps, the server stops until it is.",
            f"Give {SHORT_WAIT} or more.",
        )


def check_policy(case: Case) -> Iterator[Finding]:
    """Policy and stage."""
    if not is_dynamic(case):
        return
    settings = own(case)
    policy, stage = settings.get("eplb_policy_type"), settings.get("eplb_heat_collection_stage")
    if policy is not None and (policy not in (0, 1, 2, 3) or isinstance(policy, bool)):
        yield wrong(
            case.shown(*at(case, "eplb_policy_type")),
            f"There is no policy {brief(policy)}.",
            "Write 2 (Swift), 1 (Default) or 3 (FlashLB).",
            put(2, *at(case, "eplb_policy_type")),
        )
    elif policy == 0:
        yield wasteful(
            case.shown(*at(case, "eplb_policy_type")),
            "Policy 0 exchanges experts at random.",
            "Write 2 (Swift).",
            put(2, *at(case, "eplb_policy_type")),
        )
    elif policy == 1 and redundant(case) > vllm.layout(case).ranks:
        yield wrong(
            case.shown(*at(case, "eplb_policy_type")),
            f"Policy 1 allows one redundant expert per device, {vllm.layout(case).ranks} in all, "
            f"but there are {redundant(case)}.",
            "Write 2 (Swift).",
            put(2, *at(case, "eplb_policy_type")),
        )
    if stage is not None and stage not in STAGES:
        yield wrong(
            case.shown(*at(case, "eplb_heat_collection_stage")),
            f"There is no stage {brief(stage)}.",
            f"Write one of {', '.join(STAGES)}.",
        )


def check_plugin(case: Case) -> Iterator[Finding]:
    """The plug-in of this package, which is asked only if something balances while serving."""
    if case.variable(VARIABLE) is None or case.on("enable-eplb"):
        return
    if not is_dynamic(case):
        yield ignored(
            VARIABLE,
            "Nothing is balanced while serving, so the plug-in is never asked.",
            "Set dynamic_eplb, or unset the variable.",
            put(True, *at(case, "dynamic_eplb")),
        )
    elif own(case).get("eplb_policy_type", 2 if case.at_least(0, 23) else 1) != 2:
        yield ignored(
            VARIABLE,
            "The plug-in only plans if eplb_policy_type is 2, which is not the default before "
            "0.23.",
            "Write eplb_policy_type 2.",
            put(2, *at(case, "eplb_policy_type")),
        )


def check_map_files(case: Case) -> Iterator[Finding]:
    """Map files."""
    settings = own(case)
    record, name = settings.get("expert_map_record_path"), settings.get("expert_map_path")
    if record is not None:
        flag = case.shown(*at(case, "expert_map_record_path"))
        if not str(record).endswith(SUFFIX):
            yield wrong(flag, "The engine takes only names that end in .json.", "Rename the file.")
        elif "/" not in str(record):
            yield wrong(
                flag,
                "The name has no folder, and the engine stops because it cannot make one.",
                f"Write ./{record}.",
                put(f"./{record}", *at(case, "expert_map_record_path")),
            )
    if name is None:
        return
    flag = case.shown(*at(case, "expert_map_path"))
    if record is not None or settings.get("dynamic_eplb") is True:
        yield advice(
            flag,
            "The engine only starts from the map; dynamic balancing changes it.",
            "Leave dynamic_eplb and expert_map_record_path out to keep it.",
        )
    if not str(name).endswith(SUFFIX):
        yield wrong(flag, "The engine takes only names that end in .json.", "Rename the file.")
        return
    given = settings.get("num_redundant_experts")
    context = MapContext(
        num_ranks=vllm.layout(case).ranks,
        num_redundant=given if isinstance(given, int) else None,
        num_experts=case.model.num_experts if case.model else None,
    )
    yield from check_map(case, name, "ascend", context, flag)


def check_redundancy(case: Case) -> Iterator[Finding]:
    """Slots against ranks."""
    if is_dynamic(case) or case.on("enable-eplb"):
        path = vllm.REDUNDANT if case.on("enable-eplb") else at(case, "num_redundant_experts")
        yield from check_copies(case, vllm.layout(case).ranks, redundant(case), path)


def check_time_to_move(case: Case) -> Iterator[Finding]:
    """Time to move experts."""
    if is_dynamic(case) or case.on("enable-eplb"):
        flag = case.shown(*at(case, "dynamic_eplb"))
        yield from check_link(case, vllm.layout(case).ranks, redundant(case), flag)


def check_draft(case: Case) -> Iterator[Finding]:
    """Draft layers."""
    if case.has("speculative-config") and own(case).get("expert_map_path"):
        yield advice(
            case.shown(*at(case, "expert_map_path")),
            "A map has no entry for a draft layer; it keeps the default layout, with the "
            "number of slots of the other layers.",
            "Nothing to do.",
        )


KNOWLEDGE = Knowledge(
    engine="ascend",
    title="vllm-ascend",
    newest="0.30.0rc2",
    programs=vllm.PROGRAMS,
    image="vllm-ascend",
    flags=vllm.FLAGS,
    aliases=vllm.ALIASES,
    balancing=vllm.BALANCING,
    sections={NESTED: NEW_KEYS, (vllm.EPLB,): vllm.EPLB_KEYS},
    options_flags=("config",),
    signs=frozenset({ADDED, *SWITCHES, "ASCEND_RT_VISIBLE_DEVICES", "PYTORCH_NPU_ALLOC_CONF"}),
    renames=(check_flat_keys,),
    checks=(
        check_switches,
        vllm.check_switches,
        vllm.check_placing,
        check_runner,
        check_intervals,
        check_policy,
        check_plugin,
        check_map_files,
        check_redundancy,
        check_time_to_move,
        check_draft,
    ),
)
