"""The status that a serving process publishes for monitors, several times a second."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from equipoise.errors import EquipoiseError


class Arrival(StrEnum):
    """Stages of a process before its first step, in order."""

    STARTED = "have started"
    JOINED = "have met"
    LOADED = "have the model"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The latest status of one process. Read what concerns all processes from rank 0.

    Parameters
    ----------
    name, rank, members, epoch
        Name and rank of the process, names of all serving processes by rank, and number of changes
        of the members so far.
    time
        Seconds since the process started.
    step, step_seconds
        Number of forward passes so far, and recent time of one.
    tokens
        Number of tokens that the process has generated so far.
    domain
        Domain of the text that it serves now; empty if there is none.
    rank_load
        Assignments that each rank computed recently, ``(R,)``.
    imbalance
        Recent imbalance (max/mean over ranks), mean over layers and steps.
    state, version
        State of the controller, and version of the placement.
    moved_slots, moved_bytes
        Number of slots on all ranks that received an expert, and bytes that this process received.
    log
        Latest lines of the log.
    failed_requests
        Number of requests that the process could not serve.
    alarms
        Names of the alarms that are on.
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
        """Encode the status as JSON, for a store or a file."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Status:
        """Decode a status from JSON.

        Raises
        ------
        EquipoiseError
            Data that is not a status.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise EquipoiseError(f"A process published an invalid status: {error}.") from error


def status_key(name: str) -> str:
    """Return the key in the store under which a process publishes its status."""
    return f"status/{name}"


def arrival_key(name: str) -> str:
    """Name the key in the store at which a process publishes its ``Arrival``."""
    return f"arrival/{name}"
