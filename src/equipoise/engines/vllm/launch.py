"""How to start vLLM for a placement."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from equipoise.engines._shared.releases import (
    check_expert_parallel,
    choose_release,
    same_rank_notes,
)
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

MAX_REDUNDANT = 1023  # the engine's map tensors hold 1024 copies of an expert
WINDOW_SIZE = 1000  # EPLBConfig's defaults
STEP_INTERVAL = 3000


@dataclass(frozen=True)
class _Build:
    """How a build is told of a map: no option at all in the releases."""

    map_option: str | None = None
    format: str = ""
    hold_option: str | None = None  # keeps the map instead of rearranging
    about: str = ""


RELEASES = {
    "0.33.0": _Build(),
    "0.32.0": _Build(),
    "pr-41141": _Build(
        "initial_mapping_path",
        "vllm-41141",
        "disable_online_rebalancing",
        "Only the first revision of pull request 41141 reads a map; the second plans by itself.",
    ),
    "pr-49572": _Build("initial_expert_map_path", "vllm-49572"),
    "pr-53022": _Build(
        "expert_map_path",
        "vllm-53022",
        about="Pull request 53022 serves DeepSeek-V4 only; its map has a row for every hidden "
        "layer and every MTP layer.",
    ),
}


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Flags that make vLLM run with a placement's slots, and load its map where a build can.

    No release reads a map: for 0.33.0 and 0.32.0 the flags configure the engine's own balancing
    with the same number of redundant experts, and the first note says so. The builds of the named
    pull requests do read one.

    Parameters
    ----------
    placement
        What the map holds.
    map_name
        Path of the map as the engine's processes will see it.
    options
        The version, 0.33.0 if ``None``; the window and the interval, 1000 and 3000 if ``None``.
        Where a build can hold its map, it does unless one of these two is given.

    Raises
    ------
    EquipoiseError
        One rank; more than 1023 redundant experts; a window longer than the interval, whose
        history the engine would attribute to the wrong map.
    """
    name, build = choose_release("vLLM", options.version, RELEASES)
    window_size, step_interval = options.window_size, options.step_interval
    check_expert_parallel("vLLM", placement, "balances experts only with TP x DP x PCP above 1")
    if placement.num_redundant > MAX_REDUNDANT:
        raise EquipoiseError(
            f"{placement.num_redundant} redundant experts; "
            f"vLLM's maps hold at most {MAX_REDUNDANT}, so plan with fewer slots."
        )
    _check_window(window_size, step_interval)
    config: dict[str, Any] = {"num_redundant_experts": placement.num_redundant}
    if build.map_option:
        config[build.map_option] = map_name
    if build.hold_option and window_size is None and step_interval is None:
        config[build.hold_option] = True
    if window_size is not None:
        config["window_size"] = window_size
    if step_interval is not None:
        config["step_interval"] = step_interval
    return Launch(
        engine="vllm",
        version=name,
        command=(
            "--enable-expert-parallel",
            "--enable-eplb",
            "--eplb-config",
            json.dumps(config),
        ),
        notes=_notes(placement, map_name, name, build, config),
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
            "would count loads of the map before last; give a window_size of at most the interval."
        )


def _notes(
    placement: Placement, map_name: str, version: str, build: _Build, config: dict[str, Any]
) -> tuple[str, ...]:
    notes = []
    if not build.map_option:
        notes.append(
            f"vLLM {version} reads no map: these flags do not load {map_name}. They set aside the "
            "slots, and the engine's own policy fills them. Maps are read by builds of pull "
            "requests 41141, 49572 and 53022 (versions pr-41141, pr-49572, pr-53022); a policy "
            "plug-in (entry point vllm.general_plugins) can place experts in a release."
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
            f"The map is where the engine starts; it rearranges by itself after "
            f"{max(1, interval // 4)} steps and then every {interval}."
        )
    notes.append(
        f"TP x DP x PCP must be {placement.num_ranks}, the ranks of the placement: the engine "
        "does not compare them, and other sizes put slots on other ranks."
    )
    return (*notes, *same_rank_notes(placement))


LAUNCHER = Launcher(
    options=frozenset({"version", "window_size", "step_interval"}),
    launch=launch,
    versions=tuple(RELEASES),
)
