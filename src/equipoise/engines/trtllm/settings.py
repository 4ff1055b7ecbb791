"""The options of TensorRT-LLM for balancing: its ``MoeLoadBalancerConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.engines._shared.findings import shown_names
from equipoise.engines._shared.options import (
    Facts,
    Found,
    Option,
    OptionTable,
    redundant_of_slots,
)
from equipoise.engines._shared.yaml_text import parse_yaml
from equipoise.engines.trtllm.maps import OPTIONS_FILE_SECTIONS
from equipoise.errors import EquipoiseError, FormatError


def _file_of_map(value: Any, facts: Facts) -> Path | None:
    """Return the options file, which is a map itself."""
    if value is not None and facts.file is None:
        raise EquipoiseError("a map is read from a file; put the options in a file and name that.")
    return None if value is None else facts.file


def together(found: Found, _by: Mapping[str, str]) -> Found:
    """Refuse 0 updates without a map: the map would be static, so nothing would happen."""
    found = {"layers_per_step": 0} | found
    if found["layers_per_step"] == 0 and found.get("map_path") is None:
        raise EquipoiseError(
            "layer_updates_per_iter is 0 by default, and there are no initial_global_assignments: "
            "nothing would ever be balanced. Give 1 or more, or a map."
        )
    return found


def _parse(text: str, where: str) -> Any:
    document, repeated = parse_yaml(text, where)
    if repeated:
        raise FormatError(f"{where}: {shown_names(repeated)} appears twice; keep one of the two.")
    return document


TABLE = OptionTable(
    engine="TensorRT-LLM",
    given_as="moe_config.load_balancer",
    options={
        "num_slots": Option(
            here="All slots of a layer, `E` and the redundant ones; a multiple of the ranks.",
            sets=("num_redundant",),
            read=redundant_of_slots,
        ),
        "layer_updates_per_iter": Option(
            here="Most layers that move in a step. 0, the default, keeps the map in "
            "`initial_global_assignments`. The engine looks at its loads in every step; equipoise "
            "looks at the last 1000 steps every 3000 steps.",
            sets=("layers_per_step",),
        ),
        "initial_global_assignments": Option(
            here="The map to start from, slot by slot; the options must then be in a file.",
            sets=("map_path",),
            read=_file_of_map,
        ),
        "mode": Option(here="experts move between steps, not within one", harmless=("standard",)),
        "auxiliary_sms": Option(here="it belongs to the mode per_iteration", harmless=(None,)),
    },
    together=together,
    sections=(*OPTIONS_FILE_SECTIONS, ("moe_load_balancer",)),
    section_may_be_file=True,
    syntax="YAML",
    parse=_parse,
)
"""Every option: what it sets, or why it has no effect."""
