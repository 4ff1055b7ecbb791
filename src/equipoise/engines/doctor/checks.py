"""Checks that several engines share; each gets the engine's own names and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from equipoise.checks import brief
from equipoise.engines.doctor.bounded import folder_is_here, is_here
from equipoise.engines.doctor.case import Case, NotKnownError
from equipoise.engines.doctor.command import Malformed, Place, Unknown, drop, put
from equipoise.engines.doctor.findings import Finding, advice, ignored, wasteful, wrong
from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.map_io import inspect_map
from equipoise.errors import FormatError

LEAST_LINK = 10e9 / 8
"""Least network bandwidth that SwiftBalancer's manual accepts, in bytes per second: 10 Gbit/s."""

_NEAR = 0.8  # similarity by difflib: one or two letters of ten differ


@dataclass(frozen=True)
class Layout:
    """The distribution of experts over ranks and devices.

    Parameters
    ----------
    ranks
        Number of ranks that share the experts of a layer.
    devices
        Number of devices that the whole launch takes.
    formula
        Formula of the devices from the flags.
    size_flag
        Flag that sets most of them.
    """

    ranks: int
    devices: int
    formula: str
    size_flag: str


# Names and values ---------------------------------------------------------------------------------


def check_values(case: Case) -> Iterator[Finding]:
    """Values of the flags that are read."""
    known = case.command.known
    for argument in case.command.arguments:
        if not argument.path:
            continue
        name, value = known.shown(*argument.path), argument.value
        takes = known.flags.get(argument.path[0]) if len(argument.path) == 1 else None
        if isinstance(value, Malformed):
            yield wrong(
                name,
                f"The value {value.reason}",
                "Write one JSON object in single quotes, with double quotes around every key.",
            )
        elif takes in ("number", "size") and not isinstance(value, Unknown):
            least = 1 if takes == "size" else 0
            if not _is_whole(value, least):
                yield wrong(
                    name, f"The value is {brief(value)}.", f"Give a whole number, {least} or more."
                )
        elif takes == "text" and isinstance(value, bool) and argument.file is None:
            yield wrong(name, "No value follows it.", "Give the value, or leave the flag out.")


def _is_whole(value: object, least: int) -> bool:
    """Tell whether an engine reads a value as a number, possibly in quotes."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value):
        value = int(value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_names(case: Case) -> Iterator[Finding]:
    """Names of flags that belong to balancing."""
    known = case.command.known
    for argument in case.command.arguments:
        name = argument.path[0] if argument.path else ""
        if not name or name in known.flags:
            continue
        near = _nearest(name, known.flags, known.balancing)
        if near is not None:
            where = "" if argument.file is None else f" in {argument.file}"
            yield wrong(
                known.shown(name) if argument.file is None else name,
                f"{known.title} {case.release} has no such option{where}.",
                f"Write {known.shown(near) if argument.file is None else near}, if that is meant.",
                drop(*argument.path),
                put(argument.value, near, *argument.path[1:]),
            )


def check_keys(case: Case) -> Iterator[Finding]:
    """Keys within the flags that take several settings."""
    known = case.command.known
    for path, keys in known.sections.items():
        for key, value in case.section(*path).items():
            if key in keys:
                continue
            near = get_close_matches(key, keys, 1, _NEAR)
            remedy = f"Write {near[0]}." if near else f"It takes {', '.join(keys)}."
            fix = (drop(*path, key), put(value, *path, near[0])) if near else ()
            yield wrong(
                known.shown(*path, key),
                f"{known.title} {case.release} has no such key and refuses to start.",
                remedy,
                *fix,
            )


def _nearest(name: str, known: Iterable[str], parts: Sequence[str]) -> str | None:
    """Find the known flag that an unknown one resembles, if it is about balancing."""
    names = [flag for flag in known if any(part in flag for part in parts)]
    if not any(part in name for part in parts) and len(name) < 10:
        return None
    near = get_close_matches(name, names, 1, _NEAR if any(p in name for p in parts) else 0.9)
    return near[0] if near else None


# Switches -----------------------------------------------------------------------------------------

EXPERT_PARALLEL = "enable-expert-parallel"
"""Flag that all engines derived from vLLM have."""


def check_balancing_switch(
    case: Case, switch: str, settings: str, layout: Callable[[Case], Layout]
) -> Iterator[Finding]:
    """Settings of a balancer that is off, and a balancer that has no experts to balance.

    The engine starts in either case.
    """
    if not case.on(switch):
        if case.has(settings):
            yield ignored(
                f"--{settings}",
                f"Nothing is balanced without --{switch}.",
                f"Add --{switch}, or leave the settings out.",
                put(True, switch),
                put(True, EXPERT_PARALLEL),
            )
        return
    if not case.on(EXPERT_PARALLEL):
        yield ignored(
            f"--{switch}",
            "Without expert parallelism no rank has experts of its own, so there is nothing to "
            "balance.",
            f"Add --{EXPERT_PARALLEL}.",
            put(True, EXPERT_PARALLEL),
        )
    if layout(case).ranks == 1:
        yield ignored(
            f"--{switch}",
            "There is one rank, so nothing to balance.",
            "Give --tensor-parallel-size or --data-parallel-size above 1.",
        )


# Sizes --------------------------------------------------------------------------------------------


def check_devices(case: Case, layout: Layout) -> Iterator[Finding]:
    """Devices against the parallel sizes."""
    devices = case.devices
    if devices is None:
        return
    takes = f"The launch takes {layout.devices} device{'s' * (layout.devices > 1)}"
    if layout.devices > devices:
        yield wrong(
            layout.size_flag,
            f"{takes} ({layout.formula}) and there are {devices}.",
            f"Make the product {devices}.",
        )
    elif layout.devices < devices:
        yield wasteful(
            layout.size_flag,
            f"{takes} ({layout.formula}), so {devices - layout.devices} of {devices} stay idle.",
            f"Make the product {devices}, or start a second server on the rest.",
        )
    if case.nodes and layout.devices % case.nodes:
        yield wrong(
            layout.size_flag,
            f"{layout.devices} devices do not spread evenly over {case.nodes} nodes.",
            "Choose sizes whose product is a multiple of the nodes.",
        )


def check_slots(
    case: Case, ranks: int, redundant: int, path: Place, *, slots: bool = False
) -> Iterator[Finding]:
    """Slots against the ranks.

    Parameters
    ----------
    path
        Setting that determines their number.
    slots
        Flag that the setting counts all slots, not only redundant ones.
    """
    experts = case.the_model.num_experts
    total = experts + redundant
    flag = case.shown(*path)
    if redundant < 0:
        yield wrong(
            flag,
            f"{total} slots are fewer than the model's {experts} experts.",
            f"Give at least {experts}.",
            put(-(-experts // ranks) * ranks, *path),
        )
    elif total % ranks:
        better = -(-total // ranks) * ranks
        value = better if slots else better - experts
        yield wrong(
            flag,
            f"{experts} experts and {redundant} redundant ones are {total} slots, which do not "
            f"spread evenly over {ranks} ranks.",
            f"Give {value}, for {better // ranks} slots on each rank.",
            put(value, *path),
        )


def check_share(case: Case, redundant: int, path: Place) -> Iterator[Finding]:
    """Redundant experts against the experts."""
    experts = case.the_model.num_experts
    flag = case.shown(*path)
    if redundant == 0:
        yield advice(
            flag,
            "Without redundant experts balancing can only exchange experts; it cannot share the "
            "load of one expert that is hotter than a rank's share.",
            "Run equipoise budget on a recording to see how many pay: mostly none in small steps, "
            "some on every rank in large ones.",
        )
    elif redundant > experts // 2:
        yield wasteful(
            flag,
            f"{redundant} redundant experts are {100 * redundant // experts} % of the model's "
            f"{experts}; more than half rarely pay for their memory.",
            "Run equipoise budget to see from which number on they do not pay.",
        )


def check_memory(case: Case, ranks: int, redundant: int, path: Place) -> Iterator[Finding]:
    """Memory of redundant experts."""
    model = case.the_model
    if redundant <= 0:
        return
    if model.slot_bytes is None:
        reason = model.unknown.get("expert_bytes") or model.unknown.get("moe_layer_ids")
        raise NotKnownError(f"the size of an expert is not known, since {reason}")
    taken = model.slot_bytes * redundant / ranks
    kv = model.kv_bytes_per_token
    tokens = "" if not kv else f", the KV cache of {int(taken // kv):,} tokens if it is not split"
    layers = len(model.moe_layer_ids or ())
    yield advice(
        case.shown(*path),
        f"{redundant} redundant experts take {taken / 1e9:.2f} GB of every rank's memory "
        f"({layers} layers){tokens}.",
        "Leave that much free of KV cache, or see how many pay with equipoise budget.",
    )


def check_copies(case: Case, ranks: int, redundant: int, path: Place) -> Iterator[Finding]:
    """Redundant experts against ranks, experts and memory."""
    yield from check_slots(case, ranks, redundant, path)
    yield from check_share(case, redundant, path)
    yield from check_memory(case, ranks, redundant, path)


def check_link(case: Case, ranks: int, redundant: int, flag: str) -> Iterator[Finding]:
    """Time to move experts over the link."""
    model = case.the_model
    if model.slot_bytes is None:
        raise NotKnownError("the size of an expert is not known")
    given = case.link_bytes_per_second
    speed = given or LEAST_LINK
    volume = model.slot_bytes * (model.num_experts + redundant) / ranks
    source = "the link given" if given else "the least that SwiftBalancer's manual asks for"
    yield advice(
        flag,
        f"A rearrangement that changes every slot brings {volume / 1e9:.1f} GB to each rank: "
        f"{volume / speed:.1f} s at {speed * 8 / 1e9:g} Gbit/s ({source}).",
        "Let the interval between two be many times that; --link-bytes-per-second computes it for "
        "your network."
        if given is None
        else "Let the interval between two be many times that.",
    )


# Maps ---------------------------------------------------------------------------------------------


def check_map(
    case: Case, name: object, format: str, context: MapContext, flag: str
) -> Iterator[Finding]:
    """The map file."""
    if not isinstance(name, str) or not name:
        yield wrong(flag, f"It is {brief(name)}.", "Give the name of a map file.")
        return
    path = case.folder / name
    if not folder_is_here(path):
        raise NotKnownError(f"the folder of {brief(name)} is not on this machine")
    if not is_here(path):
        yield wrong(
            flag,
            f"The map {brief(name)} does not exist.",
            "Make it with equipoise plan, or give the name that it has.",
        )
        return
    yield from _defects(path, format, context, flag)


def _defects(path: Path, format: str, context: MapContext, flag: str) -> Iterator[Finding]:
    remedy = f"See all of its defects with: equipoise validate {path.name} --for {format}"
    try:
        found = inspect_map(path, context, format=format)
    except FormatError as error:
        yield wrong(flag, f"The map cannot be read: {error}", remedy)
        return
    errors = [finding for finding in found.findings if finding.severity is Severity.ERROR]
    if errors:
        yield wrong(
            flag,
            "The engine stops at the map, or answers wrongly with it. Errors: "
            f"{len(errors)}; the first: {errors[0].message}",
            remedy,
        )


def about(check: Callable[..., object]) -> str:
    """Return what a check looks at: the first line of its docstring, without the full stop."""
    return re.split(r"\.?\n|\.$", check.__doc__ or "", maxsplit=1)[0]
