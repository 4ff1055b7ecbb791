"""Agreement of the ranks of a process group: the same value everywhere, or an error everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from equipoise.control.messages import PeerError, decode, encode
from equipoise.errors import EquipoiseError

ProcessGroup = dist.ProcessGroup | None
"""A process group; ``None`` means all processes."""

_MOST_BYTES = 1 << 30  # of a message; a larger size is not believed


@contextmanager
def peers() -> Iterator[None]:
    """Raise ``PeerError`` for any error of torch in a collective: another rank is gone.

    Raises
    ------
    PeerError
        Instead of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        raise PeerError(str(error)) from error


def agree(what: str, value: object, group: ProcessGroup) -> None:
    """Make sure that a value has the same text on all ranks of the process group.

    Every rank of the process group has to call it.

    Raises
    ------
    EquipoiseError
        On every rank, if the value differs between ranks.
    """
    values = gather(str(value), str, group)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise EquipoiseError(
                f"Ranks disagree on {what}: rank 0 has {values[0]}, rank {rank} has {other}; "
                "start all of them with the same."
            )


def gather(value: object, kind: Any, group: ProcessGroup) -> list[Any]:
    """Gather a value of every rank, in rank order; every rank of the process group has to call it.

    Takes two collectives, so it is for what happens rarely.

    Parameters
    ----------
    value
        Value of this rank, of a type that ``encode`` can write.
    kind
        Type of the value, the same on every rank.

    Raises
    ------
    PeerError
        A rank is gone, or sends something else.
    """
    data = torch.frombuffer(bytearray(encode(value)), dtype=torch.uint8).to(_device(group))
    sizes = _gather(torch.tensor([len(data)], device=data.device), group)
    lengths = [int(size) for size in sizes]
    if not all(0 < length <= _MOST_BYTES for length in lengths):
        raise PeerError(f"Ranks announce messages of {lengths} bytes; expected at least 1.")
    room = data.new_zeros(max(lengths))
    room[: len(data)] = data
    every = _gather(room, group)
    return [
        decode(row[:length].cpu().numpy().tobytes(), kind)
        for row, length in zip(every, lengths, strict=True)
    ]


def _gather(mine: torch.Tensor, group: ProcessGroup) -> list[torch.Tensor]:
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    with peers():
        dist.all_gather(every, mine, group=group)
    return every


def _device(group: ProcessGroup) -> torch.device:
    """Device of the tensors that the backend of the process group can send."""
    on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
