"""Flags that start SGLang with a placement file."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.engines._shared.model_notes import architecture_notes, speculative_notes
from equipoise.engines._shared.releases import (
    Releases,
    check_expert_parallel,
    number,
    same_rank_notes,
)
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.engines.sglang.architectures import BALANCED
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

NO_A2A = "none"
SUFFIXES = (".json", ".pt")
DISPATCH = ("static", "dynamic", "lp")
ALL_TO_ALL = {
    "none": (0, 5, 6),
    "deepep": (0, 5, 6),
    "mooncake": (0, 5, 6),
    "ascend_fuseep": (0, 5, 6),
    "flashinfer": (0, 5, 9),
    "mori": (0, 5, 9),
    "nixl": (0, 5, 10),
    "megamoe": (0, 5, 12),
    "ascend_tp": (0, 5, 16),
    "pplx": (0, 5, 17),
    "deepep_v2": (0, 5, 19),
    "flashinfer_megamoe": (0, 5, 20),
}
"""All-to-all backends, and the first release that has each."""


@dataclass(frozen=True)
class _Release:
    """The differences between releases.

    Without an all-to-all backend every rank computes the same tokens, so all must choose the same
    copy of an expert. Releases in which they do not (``rank_invariant`` false) give wrong text.
    """

    rank_invariant: bool = False
    has_lp: bool = True
    report_flag: str = "--enable-expert-distribution-metrics"
    attention_flag: str = "--enable-dp-attention with --dp-size"


_REPORT = "--expert-balancedness-report-mode server_log"
RELEASES = Releases(
    engine="SGLang",
    default="0.5.23",
    newest="0.5.23",
    since={
        "0.5.22": _Release(True, report_flag=_REPORT, attention_flag="--attn-dp-size"),
        "0.5.18": _Release(True, report_flag=_REPORT),
        "0.5.17": _Release(True),
        "0.5.14": _Release(),
        "0.5.6": _Release(has_lp=False),
    },
)


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Return flags with which SGLang loads a placement.

    Parameters
    ----------
    placement
        Placement that the map holds.
    map_name
        Path of the map, present under this name on every node.
    options
        Version (``None``: 0.5.23), all-to-all backend (``None``: none) and dispatch.

    Raises
    ------
    EquipoiseError
        There is one rank; the engine would take the name for inline JSON; or the dispatch is
        unknown, gives wrong text or is refused at start-up.
    """
    name, release = RELEASES.choose(options.version)
    a2a_backend, dispatch = options.a2a_backend or NO_A2A, options.dispatch
    check_expert_parallel("SGLang", placement, "places experts only with --ep-size above 1")
    _check_name(map_name)
    _check_names(name, release, a2a_backend, dispatch)
    if release is None:
        return RELEASES.unknown("sglang", name, placement)
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
        notes=(
            *_notes(placement, release, a2a_backend, dispatch),
            *_model_notes(placement, options.model),
        ),
    )


def _check_name(map_name: str) -> None:
    if not map_name.endswith(SUFFIXES):
        raise EquipoiseError(
            f"SGLang would read {map_name!r} as inline JSON; "
            f"name the map so that it ends in {' or '.join(SUFFIXES)}, in lower case."
        )


def _check_names(
    version: str, release: _Release | None, a2a_backend: str, dispatch: str | None
) -> None:
    """Refuse names that no release has, or that came after this one."""
    if dispatch is not None and dispatch not in DISPATCH:
        raise EquipoiseError(
            f"Unknown dispatch {dispatch!r} for serving; expected {', '.join(DISPATCH)}."
        )
    if a2a_backend not in ALL_TO_ALL:
        raise EquipoiseError(
            f"SGLang has no all-to-all backend {a2a_backend!r}; choose one of "
            f"{', '.join(ALL_TO_ALL)}."
        )
    if release is None:
        return
    if (number(version) or ()) < ALL_TO_ALL[a2a_backend]:
        first = ".".join(map(str, ALL_TO_ALL[a2a_backend]))
        raise EquipoiseError(
            f"SGLang {version} has no all-to-all backend {a2a_backend}, which came with {first}."
        )
    if dispatch == "lp" and not release.has_lp:
        raise EquipoiseError(f"SGLang {version} has no dispatch lp, which came with 0.5.14.")


def _dispatch_without_a2a(
    placement: Placement, version: str, release: _Release, dispatch: str | None
) -> str:
    """Return the dispatch on which all ranks agree; raise if there is none."""
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
            "or use 0.5.17 or later."
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
        "Leave --enable-eplb off to keep the map: with it the engine makes its own plan after 1000 "
        "passes (to let equipoise make the plans: equipoise explain plugins).",
        f"To see what the map does, add {release.report_flag}.",
        f"In this release attention data parallelism is switched on by {release.attention_flag}.",
        "The MoE kernel --moe-runner-backend flashinfer_trtllm refuses redundant experts.",
    ]
    if a2a_backend == NO_A2A:
        notes.append(
            "Compare answers with and without the map first: without an all-to-all backend, some "
            "builds are reported to ignore the map for Qwen3-MoE and to produce wrong text."
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


def _model_notes(placement: Placement, model: ModelConfig | None) -> tuple[str, ...]:
    draft = "SGLang's map does not cover it: draft layers keep the default layout."
    return (
        *architecture_notes("SGLang 0.5.23", model, BALANCED, "the map is ignored in silence"),
        *_quantisation_notes(model),
        *speculative_notes(model, placement, missing=draft, present=draft),
    )


def _quantisation_notes(model: ModelConfig | None) -> tuple[str, ...]:
    if model is None or model.quantisation is None:
        return ()
    return (
        f"The experts are quantised by {model.quantisation}. SGLang does not list the "
        "quantisations that it balances: compare answers with and without the map first.",
    )


def _collapse_note(dispatch: str) -> str:
    collapse = (
        "With an all-to-all backend a rank uses only the nearest copies of an expert: the one on "
        "its own GPU, else those on its node"
    )
    if dispatch == "static":
        return f"{collapse}. A plan that spreads copies over nodes suits this best."
    return f"{collapse}, so {dispatch} may leave copies unused; maps are planned for static."


LAUNCHER = Launcher(
    options=frozenset({"version", "a2a_backend", "dispatch"}),
    launch=launch,
    versions=RELEASES.names,
)
