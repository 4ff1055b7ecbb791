"""How to start SGLang with a placement file."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.engines._shared.releases import (
    check_expert_parallel,
    choose_release,
    same_rank_notes,
)
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

NO_A2A = "none"
SUFFIXES = (".json", ".pt")
DISPATCH = ("static", "dynamic", "lp")


@dataclass(frozen=True)
class _Release:
    """What differs between releases.

    Without an all-to-all backend every rank computes the same tokens, so all have to pick the same
    copy of an expert. Releases that do not (``rank_invariant`` false) give wrong text then.
    """

    rank_invariant: bool
    report_flag: str


RELEASES = {
    "0.5.23": _Release(True, "--expert-balancedness-report-mode server_log"),
    "0.5.16": _Release(False, "--enable-expert-distribution-metrics"),
}


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Flags that make SGLang load a placement.

    Parameters
    ----------
    placement
        What the map holds.
    map_name
        Path of the map, present under this name on every node.
    options
        The version, 0.5.23 if ``None``; the all-to-all backend, none if ``None``; the dispatch.

    Raises
    ------
    EquipoiseError
        One rank; a name the engine would take for inline JSON; a dispatch that is unknown, gives
        wrong text or is refused at start-up.
    """
    name, release = choose_release("SGLang", options.version, RELEASES)
    a2a_backend, dispatch = options.a2a_backend or NO_A2A, options.dispatch
    check_expert_parallel("SGLang", placement, "places experts only with --ep-size above 1")
    _check_name(map_name)
    if dispatch is not None and dispatch not in DISPATCH:
        raise EquipoiseError(
            f"Unknown dispatch {dispatch!r} for serving; expected {', '.join(DISPATCH)}."
        )
    if a2a_backend == NO_A2A:
        dispatch = _dispatch_without_a2a(placement, name, release, dispatch)
    dispatch = dispatch or "static"
    return Launch(
        engine="sglang",
        version=name,
        command=(
            "--ep-size",
            str(placement.num_ranks),
            "--ep-num-redundant-experts",
            str(placement.num_redundant),
            "--moe-a2a-backend",
            a2a_backend,
            "--ep-dispatch-algorithm",
            dispatch,
            "--init-expert-location",
            map_name,
        ),
        notes=_notes(placement, release, a2a_backend, dispatch),
    )


def _check_name(map_name: str) -> None:
    if not map_name.endswith(SUFFIXES):
        raise EquipoiseError(
            f"SGLang would read {map_name!r} as inline JSON; "
            f"name the map so that it ends in {' or '.join(SUFFIXES)}, in lower case."
        )


def _dispatch_without_a2a(
    placement: Placement, version: str, release: _Release, dispatch: str | None
) -> str:
    """The dispatch on which all ranks agree, or a refusal."""
    if release.rank_invariant:
        if dispatch in (None, "dynamic"):
            return "dynamic"
        raise EquipoiseError(
            f"SGLang {version} refuses dispatch {dispatch} without an all-to-all backend, since "
            "ranks would pick different copies; use dynamic, or choose a backend."
        )
    if placement.num_redundant:
        raise EquipoiseError(
            f"SGLang {version} gives wrong text with redundant experts and no all-to-all backend, "
            "since ranks pick different copies; choose a backend, plan without redundant slots "
            f"or use {next(iter(RELEASES))}."
        )
    if dispatch == "lp":
        raise EquipoiseError("Dispatch lp needs an all-to-all backend; use static, or choose one.")
    return dispatch or "static"


def _notes(
    placement: Placement, release: _Release, a2a_backend: str, dispatch: str
) -> tuple[str, ...]:
    notes = [
        "The map needs one row for every decoder layer, dense ones included, and only the key "
        "physical_to_logical_map; SGLang accepts a wrong number of rows and fails later.",
        "Leave --enable-eplb off to keep the map: with it the engine replans after 1000 passes.",
        f"To see what the map does, add {release.report_flag}.",
    ]
    if a2a_backend == NO_A2A:
        notes.append(
            "Check answers before relying on it: without an all-to-all backend, builds have been "
            "reported in which Qwen3-MoE ignores expert locations and gives wrong text."
        )
    else:
        notes.append(
            "Several all-to-all backends set the expert-parallel size to the tensor-parallel size; "
            f"start with --tp-size {placement.num_ranks}."
        )
    if a2a_backend != NO_A2A and placement.num_redundant:
        notes.append(_collapse_note(dispatch))
    if dispatch == "lp":
        notes.append("Dispatch lp needs CUDA devices of SM90 or later and a listed architecture.")
    return (*notes, *same_rank_notes(placement))


def _collapse_note(dispatch: str) -> str:
    collapse = (
        "With an all-to-all backend a rank keeps, of an expert's copies in a map, only those "
        "nearest to it: one on the same GPU, else those on the same node"
    )
    if dispatch == "static":
        return f"{collapse}; a plan that spreads copies over nodes is served best."
    return f"{collapse}, so {dispatch} may leave copies unused; static is what maps are made for."


LAUNCHER = Launcher(
    options=frozenset({"version", "a2a_backend", "dispatch"}),
    launch=launch,
    versions=tuple(RELEASES),
)
