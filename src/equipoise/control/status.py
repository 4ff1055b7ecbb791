"""What a serving process says of itself, several times a second, to whoever looks on."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from equipoise.errors import EquipoiseError


class Arrival(StrEnum):
    """What a process has done before its first step, in this order."""

    STARTED = "have started"
    JOINED = "have met"
    LOADED = "have the model"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What one process said last; what concerns all of them is to be read from rank 0.

    Parameters
    ----------
    name, rank, members, epoch
        Who it is, who serves together in the order of ranks, and how often that has changed.
    time
        Seconds since it started.
    step, step_seconds
        Forward passes so far, and what one takes lately.
    tokens
        Tokens that it has generated so far.
    domain
        Domain of the text it is at; empty if it has none.
    rank_load
        Assignments that each rank computed lately, ``(R,)``.
    imbalance
        Busiest over mean rank, mean over layers and steps lately.
    state, version
        State of the controller, and version of the placement.
    moved_slots, moved_bytes
        Slots of all ranks that have received an expert, and bytes that this one has received.
    log
        Last lines.
    failed_requests
        Requests that it could not serve.
    alarms
        Names of what is wrong.
    """

    name: str
    rank: int
    members: tuple[str, ...]
    epoch: int
    time: float
    step: int
    step_seconds: float
    tokens: int
    domain: str
    rank_load: tuple[int, ...]
    imbalance: float
    state: str
    version: int
    moved_slots: int
    moved_bytes: int
    log: tuple[str, ...]
    failed_requests: int = 0
    alarms: tuple[str, ...] = ()

    def encode(self) -> str:
        """The same as JSON, for a store or a file."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Status:
        """What ``encode`` made.

        Raises
        ------
        EquipoiseError
            Something else.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise EquipoiseError(f"What a process says of itself is no status: {error}.") from error


def status_key(name: str) -> str:
    """Where in the store the process of that name publishes."""
    return f"status/{name}"


def arrival_key(name: str) -> str:
    """Where in the store the process of that name publishes its ``Arrival``."""
    return f"arrival/{name}"
