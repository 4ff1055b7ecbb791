"""Flags that start vLLM for a placement."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from equipoise.engines._shared.model_notes import architecture_notes, speculative_notes
from equipoise.engines._shared.releases import (
    Releases,
    check_expert_parallel,
    same_rank_notes,
)
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.engines.vllm.architectures import BALANCED, quantisation_notes
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement

MAX_REDUNDANT = 1023  # the engine's map tensors hold 1024 copies of an expert
WINDOW_SIZE = 1000  # EPLBConfig's defaults
STEP_INTERVAL = 3000
PLANNING_STEPS = 25  # half a second, in steps of 20 ms

ALL_TO_ALL = (
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "flashinfer_all2allv",
    "flashinfer_nvlink_one_sided",
    "flashinfer_nvlink_two_sided",
    "mori_high_throughput",
    "mori_low_latency",
    "naive",
    "nixl_ep",
    "passthrough",
    "pplx",
)
"""The values of --all2all-backend that balancing may have, 0.32.0; older releases have fewer."""
UNBALANCED_ALL_TO_ALL = "moonep"


@dataclass(frozen=True)
class _Build:
    """The option by which a build loads a map; releases have none."""

    map_option: str | None = None
    format: str = ""
    hold_option: str | None = None  # keeps the map instead of rearranging
    about: str = ""
    has_async: bool = True


RELEASES = Releases(
    engine="vLLM",
    default="0.33.0",
    newest="0.33",
    since={"0.12": _Build(), "0.11": _Build(has_async=False)},
    builds={
        "pr-41141": _Build(
            "initial_mapping_path",
            "vllm-41141",
            "disable_online_rebalancing",
            "Only the first revision of pull request 41141 reads a map; the second plans by "
            "itself.",
        ),
        "pr-49572": _Build("initial_expert_map_path", "vllm-49572"),
        "pr-53022": _Build(
            "expert_map_path",
            "vllm-53022",
            about="Pull request 53022 serves DeepSeek-V4 only; its map has a row for every hidden "
            "layer and every MTP layer.",
        ),
    },
)


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Flags that make vLLM run with a placement's slots, and load its map where a build can.

    No release reads a map: for a release the flags configure the engine's own balancing with the
    same number of redundant experts, and the first note says so. The builds of the named pull
    requests do read one.

    Parameters
    ----------
    placement
        Placement that the map holds.
    map_name
        Path of the map for the engine's processes.
    options
        Version (``None``: 0.33.0), all-to-all backend, window and interval (``None``: 1000 and
        3000), and whether experts move in the background (``None``: yes). A build that can keep its
        map fixed does so, unless the window or the interval is given.

    Raises
    ------
    EquipoiseError
        There is one rank, or there are more than 1023 redundant experts. The window is longer than
        the interval, or moves in the background overlap with it, so that the engine would attribute
        its history to the wrong map. The all-to-all backend is unknown or refuses balancing. The
        release cannot move experts in the background.
    """
    name, build = RELEASES.choose(options.version)
    check_expert_parallel("vLLM", placement, "balances experts only with TP x DP x PCP above 1")
    if placement.num_redundant > MAX_REDUNDANT:
        raise EquipoiseError(
            f"{placement.num_redundant} redundant experts; "
            f"vLLM's maps hold at most {MAX_REDUNDANT}, so plan with fewer slots."
        )
    _check_window(options.window_size, options.step_interval)
    if build is None:
        return RELEASES.unknown("vllm", name, placement)
    _check_backend(options.a2a_backend)
    config = _config(placement, map_name, name, build, options)
    if not build.map_option:
        _check_background(placement, config)
    backend = () if options.a2a_backend is None else ("--all2all-backend", options.a2a_backend)
    return Launch(
        engine="vllm",
        version=name,
        command=(
            "--enable-expert-parallel",
            *backend,
            "--enable-eplb",
            "--eplb-config",
            json.dumps(config),
        ),
        notes=(
            *_notes(placement, map_name, name, build, config),
            *_model_notes(placement, options),
        ),
    )


def _check_window(window_size: int | None, step_interval: int | None) -> None:
    window = WINDOW_SIZE if window_size is None else window_size
    interval = STEP_INTERVAL if step_interval is None else step_interval
    if window < 1 or interval < 1:
        raise EquipoiseError(
            f"A window of {window} and an interval of {interval} steps; expected at least 1."
        )
    if window > interval:
        default = " (vLLM's default)" if window_size is None else ""
        raise EquipoiseError(
            f"A window of {window} steps{default} is longer than the interval of {interval}: it "
            f"would mix loads of two maps; give a {argument('window_size')} of at most the "
            "interval."
        )


def _check_backend(name: str | None) -> None:
    if name == UNBALANCED_ALL_TO_ALL:
        raise EquipoiseError(f"vLLM refuses balancing with the all-to-all backend {name}.")
    if name is not None and name not in ALL_TO_ALL:
        raise EquipoiseError(
            f"vLLM has no all-to-all backend {name!r}; choose one of {', '.join(ALL_TO_ALL)}."
        )


def _config(
    placement: Placement, map_name: str, version: str, build: _Build, options: LaunchOptions
) -> dict[str, Any]:
    """Return the engine's balancing: complete for a release, only given values for a build."""
    config: dict[str, Any] = {"num_redundant_experts": placement.num_redundant}
    if options.use_async and not build.has_async:
        raise EquipoiseError(
            f"vLLM {version} moves experts in the foreground only; leave "
            f"{argument('use_async')} out."
        )
    chosen = {
        "window_size": options.window_size,
        "step_interval": options.step_interval,
        "use_async": options.use_async if build.has_async else None,
    }
    if build.map_option:
        config[build.map_option] = map_name
        if build.hold_option and options.window_size is None and options.step_interval is None:
            config[build.hold_option] = True
        return config | {key: value for key, value in chosen.items() if value is not None}
    usual = {"window_size": WINDOW_SIZE, "step_interval": STEP_INTERVAL}
    usual |= {"use_async": True} if build.has_async else {}
    return config | {k: v if chosen[k] is None else chosen[k] for k, v in usual.items()}


def _notes(
    placement: Placement, map_name: str, version: str, build: _Build, config: dict[str, Any]
) -> tuple[str, ...]:
    notes = []
    if not build.map_option:
        notes.append(
            f"vLLM {version} reads no map: these flags do not load {map_name}. They only reserve "
            "the slots, which the engine's own policy fills. To place experts in a release, use "
            "equipoise's plug-in for 0.32 and 0.33 (equipoise explain plugins). Builds of pull "
            "requests 41141, 49572 and 53022 read maps (versions pr-41141, pr-49572, pr-53022)."
        )
    else:
        notes.append(
            f"{build.map_option} belongs to an unmerged pull request; released vLLM refuses it. "
            f"Write the map in the format {build.format}."
        )
    if build.about:
        notes.append(build.about)
    if build.map_option and build.hold_option not in config:
        interval = config.get("step_interval", STEP_INTERVAL)
        notes.append(
            f"The engine starts from the map and rearranges by itself after "
            f"{max(1, interval // 4)} steps, then every {interval} steps."
        )
    notes.append(
        f"TP x DP x PCP must be {placement.num_ranks}, the ranks of the placement: the engine does "
        "not check this, and other sizes put slots on other ranks."
    )
    return (*notes, *same_rank_notes(placement))


def _check_background(placement: Placement, config: dict[str, Any]) -> None:
    """Check the window against moves in the background, which change one layer per step."""
    window, interval = config["window_size"], config["step_interval"]
    layers = placement.num_layers
    needed = window + layers + PLANNING_STEPS
    if config.get("use_async") and needed > interval:
        raise EquipoiseError(
            f"In the background at most one layer moves a step. A window of {window} steps, "
            f"{layers} layers and about {PLANNING_STEPS} steps of planning do not fit in an "
            f"interval of {interval} steps, so the window would mix loads of two maps. Give an "
            f"interval of {needed} or more, or a shorter window, or move in the foreground."
        )


def _model_notes(placement: Placement, options: LaunchOptions) -> tuple[str, ...]:
    drafter = (
        "vLLM balances a draft model separately from its target; both need the same numbers of "
        "experts, ranks and slots."
    )
    return (
        *architecture_notes(
            "vLLM 0.32.0",
            options.model,
            BALANCED,
            "balancing stays off (model runner V2) or an assertion fails (V1)",
        ),
        *quantisation_notes(options.model),
        *speculative_notes(
            options.model,
            placement,
            missing=drafter,
            present=drafter,
        ),
    )


LAUNCHER = Launcher(
    options=frozenset({"version", "a2a_backend", "window_size", "step_interval", "use_async"}),
    launch=launch,
    versions=RELEASES.names,
)
