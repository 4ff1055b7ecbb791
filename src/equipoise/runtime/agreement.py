"""What the ranks of a group have to be of one mind about."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from equipoise.errors import EquipoiseError

Group = dist.ProcessGroup | None
"""A process group; ``None`` is that of all processes."""


def agree(what: str, value: object, group: Group) -> None:
    """Make sure that all ranks of the group mean the same.

    Every rank of the group has to call it.

    Raises
    ------
    EquipoiseError
        On every rank alike, if the value is not everywhere the same.
    """
    values = gather_objects(value, group)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise EquipoiseError(
                f"Ranks disagree on {what}: rank 0 has {values[0]}, rank {rank} has {other}; "
                "start all of them alike."
            )


def gather_objects(value: object, group: Group) -> list[Any]:
    """The values of all ranks, in their order; every rank of the group has to call it.

    Slow, as it pickles: for what happens rarely.
    """
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values
