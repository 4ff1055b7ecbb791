"""The launch flags that go with a map, whatever its engine."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.engines.ascend.launch import launch as ascend_launch
from equipoise.engines.formats import Launch, given
from equipoise.engines.map_io import map_format as find_map_format
from equipoise.engines.sglang.launch import NO_A2A
from equipoise.engines.sglang.launch import launch as sglang_launch
from equipoise.engines.trtllm.launch import launch as trtllm_launch
from equipoise.engines.vllm.launch import RELEASES as VLLM_RELEASES
from equipoise.engines.vllm.launch import launch as vllm_launch
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

_OPTIONS: dict[str, frozenset[str]] = {
    "equipoise": frozenset(),
    "trtllm": frozenset({"version", "architecture", "backend"}),
    "sglang": frozenset({"version", "a2a_backend", "dispatch"}),
    "vllm": frozenset({"version"}),
    "ascend": frozenset({"version"}),
}


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What decides the flags besides the map. ``None`` means the engine's default.

    Parameters
    ----------
    version
        The engine's release, as listed in ``docs/launch.md``.
    architecture, backend
        TensorRT-LLM: the model's architecture and the MoE backend.
    a2a_backend, dispatch
        SGLang: ``--moe-a2a-backend`` and ``--ep-dispatch-algorithm``.
    """

    version: str | None = None
    architecture: str | None = None
    backend: str | None = None
    a2a_backend: str | None = None
    dispatch: str | None = None


def launch(
    placement: Placement, map_format: str, map_name: str, options: LaunchOptions | None = None
) -> Launch | None:
    """Flags, environment and files that make an engine load a map of this format.

    Returns
    -------
    ``None`` for our own format, which no engine reads.

    Raises
    ------
    EquipoiseError
        An unknown format, an option of another engine, or a combination the engine would ignore
        in silence.
    """
    options = options or LaunchOptions()
    engine = find_map_format(map_format).name.partition("-")[0]
    _refuse_options_of_others(engine, options)
    match engine:
        case "trtllm":
            return trtllm_launch(
                placement,
                map_name,
                version=options.version,
                architecture=options.architecture,
                backend=options.backend,
            )
        case "sglang":
            return sglang_launch(
                placement,
                map_name,
                version=options.version,
                a2a_backend=options.a2a_backend or NO_A2A,
                dispatch=options.dispatch,
            )
        case "vllm":
            version = options.version or map_format.replace("vllm", "pr")
            _refuse_map_vllm_ignores(map_format, version)
            return vllm_launch(placement, map_name, version=version)
        case "ascend":
            return ascend_launch(placement, map_name, version=options.version)
        case _:
            return None


def _refuse_options_of_others(engine: str, options: LaunchOptions) -> None:
    unused = sorted(given(options) - _OPTIONS[engine])
    if unused:
        usable = ", ".join(sorted(_OPTIONS[engine])) or "none"
        raise EquipoiseError(
            f"The launch flags for {engine} do not depend on {', '.join(unused)}; usable: {usable}."
        )


def _refuse_map_vllm_ignores(map_format: str, version: str) -> None:
    build = VLLM_RELEASES.get(version)  # an unknown one is refused by vLLM's own launch
    if build is not None and build.format != map_format:
        reads = f"reads {build.format}" if build.format else "reads no map file"
        raise EquipoiseError(
            f"vLLM {version} {reads}, so it would ignore a {map_format} map; "
            "plan for the build that reads it, or leave the version out."
        )
