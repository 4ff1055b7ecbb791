"""``equipoise diff``: what must move from one map to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table

from equipoise.cli.common import Amount, Json, MapArguments, Size, print_json, stdout
from equipoise.engines.map_io import read_map
from equipoise.migration import Migration, Receive
from equipoise.migration import diff as compare
from equipoise.topology import Topology


def diff(
    old: Path,
    new: Path,
    /,
    *,
    ranks_per_node: Annotated[int | None, Size] = None,
    expert_bytes: Annotated[int | None, Amount] = None,
    deployment: MapArguments | None = None,
    json: Json = False,
) -> int:
    """Count what must move from one map to another; the maps may be of different formats.

    Parameters
    ----------
    old, new
        The map in force, and the one to come.
    ranks_per_node
        Ranks behind one fast interconnect; all of them if not given.
    expert_bytes
        Bytes of one expert in one layer, scales included; adds the volume to the answer.
    """
    context = (deployment or MapArguments()).context
    before, after = read_map(old, context), read_map(new, context)
    migration = compare(before, after, Topology(before.num_ranks, ranks_per_node))
    if json:
        print_json(_document(migration, expert_bytes))
    else:
        _print(migration, expert_bytes)
    return 0


def _document(migration: Migration, expert_bytes: int | None) -> dict[str, object]:
    return {
        "slots": migration.receive.size,
        "moves": _totals(migration),
        "by_layer": {
            str(layer): {kind.name.lower(): int(n) for kind, n in zip(Receive, row, strict=True)}
            for layer, row in zip(migration.new.layer_ids, migration.counts, strict=True)
        },
        "transfers": int(migration.received.sum()),
        "bytes": None if expert_bytes is None else migration.bytes(expert_bytes),
    }


def _totals(migration: Migration) -> dict[str, int]:
    totals = migration.counts.sum(axis=0)
    return {kind.name.lower(): int(totals[kind]) for kind in Receive}


_MEANING = {
    Receive.UNCHANGED: "holds its expert already",
    Receive.SAME_RANK: "copied within its rank",
    Receive.FREE_RIDER: "copied from a slot of its rank that receives it",
    Receive.SAME_NODE: "received from a rank of its node",
    Receive.CROSS_NODE: "received from another node",
}


def _print(migration: Migration, expert_bytes: int | None) -> None:
    table = Table("what becomes of a slot", "slots", "share", box=None)
    for kind, count in zip(Receive, _totals(migration).values(), strict=True):
        table.add_row(_MEANING[kind], f"{count:,}", f"{count / migration.receive.size:.1%}")
    console = stdout()
    console.print(table)
    busiest = int(migration.received.max())
    console.print(
        f"{int(migration.received.sum()):,} experts cross a wire; "
        f"at most {busiest} to one rank in one layer."
    )
    if expert_bytes is not None:
        console.print(f"{migration.bytes(expert_bytes) / 1e9:.3f} GB in all.")
