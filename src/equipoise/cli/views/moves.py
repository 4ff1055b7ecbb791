"""What a migration moves, in words and as a document."""

from __future__ import annotations

from equipoise.migration import Migration
from equipoise.units import duration


def moves_document(migration: Migration, expert_bytes: int | None) -> dict[str, object]:
    """Moves, transfers and rounds of all layers; volume and time if the bytes are known."""
    size = expert_bytes
    return {
        "changed": migration.moves,
        "transfers": int(migration.transfers.sum()),
        "rounds": int(migration.num_rounds.sum()),
        "bytes": None if size is None else migration.bytes(size),
        "bytes_by_link": None if size is None else migration.bytes_by_link(size),
        "seconds": None if size is None else migration.seconds(size),
    }


def moves_text(migration: Migration, expert_bytes: int | None) -> str:
    """The moves of a migration in one or two sentences."""
    experts, rounds = int(migration.transfers.sum()), int(migration.num_rounds.sum())
    text = (
        f"{experts:,} experts are sent between ranks in {rounds:,} rounds; "
        f"at most {int(migration.received.max())} to one rank in one layer."
    )
    if expert_bytes is None:
        return text
    volume, topology = migration.bytes_by_link(expert_bytes), migration.topology
    return (
        f"{text} {volume['node'] / 1e9:.3f} GB within nodes at "
        f"{topology.node_link.bytes_per_second / 1e9:g} GB/s and {volume['network'] / 1e9:.3f} GB "
        f"between them at {topology.network_link.bytes_per_second / 1e9:g} GB/s take "
        f"{duration(migration.seconds(expert_bytes))}, layer after layer."
    )
